# Thin: each target is one command that works without make, too.
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := $(shell find csrc -type f 2>/dev/null) CMakeLists.txt pyproject.toml .ci/setup tests/peers.txt

.PHONY: demo test setup lint format bench clean

demo: $(VENV)/.ready  ## compress the shipped DCGAN in three ways and write a report
	$(BIN)/gansparse demo

test: $(VENV)/.ready  ## run the whole test suite
	$(BIN)/pytest $(PYTEST_ARGS)

setup: $(VENV)/.ready  ## virtual environment, dependencies, native build

$(VENV)/.ready: $(SOURCES)
	.ci/setup $(VENV)

lint: $(VENV)/.ready  ## what the pre-commit hooks check
	$(BIN)/pytest -q tests/test_style.py

format: $(VENV)/.ready  ## rewrite Python and C++ in the house's format
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .
	git ls-files '*.h' '*.cpp' '*.cu' '*.cuh' | xargs $(BIN)/clang-format -i

bench: $(VENV)/.ready  ## kernels, then whole generators; CSV under benchmarks/results
	$(BIN)/pip install -q --no-deps -r benchmarks/peers.txt || echo "peers that are missing are left out" >&2
	$(BIN)/python benchmarks/run.py --save $(OPS)
	$(BIN)/python benchmarks/end_to_end/generators.py --save $(GENERATORS)

clean:
	rm -rf build $(VENV) .pytest_cache .mypy_cache .ruff_cache
