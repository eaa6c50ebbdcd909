# Both `make demo` and `make test` make the environment they need.
PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?= --numprocesses auto
REPRODUCE_ARGS ?= --workers 2

BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test reproduce clean

help: ## say what there is to make
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.%: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[$*]' --constraint constraints.txt
	@touch $@

demo: $(VENV)/.examples ## train the Bayesian digits example, print its table, draw its figure
	$(BIN)/python -m examples.bayesian_digits.demo

test: $(VENV)/.dev ## lint, formatting, types and tests (PYTEST_ARGS="-k name" is passed on)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m pytest $(PYTEST_ARGS)

reproduce: $(VENV)/.examples $(VENV)/.bench ## run each row of docs/reproduction again with one seed (the data: LIGHTNING_MIP_DATA; all: REPRODUCE_ARGS="--full --workers 2 --out docs/reproduction")
	$(BIN)/python -m benchmarks.reproduce $(REPRODUCE_ARGS)

clean: ## remove the environment, caches and builds; the output of runs stays
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
