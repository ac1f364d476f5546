# Three commands: make demo, make test, make bench. Each makes what it needs, with only python3 and make present.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-long bench bench-xl load soak eager attack dist size check fmt

demo: $(VENV)/installed-demo
	@$(BIN)/clerk-feed demo $(if $(EXIT),--exit)

test: $(VENV)/installed
	$(BIN)/pytest -n auto

# Twenty times as many examples of the model-based test, which takes over an hour on two cores.
test-long: $(VENV)/installed
	MODEL_EXAMPLES=2000 $(BIN)/pytest -n auto --dist worksteal tests/test_model.py

# ITEMS=200000 for a quick look, JSON=FILE to keep the figures, PLOTS=DIR for the plots of README.md, and for a part
# ONLY=walk|baseline|mapped|draft|django|datasette|stream|small|start|rendered.
bench: $(VENV)/installed
	@$(BIN)/python -m loadtests.bench $(if $(ITEMS),--items $(ITEMS)) $(if $(JSON),--json $(JSON)) $(if $(ONLY),--only $(ONLY)) \
	  $(if $(PLOTS),--plots $(PLOTS))

# A rendered feed of 10 000 000 products, on a data folder of its own; ITEMS and JSON as above.
bench-xl: $(VENV)/installed
	@$(BIN)/python -m loadtests.bench_xl $(if $(ITEMS),--items $(ITEMS)) $(if $(JSON),--json $(JSON))

# Walks, changes and faults, MINUTES=15 of them; SEED=… repeats one.
soak: $(VENV)/installed
	@$(BIN)/python -m loadtests.soak $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED))

# A load profile, with a report in loadtests/reports/: nightly platform eager incremental hostile crowded soak.
# Fails where a threshold does not hold. ITEMS and MINUTES override the profile's.
load: $(VENV)/installed
	@$(BIN)/python -m loadtests.load $(or $(PROFILE),nightly) $(if $(ITEMS),--items $(ITEMS)) \
	  $(if $(MINUTES),--minutes $(MINUTES)) $(if $(PICTURE),--picture $(PICTURE))

# Importers at their most eager against default settings: good ones must be refused nothing. ITEMS=10000 for a quick look.
eager: $(VENV)/installed
	@$(BIN)/python -m loadtests.eager $(if $(ITEMS),--items $(ITEMS)) $(if $(STORES),--stores $(STORES))

# How many attack requests a second are held while an importer keeps its pace; and what the gate costs a request.
attack: $(VENV)/installed
	@$(BIN)/python -m loadtests.gate
	@$(BIN)/python -m loadtests.attack

# A wheel and an sdist in dist/. The wheel is built from the sdist, so that one can be built from the other.
dist: $(VENV)/installed
	@rm -rf dist
	@$(BIN)/python -m build --no-isolation --outdir dist

# What the service and its requirements take on disk, in an empty environment.
size: $(VENV)/installed
	@$(BIN)/pytest -s -q -k small tests/test_release.py | grep MB

check: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

fmt: $(VENV)/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# What the two commands need, each for itself: the demo is not to wait for linters.
$(VENV)/installed: INSTALL = dev
$(VENV)/installed-demo: INSTALL = demo
$(VENV)/installed $(VENV)/installed-demo: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "clerk-feed needs Python 3.11 or later; name one with: make PYTHON=python3.12 …"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null \
	  || { echo "Python's venv module is missing; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@echo "Installing into $(VENV) …"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(INSTALL)]'
	@touch $@
