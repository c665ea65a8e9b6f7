# `make` says what there is. Everything runs in its own environment, $(VENV), made on first use.
#   make test PYTHON=python3.12                          another interpreter
#   make demo PIP_TORCH='torch==2.13.0 --index-url ...'  another build of PyTorch

VENV ?= .venv
PIP_TORCH ?= torch==2.13.0
PYTEST_FLAGS ?=
# Two processes of one thread each use two cores where one process uses little more than one.
WORKERS ?= 2
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

ENOUGH = import sys; sys.exit(sys.version_info < (3, 11))
ifndef PYTHON
# The first that really runs: a name on the path may be a shim for a version that is not installed.
PYTHON := $(firstword $(foreach name,python3.11 python3 python3.12 python3.13 python,\
	$(shell $(name) -c '$(ENOUGH)' >/dev/null 2>&1 && echo $(name))) python3)
endif

# Nothing in this project needs a model hub; with these set, nothing can reach for one.
export HF_HUB_OFFLINE = 1
export HF_HUB_DISABLE_TELEMETRY = 1

BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check
READY = $(VENV)/.ready
DOCS_READY = $(VENV)/.ready-docs
EVAL_READY = $(VENV)/.ready-eval

.DEFAULT_GOAL := help
.PHONY: help venv demo demo-short demo-baselines test test-all test-eval lint format evidence docs clean distclean
.DELETE_ON_ERROR:

help: ## this list
	@echo "make TARGET, where TARGET is"
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' $(firstword $(MAKEFILE_LIST)) | awk -F'|' '{ printf "  %-16s %s\n", $$1, $$2 }'

venv: $(READY) ## the environment alone

demo: $(READY) ## the whole line on the embedded world: forget, quantize, audit, verdict, report
	$(BIN)/python -m letheon demo

demo-short: $(READY) ## the same, smaller
	$(BIN)/python -m letheon demo --short

demo-baselines: $(READY) ## the same with all six published baselines
	$(BIN)/python -m letheon demo --baselines

test: $(READY) ## the default tests
	$(PYTEST) -m "not slow and not gpu" $(PYTEST_FLAGS)

test-all: $(READY) ## the slow ones too
	$(PYTEST) -m "not gpu" $(PYTEST_FLAGS)

test-eval: $(EVAL_READY) ## what asks the real lm-evaluation-harness, which is 390 MB more to install
	$(PYTEST) tests/audits/test_harness.py tests/audits/benchmarks/test_lm_eval.py tests/contract/test_every_benchmark.py $(PYTEST_FLAGS)

lint: $(READY) ## style, types, and the floors of the house
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict src
	$(BIN)/lint-imports

format: $(READY) ## put the source into the agreed form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# What the documentation claims: each script keeps what it has done under runs/evidence and goes on from there.
EVIDENCE = leaderboard parts precision quantizers rates smoothers
ifeq ($(firstword $(MAKECMDGOALS)),evidence)
ASKED := $(or $(if $(filter command line,$(origin NAME)),$(NAME)),$(word 2,$(MAKECMDGOALS)))
.PHONY: $(EVIDENCE)
$(EVIDENCE):
	@:
endif

evidence: $(READY) ## make evidence NAME, where NAME is leaderboard, parts, precision, quantizers, rates or smoothers: measure it again, resumable
	@test -n "$(filter $(EVIDENCE),$(ASKED))" || { echo "make evidence NAME, where NAME is one of: $(EVIDENCE)" >&2; exit 2; }
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/$(ASKED).py

docs: $(DOCS_READY) ## the documentation, into docs/_build
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

clean: ## remove what was built (runs and the environment stay)
	rm -rf build dist docs/_build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

distclean: clean ## the environment as well
	rm -rf $(VENV)

# torch is left out of the pins that the other packages are installed under, so that PIP_TORCH alone decides about it.
# The build backend comes from the same pins, which an isolated build would not see.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c '$(ENOUGH)' 2>/dev/null || { \
	  echo "letheon needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1). Say which: make PYTHON=/path/to/python3.11" >&2; \
	  exit 1; }
	$(PYTHON) -m venv $(VENV)
	grep -v '^torch==' constraints.txt > $(VENV)/constraints.txt
	$(PIP) install $(PIP_TORCH) -c $(VENV)/constraints.txt
	$(PIP) install hatchling editables -c $(VENV)/constraints.txt
	$(PIP) install --no-build-isolation -e '.[dev]' -c $(VENV)/constraints.txt
	@touch $@

$(EVAL_READY): $(READY)
	$(PIP) install --no-build-isolation -e '.[dev,eval]' -c $(VENV)/constraints.txt
	@touch $@

$(DOCS_READY): $(READY)
	$(PIP) install --no-build-isolation -e '.[dev,docs]' -c $(VENV)/constraints.txt
	@touch $@
