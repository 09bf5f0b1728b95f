# make search   sets up and runs the offline search        make test    sets up and runs the tests
# make slow     tests of seconds to a minute, for CI       make sweep   tests of minutes to hours
# make check    formatter, linter, types
# make versions the kernels under other JAX versions     make peers   cross-checks with other people's packages
# make gpu-compile  the GPU kernels under three JAX versions, compiled for an H100 and interpreted; needs no GPU
# make harness  zero-shot tasks through EleutherAI's harness (extra [eval])
# make cluster  jobs on a Ray cluster of several nodes on this machine (extra [cluster])
# make small-model  searches with a small language model on this machine (builds llama.cpp)
# ARGS='--cycles=30' make search   hands flags to the command behind it

SHELL := /bin/bash
VENV ?= .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
WORKERS ?= auto

.PHONY: setup setup-test search test slow sweep versions peers gpu-compile harness cluster small-model check format clean

setup: $(VENV)/.ready
setup-test: $(VENV)/.ready-test

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo 'asiarch needs Python 3.11 or newer; none is on PATH. Install one, or: make PYTHON=/path/to/python3.11 search'; exit 1; }
	@if command -v uv >/dev/null; then uv venv -q --python "$$(command -v $(PYTHON))" $(VENV); else $(PYTHON) -m venv $(VENV); fi

# Versions are pinned by requirements.lock; uv where it is installed, else pip.
define install
	@echo 'setting up $(VENV) (once; about a minute)'
	@if command -v uv >/dev/null; then uv pip install -q --python $(BIN)/python -c requirements.lock -e '$(1)'; \
	else $(BIN)/python -m pip --disable-pip-version-check install -q -c requirements.lock -e '$(1)'; fi
endef

$(VENV)/.ready: requirements.lock pyproject.toml | $(BIN)/python
	$(call install,.)
	@touch $@

$(VENV)/.ready-test: requirements.lock pyproject.toml | $(BIN)/python
	$(call install,.[test])
	@touch $@ $(VENV)/.ready

search: $(VENV)/.ready
	$(BIN)/asiarch search --config=configs/default.py --workdir=runs/default $(ARGS)

# Tests start hundreds of processes of this package: what Python has compiled is kept.
test slow sweep: export PYTHONDONTWRITEBYTECODE :=

test: $(VENV)/.ready-test
	$(BIN)/python -m pytest -n $(WORKERS) --dist=loadfile --no-loadscope-reorder -m 'not sweep and not slow' $(ARGS)

# What `make test` leaves out for time; CI runs it, too.
slow: $(VENV)/.ready-test
	$(BIN)/python -m pytest -n $(WORKERS) --dist=loadfile --no-loadscope-reorder -m 'slow and not sweep' $(ARGS)

sweep: $(VENV)/.ready-test
	$(BIN)/python -m pytest -n $(WORKERS) --dist=loadfile -m sweep $(ARGS)

# These make their own environments, of other Pythons; ARGS=--all runs the whole suite under each JAX.
versions:
	$(PYTHON) tests/versions.py $(ARGS)

peers:
	$(PYTHON) tests/versions.py peers-torch peers-jax $(ARGS)

gpu-compile:
	$(PYTHON) tests/versions.py gpu-0.10 gpu-0.11 gpu-0.12 $(ARGS)

harness:
	$(PYTHON) tests/versions.py harness $(ARGS)

cluster:
	$(PYTHON) tests/versions.py cluster $(ARGS)

small-model:
	$(PYTHON) tests/versions.py small-model $(ARGS)

check: $(VENV)/.ready-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.ready-test
	$(BIN)/ruff check --fix -q .
	$(BIN)/ruff format -q .

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
