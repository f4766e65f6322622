# On a machine with a GPU, offline (docs/gpu.md): build against its torch, test, qualify, measure. GPU_PYTHON is the
# interpreter that has torch, pytest, pybind11, scikit-build-core, cmake and ninja; results go to OUT.
GPU_PYTHON ?= $(PYTHON)
OUT ?= benchmarks/results

.PHONY: gpu-check
gpu-check:
	@command -v nvidia-smi > /dev/null && nvidia-smi -L | grep -q GPU || \
	  { echo "gpu-check: no NVIDIA GPU on this machine; run it on one (docs/gpu.md)"; exit 1; }
	$(GPU_PYTHON) tools/cuda_toolchain.py --if-wanted ON --run \
	  $(GPU_PYTHON) -m pip install --quiet --no-build-isolation --no-deps .
	@mkdir -p $(OUT)
	$(GPU_PYTHON) benchmarks/python/gpu_check.py --qualify --out $(OUT)/gpu-qualification.json
	@$(GPU_PYTHON) -m pytest -m gpu tests/python/test_cuda_*.py -p no:cacheprovider; tested=$$?; \
	  $(GPU_PYTHON) benchmarks/python/gpu_check.py --tiles --out $(OUT)/gpu-tiles.jsonl && \
	  $(GPU_PYTHON) benchmarks/python/gpu_check.py --out $(OUT)/gpu-linear.jsonl && \
	  $(GPU_PYTHON) benchmarks/python/gpu_simt.py --out $(OUT)/gpu-simt.jsonl && exit $$tested
