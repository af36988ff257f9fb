# The two commands: `make demo` and `make test`. Both make .venv and install into it when needed. `make test-big` has the
# tests that take long.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-big lint types contracts unit examples benchmark sanitize clean

demo: $(VENV)/.demo
	$(BIN)/optctl demo

test: lint types contracts unit examples

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

contracts: $(VENV)/.dev
	$(BIN)/lint-imports

# Most of the time goes into compiling, so the tests do without XLA's optimization, and those of a file stay together,
# which share compiled functions. The big ones, which compile for many seconds each, are the second target's.
PYTEST := XLA_FLAGS="--xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=0 $$XLA_FLAGS" \
	$(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile

unit: $(VENV)/.dev
	$(PYTEST) -m 'not big'

test-big: $(VENV)/.dev
	$(PYTEST) -m big

examples: $(VENV)/.dev
	$(BIN)/python examples/run_all.py

benchmark: $(VENV)/.dev
	$(INSTALL) '.[bench]'
	$(BIN)/python benchmarks/adjoint.py
	$(BIN)/python benchmarks/lq.py --json out/benchmark_lq.json
	$(BIN)/python benchmarks/kalman.py --json out/benchmark_kalman.json
	$(BIN)/python benchmarks/ode.py --json out/benchmark_ode.json
	$(BIN)/python benchmarks/trajectory.py --json out/benchmark_trajectory.json
	$(BIN)/python benchmarks/first_answer.py --json out/benchmark_first_answer.json

# The kernels with fuzzed sizes, strides and data, under the sanitizers of addresses, undefined behavior and races.
CMAKE ?= $(shell command -v cmake || echo $(BIN)/cmake)

sanitize: $(VENV)/.build
	$(CMAKE) -S native -B build/sanitize -DOPTCTL_SANITIZE=ON
	$(CMAKE) --build build/sanitize --parallel 2
	build/sanitize/fuzz 1000
	$(CMAKE) -S native -B build/sanitize-thread -DOPTCTL_SANITIZE=thread
	$(CMAKE) --build build/sanitize-thread --parallel 2
	TSAN_OPTIONS=halt_on_error=1 build/sanitize-thread/fuzz 200

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "optctl needs Python 3.11 or newer; name one with: make PYTHON=python3.12 demo"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "could not make $(VENV): on Debian and Ubuntu install python3-venv"; exit 1; }

# Not in an environment of its own, which would be a new one each time, and all kernels would be compiled again.
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
INSTALL := $(PIP) install --no-build-isolation --editable

$(VENV)/.build: | $(VENV)/bin/python
	$(PIP) install 'scikit-build-core>=0.11' cmake ninja
	@touch $@

$(VENV)/.demo: pyproject.toml $(wildcard native/*) | $(VENV)/.build
	$(INSTALL) '.[demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml $(wildcard native/*) | $(VENV)/.build
	$(INSTALL) '.[dev]'
	@touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) build dist out
