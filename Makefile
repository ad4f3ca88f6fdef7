# make demo | test | check | ui | bench | mutants | clean     PYTHON=python3.12 chooses another interpreter
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO ?= .demo
export OMP_NUM_THREADS = 1
export OPENBLAS_NUM_THREADS = 1

.PHONY: demo test check ui bench mutants install clean

demo: $(VENV)/.installed
	$(BIN)/lap demo --dir $(DEMO)

ui: $(VENV)/.installed
	$(BIN)/lap --repo $(DEMO)/survey ui

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder $(PYTEST_ARGS)

# what every edit should pass: style, the house, and the tests that take moments
check: $(VENV)/.installed-test
	$(BIN)/ruff check lap_assets lap_assets_tests
	$(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder -q -m "not slow and not survey and not ui" $(PYTEST_ARGS)

# make bench ONLY=spine.demo
bench: $(VENV)/.installed-test
	$(BIN)/python -m lap_assets_tests.benchmarks $(if $(ONLY),--only $(ONLY))

# each rule of the decisions taken out once: a test that cites it must fail
mutants: $(VENV)/.installed-test
	$(BIN)/python -m lap_assets_tests.mutants

install: $(VENV)/.installed

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -U pip

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install -q --disable-pip-version-check -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install -q --disable-pip-version-check -e ".[test]"
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(DEMO) .bench .pytest_cache .ruff_cache build *.egg-info
