# Two commands on a fresh machine: `make demo` and `make test`. Each builds .venv with all that it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Tools that cannot share one environment are tested in their own: tests/full_NAME in build/envs/NAME.
ENVIRONMENTS := dask keras mediapipe micro tflite214 torch
EXTRAS_dask := convert-onnx
PACKAGES_dask := distributed
EXTRAS_keras := convert-litert
EXTRAS_mediapipe := test-mediapipe
EXTRAS_micro := test-micro
EXTRAS_tflite214 := convert-litert
PACKAGES_tflite214 := scikit-learn
EXTRAS_torch := convert,convert-torch,convert-executorch,convert-coreml

.PHONY: demo test test-arm test-environments test-full conformance conformance-graphs fuzz check format clean $(ENVIRONMENTS:%=test-%)

demo: $(INSTALLED)
	$(BIN)/edgefleet demo $(if $(KEEP),--keep)

# Three at a time: much of it waits for processes, brokers and clocks.
PYTEST := $(BIN)/python -m pytest --numprocesses 3 --dist loadfile

test: $(INSTALLED)
	$(PYTEST) -m "not full"

test-environments: $(ENVIRONMENTS:%=test-%)

$(ENVIRONMENTS:%=test-%): test-%: build/envs/%/.installed
	build/envs/$*/bin/python -m pytest tests/full_$*

# The agent under emulation: an ARM userland with a Raspberry Pi's processor, built in build/arm64.
test-arm: $(INSTALLED)
	$(BIN)/python -m pytest tests/full_arm --timeout 900

# The faults come last and by themselves: their cases need no fixture that is dear, so idle hands may take any of them.
test-full: $(INSTALLED)
	$(PYTEST) --ignore=tests/faults
	$(PYTEST) --dist worksteal tests/faults
	$(MAKE) test-arm
	$(MAKE) test-environments

conformance: $(INSTALLED)
	PYTHONPATH=tests $(BIN)/python -m conformance

conformance-graphs: $(INSTALLED)
	PYTHONPATH=tests $(BIN)/python -m conformance_graphs

# Coverage-guided, over every parser of bytes from outside; FUZZ_S seconds.
FUZZ_S ?= 30
fuzz: $(INSTALLED)
	$(BIN)/python tests/fuzz/fuzz_parsers.py $(FUZZ_S)

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

build/envs/%/.installed: constraints/%.txt
	$(PYTHON) -m venv --clear build/envs/$*
	build/envs/$*/bin/python -m pip install --quiet --disable-pip-version-check --constraint $< --editable ".[$(EXTRAS_$*),test]" $(PACKAGES_$*)
	build/envs/$*/bin/python -m pip check --disable-pip-version-check
	touch $@

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("edgefleet needs Python 3.11 or newer, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	@echo "installing everything into $(VENV), once: about 900 MB"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@
