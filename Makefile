# Needs make, Python 3.11 or newer and pip; everything else goes into .venv.
PYTHON ?= python3
ARGS ?=

VENV := .venv
STAMP := $(VENV)/.stamp
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check -qq

.DEFAULT_GOAL := help
.PHONY: help demo test test-servers check bench fuzz clean

help: ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "make %-12s %s\n", $$1, $$2 }'

demo: $(STAMP) ## align a small model with two opposite tastes and write a report
	@$(VENV)/bin/keel demo $(ARGS)

test: $(STAMP) ## run the tests (ARGS="-k ppo" chooses some)
	@OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 -q $(ARGS)

test-servers: $(STAMP) ## sampling on a real vLLM, in an environment of its own: some minutes, and some more once
	@OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q -s -m servers tests/servers $(ARGS)

check: $(STAMP) ## lint, format, types and import contracts
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports --no-logo

bench: $(STAMP) ## speed and memory beside TRL: the short form, under 10 minutes once its environments are made
	@for row in ppo grpo dpo reward sft; do \
		$(VENV)/bin/python -m benchmarks.$$row --against trl --json .bench/results/$$row.json $(ARGS) && echo || exit 1; \
	done
	@$(VENV)/bin/python -m benchmarks.table $(patsubst %,.bench/results/%.json,ppo grpo dpo reward sft)

fuzz: $(STAMP) ## coverage-guided fuzzing of what reads data and recipes: 5 minutes (ARGS="--seconds 60")
	@test -x .fuzz/bin/python || { $(VENV)/bin/python -m venv .fuzz && .fuzz/bin/python -m pip -qq install atheris; }
	@PYTHONPATH="src:$$($(VENV)/bin/python -c 'import site; print(site.getsitepackages()[0])')" \
		OMP_NUM_THREADS=1 .fuzz/bin/python -m tests.hostile.fuzz $(ARGS)

clean: ## remove .venv, build files and caches, never your runs
	@rm -rf $(VENV) .fuzz build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find src tests benchmarks -type d -name __pycache__ -prune -exec rm -rf {} +

# The stamp is touched last, so an installation that was interrupted is taken up again.
$(STAMP): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { \
		echo "Keel needs Python 3.11 or newer and found no '$(PYTHON)': name one, as in 'make PYTHON=python3.12 ...'." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Keel needs Python 3.11 or newer and '$(PYTHON)' is older: name another, as in 'make PYTHON=python3.12 ...'." >&2; exit 1; }
	@$(VENV)/bin/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		$(PYTHON) -m venv --clear $(VENV) || { \
		echo "'$(PYTHON)' could not make a virtual environment: install its venv and ensurepip modules (python3-venv on Debian)." >&2; exit 1; }
	@echo "Installing the versions of requirements.lock into $(VENV): once, a few minutes."
	@$(PIP) install -r requirements.lock
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@
