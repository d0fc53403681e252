# Everything a clone needs: Python 3.11 or newer and make. `make` alone lists the targets.
PYTHON ?= python3
FAULT_REPETITIONS ?= 10
# Two at a time, whatever the machine: each worker has a Spark session of its own.
PARALLEL ?= -n 2 --dist loadfile --no-loadscope-reorder

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO_RAW := build/demo/raw
BENCHMARKS := $(patsubst tests/benchmarks/%.py,tests.benchmarks.%,\
	$(filter-out %/__init__.py tests/benchmarks/harness.py,$(sort $(wildcard tests/benchmarks/*.py))))

.DEFAULT_GOAL := help
.PHONY: help setup package demo test lint faults slow bench clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-8s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv with everything in it

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { \
		echo "$(PYTHON) was not found: install Python 3.11 or newer, or name one: make setup PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$$($(PYTHON) --version) is too old: logs2rec needs 3.11 or newer; name one: make setup PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

package: setup ## build/logs2rec.zip, for spark-submit --py-files
	$(BIN)/python -m infra.archive build/logs2rec.zip

demo: $(DEMO_RAW)/truth.json ## simulate a small log and run the whole pipeline on it
	$(BIN)/logs2rec run --config pipelines/recipes/demo.yaml

# The simulator writes truth.json last: without it the directory is half of a run that was stopped.
$(DEMO_RAW)/truth.json: | setup
	rm -rf $(DEMO_RAW)
	$(BIN)/logs2rec simulate $(DEMO_RAW) --users 1500 --items 400 --days 10 --seed 7

test: lint ## the fast lane: lint, types, tests
	$(BIN)/python -m pytest $(PARALLEL) -m 'not slow and not fault'

lint: setup ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

faults: setup ## break things on purpose, FAULT_REPETITIONS times each
	FAULT_REPETITIONS=$(FAULT_REPETITIONS) $(BIN)/python -m pytest $(PARALLEL) -m fault

slow: setup ## the tests that take minutes
	$(BIN)/python -m pytest $(PARALLEL) -m slow

bench: setup ## what is measured, one JSON report per module
	@for module in $(BENCHMARKS); do echo "== $$module" >&2; $(BIN)/python -m $$module --json || exit 1; done

clean: ## remove what tests, the demo and the tools left (not .venv)
	rm -rf build mlruns spark-warehouse metastore_db .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find pipelines featurize train evaluate infra tests -name __pycache__ -type d -prune -exec rm -rf {} +
