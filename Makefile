# Thin: each target is one command that works without make, too.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
SOURCES := $(shell find csrc -type f 2>/dev/null) CMakeLists.txt pyproject.toml .ci/setup tests/peers.txt

# Every process that a test starts would compile the modules it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test setup lint format bench gpu clean

demo: $(VENV)/.ready  ## compress the shipped DCGAN in three ways and write a report
	$(BIN)/gansparse demo

test: $(VENV)/.ready  ## run the whole test suite
	$(BIN)/pytest -n logical --maxprocesses 8 --dist worksteal $(PYTEST_ARGS)

setup: $(VENV)/.ready  ## virtual environment, dependencies, native build

$(VENV)/.ready: $(SOURCES)
	.ci/setup $(VENV)

lint: $(VENV)/.ready  ## what the pre-commit hooks check
	$(BIN)/pytest -q tests/test_style.py

format: $(VENV)/.ready  ## rewrite Python and C++ in the house's format
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .
	git ls-files '*.h' '*.cpp' '*.cu' '*.cuh' | xargs $(BIN)/clang-format -i

bench: $(VENV)/.ready  ## kernels, whole generators, single layers; CSV under benchmarks/results
	$(BIN)/pip install -q --no-deps -r benchmarks/peers.txt || echo "peers that are missing are left out" >&2
	$(BIN)/python benchmarks/run.py --save $(OPS)
	$(BIN)/python benchmarks/end_to_end/generators.py --save $(GENERATORS)
	$(BIN)/python benchmarks/end_to_end/generators.py --layers --save

# With this venv, or the Python at hand: no network. GPU_ARGS: --minutes, --jobs.
gpu:  ## on a CUDA machine: build, all tests, sanitizer, benchmarks; CSV under $OUT
	$(or $(wildcard $(BIN)/python),$(PYTHON)) benchmarks/gpu.py $(GPU_ARGS)

clean:
	rm -rf build gansparse/_C*.so $(VENV) .pytest_cache .mypy_cache .ruff_cache
