# Two commands are enough on a machine with git, make and Python 3.11 or newer: make run, make test.
# Each creates .venv first where it is missing or older than pyproject.toml and constraints.txt.

PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
WORKERS ?= 2
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: run test slow lint bench install clean

run: $(INSTALLED)
	$(BIN)/python -m solvers

test: $(INSTALLED)
	$(BIN)/python -m pytest -n $(WORKERS)

slow: $(INSTALLED)
	$(BIN)/python -m pytest -m "slow or notebook"

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

install: $(INSTALLED)

# An environment that works is taken over. One that cannot run pip, or whose installation was cut
# (.installing is still there), is made anew. torch stands beside the project in one call: on its
# own, a dependency would pull the newest build first.
$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "nashplay needs Python 3.11 or newer; install it, or name it: make PYTHON=/path/to/python3"; exit 1; }
	@test ! -e .venv/.installing && $(BIN)/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
		|| { echo "creating .venv with $$($(PYTHON) --version)"; $(PYTHON) -m venv --clear .venv; }
	@echo "installing nashplay into .venv (about 2 GB without CUDA, some minutes)"
	@touch .venv/.installing
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		-c constraints.txt torch==2.13.0 -e '.[llm,notebooks,dev]' || { rm -f .venv/.installing; exit 1; }
	@rm -f .venv/.installing
	@touch $@

# The peers that the benchmarks compare with live in an environment of their own.
bench: .venv-bench/.installed
	.venv-bench/bin/python -m benchmarks

.venv-bench/.installed: pyproject.toml constraints.txt benchmarks/requirements.txt
	@test -n "$(PYTHON)" || { echo "nashplay needs Python 3.11 or newer; install it, or name it: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -m venv --clear .venv-bench
	@.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check \
		-c constraints.txt -e . -r benchmarks/requirements.txt
	@touch $@

# Caches and build leftovers; the environments stay (rm -r .venv .venv-bench).
clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find games solvers llm tests benchmarks notebooks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
