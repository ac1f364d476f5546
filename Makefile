# Three commands: make demo, make test, make bench. Each makes what it needs, with only python3 and make present.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-long bench check fmt

demo: $(VENV)/installed
	@$(BIN)/clerk-feed demo $(if $(EXIT),--exit)

test: $(VENV)/installed
	$(BIN)/pytest -n auto

# ITEMS=200000 for a quick look, JSON=FILE to keep the figures, ONLY=walk|baseline|stream|small for a part.
bench: $(VENV)/installed-bench
	@$(BIN)/python -m loadtests.bench $(if $(ITEMS),--items $(ITEMS)) $(if $(JSON),--json $(JSON)) $(if $(ONLY),--only $(ONLY))

check: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

fmt: $(VENV)/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "clerk-feed needs Python 3.11 or later; name one with: make PYTHON=python3.12 …"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null \
	  || { echo "Python's venv module is missing; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@echo "Installing into $(VENV) …"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

$(VENV)/installed-bench: $(VENV)/installed
	@echo "Installing what the bench compares with into $(VENV) …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,bench]'
	@touch $@
