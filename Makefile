PYTHON ?= python
CONFIG ?= training/configs/faces.yaml

.DEFAULT_GOAL := help
.PHONY: help install test test-slow lint format bench train-faces ci

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: ## Install the working tree for development, with the CPU build of torch
	$(PYTHON) -m pip install -c constraints-cpu.txt -e ".[dev]"

test: ## Run the default tests
	$(PYTHON) -m pytest

test-slow: ## Run the slow tests only
	$(PYTHON) -m pytest -m slow

lint: ## Check style and formatting
	ruff check .
	ruff format --check .

format: ## Mend style and formatting
	ruff check --fix .
	ruff format .

bench: ## Measure the bundled checkpoint on held-out painted faces
	$(PYTHON) benchmarks/quality.py

train-faces: ## Train the model of the bundled checkpoint (hours on a CPU; CONFIG=... for another)
	$(PYTHON) -m unif2ace.training.train $(CONFIG)

ci: ## Install from scratch by the README's command, lint, test
	.ci/run
