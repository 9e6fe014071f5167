# Two commands on a fresh machine: `make demo` and `make test`. Each builds .venv with all that it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Tools that cannot share one environment are tested in their own: tests/full_NAME in build/envs/NAME.
ENVIRONMENTS := dask homeassistant keras mediapipe micro tflite214 torch
EXTRAS_dask := convert-onnx
PACKAGES_dask := distributed
EXTRAS_keras := convert-litert
EXTRAS_mediapipe := test-mediapipe
EXTRAS_micro := test-micro
EXTRAS_tflite214 := convert-litert
PACKAGES_tflite214 := scikit-learn
EXTRAS_torch := convert,convert-torch,convert-executorch,convert-coreml
# Home Assistant's last releases run on no older one, and the agent's tests run on both.
PYTHON313 ?= $(or $(lastword $(wildcard $(HOME)/.pyenv/versions/3.13.*/bin/python3.13)),python3.13)

.PHONY: demo has-python313 test test-arm test-environments test-full test-python313 conformance conformance-graphs fuzz check format clean $(ENVIRONMENTS:%=test-%)

demo: $(INSTALLED)
	$(BIN)/edgefleet demo $(if $(KEEP),--keep)

# The tests start a thousand processes of ours, and each would compile its modules again.
unexport PYTHONDONTWRITEBYTECODE

# Three at a time: much of it waits for processes, brokers and clocks. In the order that tests/conftest.py gives them.
PYTEST := $(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

# A sample of the cases, and of random examples the same in every run; test-full takes all, and new ones each time.
SAMPLE := -m "not full" --hypothesis-profile=same
test: $(INSTALLED)
	$(PYTEST) $(SAMPLE)

# A machine without a Python 3.13 says so, and goes on with the others.
HAS_313 := $(shell $(PYTHON313) -c '' 2>/dev/null && echo yes)
test-environments: $(filter-out $(if $(HAS_313),,test-homeassistant),$(ENVIRONMENTS:%=test-%))
	@$(if $(HAS_313),,echo "!!! NOT TESTED: Home Assistant's payloads: no Python 3.13 here; name one with PYTHON313=")

$(ENVIRONMENTS:%=test-%): test-%: build/envs/%/.installed
	build/envs/$*/bin/python -m pytest tests/full_$*

# The agent under emulation: ARM userlands with a Raspberry Pi's processor, built in build/arm.
PYTEST_ARM := $(BIN)/python -m pytest tests/full_arm --timeout 900
test-arm: $(INSTALLED)
	$(PYTEST_ARM) $(SAMPLE)

has-python313:
	@$(if $(HAS_313),,exit 1)

# The agent's tests once more, on the newest Python that it is for.
test-python313: build/envs/python313/.installed
	build/envs/python313/bin/python -m pytest tests/agent --numprocesses 3 --dist loadfile $(SAMPLE)

# The faults come last and by themselves: their cases need no fixture that is dear, so idle hands may take any of them.
test-full: $(INSTALLED)
	$(PYTEST) --ignore=tests/faults
	$(PYTEST) --dist worksteal tests/faults
	$(PYTEST_ARM)
	$(MAKE) test-python313
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

# Of what Home Assistant depends on, only what its MQTT integration loads; and none of its 100 MB of translations.
build/envs/homeassistant/.installed: constraints/homeassistant.txt
	@$(PYTHON313) -c '' || { echo "Home Assistant needs Python 3.13: name one with PYTHON313="; exit 1; }
	$(PYTHON313) -m venv --clear build/envs/homeassistant
	build/envs/homeassistant/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-compile --requirement $<
	build/envs/homeassistant/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	rm -r build/envs/homeassistant/lib/python3.13/site-packages/homeassistant/components/*/translations
	touch $@

build/envs/python313/.installed: pyproject.toml constraints.txt
	@$(PYTHON313) -c '' || { echo "This needs Python 3.13: name one with PYTHON313="; exit 1; }
	$(PYTHON313) -m venv --clear build/envs/python313
	build/envs/python313/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[agent,camera,data,litert,onnx,openvino,server,test]" amqtt onnx "tritonclient[http]"
	build/envs/python313/bin/python -m pip check --disable-pip-version-check
	touch $@

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("edgefleet needs Python 3.11 or newer, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	@echo "installing everything into $(VENV), once: about 900 MB"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@
