# octavo's commands. Everything happens in .venv; PYTHON and TORCH choose the interpreter and the torch build.
PYTHON ?= python3
TORCH ?= torch==2.13.0
# Build the CUDA kernels: ON, OFF, or AUTO (where nvcc and a GPU are found).
OCTAVO_CUDA ?= AUTO
JOBS ?= $(shell nproc)
# Processes that run the Python tests, each with torch's threads.
TEST_JOBS ?= $(shell nproc | awk '{ print $$1 < 4 ? $$1 : 4 }')
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export CMAKE_BUILD_PARALLEL_LEVEL := $(JOBS)

ENGINE := CMakeLists.txt pyproject.toml $(shell find cpp cuda bindings cmake -type f 2>/dev/null)
ROOMS := $(shell find python -name '*.py' -o -name '*.j2' -o -name '*.pyi')
CXX_FILES := $(shell find cpp cuda bindings tests/cpp benchmarks/cpp examples/cpp -name '*.?pp' -o -name '*.cu' -o -name '*.cuh' 2>/dev/null)

.PHONY: help install demo test test-cpp cpp-example bench bench-cpp lint format wheel dev clean
help:  # the default
	@echo "make demo       train and score a model on a log octavo generates; leaves an HTML report"
	@echo "make test       the whole test suite, C++ and Python"
	@echo "make bench      every benchmark, quick; results below build/bench"
	@echo "make bench-cpp  Google Benchmark: one row per kernel"
	@echo "make lint       ruff, clang-format, mypy, layering"
	@echo "make wheel      a wheel in dist/"
	@echo "make gpu-check  on a machine with a GPU: build, test, qualify, measure (docs/gpu.md)"
	@echo "make cpp-example  the engine installed for C++ programs below build/, and one that uses it"
	@echo "make dev        the compiled module in place, for PYTHONPATH=python"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip

# What octavo needs and what its tests need; torch first, so that nothing else picks its build.
$(VENV)/.dependencies: pyproject.toml tools/requirements.py | $(BIN)/python
	$(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/python tools/requirements.py build train dev | $(BIN)/pip install --quiet -r /dev/stdin
	@touch $@

$(VENV)/.bench: pyproject.toml $(VENV)/.dependencies
	$(BIN)/python tools/requirements.py bench | $(BIN)/pip install --quiet -r /dev/stdin
	@touch $@

$(VENV)/.octavo-$(OCTAVO_CUDA): $(ENGINE) $(ROOMS) $(VENV)/.dependencies
	$(BIN)/python tools/cuda_toolchain.py --if-wanted $(OCTAVO_CUDA) --run \
	  $(BIN)/pip install --quiet --no-build-isolation --no-deps --force-reinstall .
	@touch $@

install: $(VENV)/.octavo-$(OCTAVO_CUDA)

demo: install
	octavo demo --run-dir demo-run

test: install test-cpp
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n $(TEST_JOBS) --dist worksteal
	@test -e build/tests/CTestTestfile.cmake || echo "C++ tests were not built: install GoogleTest (libgtest-dev)"

test-cpp: $(VENV)/.dependencies
	@mkdir -p build
	@if cmake -S . -B build/tests -G Ninja -DOCTAVO_TESTS=ON -DOCTAVO_SANITIZE=ON -DOCTAVO_CUDA=OFF > build/tests.log 2>&1; \
	then cmake --build build/tests && ctest --test-dir build/tests --output-on-failure; \
	elif grep -q GTest build/tests.log; then rm -rf build/tests; echo "GoogleTest not found: C++ tests are not built"; \
	else cat build/tests.log; exit 1; fi

bench: install $(VENV)/.bench
	@mkdir -p build/bench
	@set -e; for name in $$($(BIN)/python benchmarks/python/harness.py --list); do \
	  echo "== $$name"; $(BIN)/python benchmarks/python/$$name.py --quick --json > build/bench/$$name.jsonl; \
	  tail -n 1 build/bench/$$name.jsonl; done

bench-cpp: $(VENV)/.dependencies
	cmake -S . -B build/bench-cpp -G Ninja -DOCTAVO_BENCHMARKS=ON -DOCTAVO_CUDA=OFF
	cmake --build build/bench-cpp
	@mkdir -p build/bench
	build/bench-cpp/benchmarks/cpp/octavo_benchmarks --benchmark_out=build/bench/kernels.json --benchmark_out_format=json

lint: $(VENV)/.dependencies
	ruff check .
	ruff format --check .
	@clang-format --dry-run -Werror $(CXX_FILES)
	mypy
	PYTHONPATH=python lint-imports --no-logo

format: $(VENV)/.dependencies
	ruff check --fix .
	ruff format .
	@clang-format -i $(CXX_FILES)

wheel: $(VENV)/.dependencies
	$(BIN)/python tools/cuda_toolchain.py --if-wanted $(OCTAVO_CUDA) --run \
	  $(BIN)/pip wheel --quiet --no-build-isolation --no-deps --wheel-dir dist .

# The engine installed for C++ programs, and a program built against nothing but that.
cpp-example: $(VENV)/.dependencies
	cmake -S . -B build/cpp -G Ninja -DOCTAVO_INSTALL_CPP=ON -DOCTAVO_CUDA=OFF -DCMAKE_INSTALL_PREFIX=$(CURDIR)/build/cpp-prefix
	cmake --build build/cpp
	rm -rf build/cpp-prefix
	cmake --install build/cpp
	cmake -S examples/cpp -B build/cpp-example -G Ninja -DCMAKE_PREFIX_PATH=$(CURDIR)/build/cpp-prefix
	cmake --build build/cpp-example
	build/cpp-example/packed_layer

# The compiled module in place, for PYTHONPATH=python.
dev: $(VENV)/.dependencies
	@mkdir -p build
	cmake -S . -B build/dev -G Ninja -DOCTAVO_MODULE=ON -DOCTAVO_CUDA=OFF -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python \
	  -DCMAKE_LIBRARY_OUTPUT_DIRECTORY=$(CURDIR)/python/octavo > build/dev.log 2>&1 || (cat build/dev.log && false)
	cmake --build build/dev

clean:
	rm -rf build dist demo-run python/octavo/*.so

-include make/gpu.mk
