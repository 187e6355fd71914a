# Everything a newcomer or CI runs. `make` alone lists it.
#
# Tools come from .venv, which `setup` makes from uv.lock; what it has to say goes to stderr.

SHELL := /bin/sh
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

BIN := .venv/bin
ARGS ?=
# One more than the two cores that the suite is made for: many tests wait for other processes.
WORKERS ?= 3

# Our own processes start by the dozen in a demo and in tests: let them keep their bytecode.
export PYTHONDONTWRITEBYTECODE =

.PHONY: help setup demo test check fmt generate interop fuzz bench clean

help: ## this list
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 18
	@echo
	@echo "  Options for a program go in ARGS, for instance: make demo ARGS=--json"

setup: ## make .venv from uv.lock (nothing to do when it is current)
	@sh tools/setup.sh

demo: ## a small estate attacked twice: without and with identity and policy
	@sh tools/setup.sh run
	@$(BIN)/eastwest demo $(ARGS)

test: setup check ## check, then the default test suite
	@sh tools/system.sh
	$(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

check: setup ## format, lint, types, import rules, dependencies, generated code
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry .
	$(BIN)/python tools/generate.py --check

fmt: setup ## format, and fix what can be fixed
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

generate: setup ## write src/eastwest/api from proto/
	$(BIN)/python tools/generate.py

interop: ## build foreign peers (SPIRE, go-spiffe, transparency-log tools) and test against them
	@sh tools/setup.sh interop
	@sh tools/system.sh
	$(BIN)/python tools/interop_build.py $(if $(CI),--require)
	$(BIN)/pytest tests/interop $(ARGS)

fuzz: setup ## hostile input for longer than in `make test`; ARGS='--seconds 600'
	$(BIN)/python tests/fuzz/run.py $(ARGS)

bench: setup ## measure; ARGS='--only NAME,NAME' runs a part; writes bench/results.json
	$(BIN)/python -m bench $(ARGS)

clean: ## remove .venv and what tools left in the tree
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .fuzz .coverage dist
	find src tests tools bench -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
