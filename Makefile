# Every target sets up what it needs in .venv; a second call installs nothing unless setup.cfg changed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The paper's own scale is for a laboratory.
ANALYSES := $(filter-out analyses/__init__.py analyses/paper.py,$(wildcard analyses/*.py))

.PHONY: demo test check campaign oldest newest reports notebooks api clean

# One thread each: two test processes share two cores, and sums keep their order.
test campaign: export OMP_NUM_THREADS = 1
test campaign: export MKL_NUM_THREADS = 1
test campaign: export OPENBLAS_NUM_THREADS = 1

demo: $(VENV)/installed-demo
	$(BIN)/probekit demo

test: check
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not campaign and not gpu"

check: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Pages of the notebooks, in reports/notebooks.
notebooks: $(VENV)/installed-test
	$(BIN)/python docs/render_notebooks.py

# The API reference, in runs/api/probekit.html.
api: $(VENV)/installed-test
	$(BIN)/python docs/build_api.py runs/api

# Its pages are opened in the system's Chromium, where there is one.
campaign: $(VENV)/installed-campaign
	$(BIN)/python -m pytest -q -n 2 -m "campaign and not gpu"

# The fast tests with the oldest packages that setup.cfg allows, and with the newest there are, each in an
# environment of its own: `make oldest PYTHON=python3.10`, `make newest PYTHON=python3.13`.
oldest newest: export OMP_NUM_THREADS = 1
FAST := -q -m "not slow and not campaign and not gpu"
OLDEST := $(shell sed -n '/^install_requires/,/^$$/s/^ *\([a-z0-9-]*\)>=\(.*\)/\1==\2/p' setup.cfg)

# Old packages call what their newer companions deprecate.
oldest:
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet $(OLDEST) -e ".[demo]" \
		"pytest>=8" pytest-xdist pytest-timeout hypothesis build "setuptools>=77" tabulate
	.venv-oldest/bin/python -m pytest $(FAST) -W ignore::DeprecationWarning

newest:
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip install --quiet --upgrade -e ".[dev,oracles,demo,notebook]"
	.venv-newest/bin/python -m pytest $(FAST)

reports: $(VENV)/installed-test
	set -e; for file in $(ANALYSES); do \
		$(BIN)/probekit run $$file --jobs 2 --out reports/$$(basename $$file .py); \
	done

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find probekit analyses tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed-demo: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e ".[demo]"
	touch $@

# What the tests need holds what the demo needs.
$(VENV)/installed-test: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e ".[dev,oracles,demo,notebook]"
	touch $@ $(VENV)/installed-demo

$(VENV)/installed-campaign: $(VENV)/installed-test
	$(BIN)/python -m pip install --quiet -e ".[campaign]"
	touch $@
