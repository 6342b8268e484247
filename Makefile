# What one does with stube's sources. Needs Python, make and a package registry; everything else is set up here, in
# the virtual environment $(VENV), and again only when pyproject.toml or the Python version changes.
# Works with GNU make 3.81 and later.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

# How pytest uses every core (conftest.py says how many workers there are): a worker keeps the tests of a file together
# while it can, and takes some from another worker when it has none left. ARGS=-n0 runs them one after the other.
PARALLEL := -n auto --dist worksteal

OLDEST := $(shell sed -n 's/^requires-python = ">=\(.*\)"/\1/p' pyproject.toml)
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null)
PY := $(VENV)/bin/python

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1
export PIP_USER := 0
unexport PYTHONHOME
# pytest keeps the tests that it has compiled with their assertions; otherwise every worker compiles them in every run.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.NOTPARALLEL:
.SUFFIXES:
.PHONY: help demo test test-full test-all soak mutants lint types wheel bench bench-quick load clean

help: ## this list
	@echo "stube: what make does here. Each target sets up what it needs in $(VENV)/, once."
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "  ARGS='...'         goes to the command:  make demo ARGS='--port 9000'   make test ARGS='-k publish'"
	@echo "  PYTHON=python3.12  the Python to use, $(OLDEST) or later"

demo: $(VENV)/has-demo ## serve the demo, a page with a clock and a chat (ARGS=--self-check: let it test itself)
	@$(PY) -m stube demo $(ARGS)

test: $(VENV)/has-testing ## run the tests for a change at hand, in 3 to 6 minutes; tests/tiers.py lists what they leave out
	@$(PY) -m pytest $(PARALLEL) --tier fast $(ARGS)

test-full: $(VENV)/has-testing ## run all tests, in 15 minutes; those in a browser need Chromium
	@$(PY) -m pytest $(PARALLEL) $(ARGS)

test-all: $(VENV)/made-with-$(VERSION) ## run all tests on every CPython here, each in .venvs/VERSION (ARGS='--only 3.12 -k publish')
	@$(PY) tools/test_all.py $(PARALLEL) $(ARGS)

soak: $(VENV)/has-testing ## random programs, recorded histories and chaos, for half an hour (ARGS=--nightly: less)
	@$(PY) tools/soak.py $(ARGS)

mutants: $(VENV)/has-mutants ## change the engine in many small ways; does a test notice? (ARGS=_wheel: one module)
	@$(PY) tools/mutants.py $(ARGS)

lint: $(VENV)/has-dev ## ruff: the rules and the layout of the code
	@$(PY) -m ruff check --output-format concise .
	@$(PY) -m ruff format --check .

types: $(VENV)/has-dev ## mypy (strict) and pyright
	@$(PY) -m mypy
	@$(PY) -m pyright --pythonpath $(PY)

wheel: $(VENV)/has-dev ## build the sdist, from it the wheel, in dist/, and check what they hold
	@rm -rf dist && mkdir dist
	@echo "Building dist/ ..."
	@$(PY) -m build --outdir dist . >dist/build.log 2>&1 || { cat dist/build.log; exit 1; }
	@rm dist/build.log
	@$(PY) tools/check_wheel.py dist/*.whl

bench: $(VENV)/has-bench ## measure everything, beside what else there is, and write bench/RESULTS.md; 50 minutes
	@$(PY) bench/run.py $(ARGS)

bench-quick: $(VENV)/has-bench ## a first look at that within two minutes, written elsewhere
	@$(PY) bench/run.py --quick $(ARGS)

load: $(VENV)/has-bench ## open 2,000 streams at the same time, on stube and by hand, for bench/RESULTS.md; 3 minutes
	@$(PY) -m bench.load --json bench/load.json $(ARGS)

clean: ## remove the virtual environment and everything that was built or cached
	@rm -rf $(VENV) .venvs dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find stube backends tests bench tools examples -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# A stamp is an empty file that says what is done. That the environment was made with another version of Python
# shows as the missing stamp of this one.

$(VENV)/has-demo: EXTRAS := demo
$(VENV)/has-testing: EXTRAS := bench,browser,demo,examples,report,testing
$(VENV)/has-mutants: EXTRAS := mutants
$(VENV)/has-dev: EXTRAS := dev
$(VENV)/has-bench: EXTRAS := bench,report

$(VENV)/has-demo $(VENV)/has-testing $(VENV)/has-mutants $(VENV)/has-dev $(VENV)/has-bench: pyproject.toml $(VENV)/made-with-$(VERSION)
	@echo "Installing stube[$(EXTRAS)] into $(VENV)/ ..."
	@$(PY) -m pip install -qq --editable ".[$(EXTRAS)]"
	@touch $@

$(VENV)/made-with-$(VERSION):
	@if [ -z "$(VERSION)" ]; then \
	  echo "There is no Python called '$(PYTHON)' here." >&2; \
	  echo "Install Python $(OLDEST) or later, or name one: make PYTHON=/path/to/python3 ..." >&2; exit 1; fi
	@if ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] < tuple(map(int, "$(OLDEST)".split("."))))'; then \
	  echo "stube needs Python $(OLDEST) or later, and '$(PYTHON)' is Python $(VERSION)." >&2; \
	  echo "Install a later one, or name it: make PYTHON=python$(OLDEST) ..." >&2; exit 1; fi
	@if ! $(PYTHON) -c 'import venv, ensurepip' 2>/dev/null; then \
	  echo "'$(PYTHON)' (Python $(VERSION)) cannot make virtual environments: it lacks venv or ensurepip." >&2; \
	  echo "On Debian or Ubuntu: apt install python3-venv. Or name another: make PYTHON=/path/to/python3 ..." >&2; \
	  exit 1; fi
	@echo "Setting up $(VENV)/ with Python $(VERSION) ..."
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV)
	@touch $@
