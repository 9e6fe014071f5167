# Two commands on a fresh machine: `make demo` and `make test`. Each builds .venv with all that it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-full conformance conformance-graphs check format clean

demo: $(INSTALLED)
	$(BIN)/edgefleet demo $(if $(KEEP),--keep)

test: $(INSTALLED)
	$(BIN)/python -m pytest -m "not full"

test-full: $(INSTALLED)
	$(BIN)/python -m pytest

conformance: $(INSTALLED)
	PYTHONPATH=tests $(BIN)/python -m conformance

conformance-graphs: $(INSTALLED)
	PYTHONPATH=tests $(BIN)/python -m conformance_graphs

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build $(VENV)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("edgefleet needs Python 3.11 or newer, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	@echo "installing everything into $(VENV), once: about 900 MB"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@
