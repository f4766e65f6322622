# octavo's commands. Everything happens in .venv; PYTHON and TORCH choose the interpreter and the torch build.
PYTHON ?= python3
TORCH ?= torch==2.13.0
OCTAVO_CUDA ?= AUTO
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: dev
# The compiled module in place, for PYTHONPATH=python.
dev:
	@mkdir -p build
	cmake -S . -B build/dev -G Ninja -DOCTAVO_MODULE=ON -DOCTAVO_CUDA=OFF -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python \
	  -DCMAKE_LIBRARY_OUTPUT_DIRECTORY=$(CURDIR)/python/octavo > build/dev.log 2>&1 || (cat build/dev.log && false)
	cmake --build build/dev
