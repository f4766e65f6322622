# On a machine with a GPU, offline (docs/gpu.md): build against its torch, qualify, test, measure. GPU_PYTHON is the
# interpreter that has torch, pytest, pybind11, scikit-build-core, cmake and ninja; results go to OUT. GPU_EFFORT=--quick
# measures fewer shapes. GPU_WHEELS: a folder of wheels for what that interpreter lacks. With 16 cores about 5 minutes of
# build, 4 of tests and 18 of benchmarks; where a command may last ten minutes only, call gpu-build, gpu-test, gpu-bench
# (or GPU_BENCHMARKS="gpu_gemm ...") and gpu-sanitize one by one.
GPU_PYTHON ?= $(PYTHON)
OUT ?= benchmarks/results
GPU_EFFORT ?=
GPU_WHEELS ?=
GPU_TESTS = $(filter-out %test_cuda_sanitizer.py,$(wildcard tests/python/test_cuda_*.py))
GPU_BENCHMARKS ?= $(shell $(GPU_PYTHON) benchmarks/python/harness.py --list --gpu)

.PHONY: gpu-check gpu-device gpu-build gpu-test gpu-bench gpu-sanitize
# Measures also where a test failed; then fails.
gpu-check: gpu-build
	@failed=0; for part in gpu-test gpu-bench gpu-sanitize; do \
	  $(MAKE) --no-print-directory $$part || failed=1; done; exit $$failed

gpu-device:
	@command -v nvidia-smi > /dev/null && nvidia-smi -L | grep -q GPU || \
	  { echo "gpu-check: no NVIDIA GPU on this machine; run it on one (docs/gpu.md)"; exit 1; }
	@mkdir -p $(OUT)

# A spill fails gpu-test instead of the build, so that another patch of nvcc can still be measured.
gpu-build: gpu-device
	$(GPU_PYTHON) tools/gpu_needs.py $(if $(GPU_WHEELS),--wheels $(GPU_WHEELS))
	OCTAVO_SPILLS=warn $(GPU_PYTHON) tools/cuda_toolchain.py --if-wanted ON --run \
	  $(GPU_PYTHON) -m pip install --quiet --no-build-isolation --no-deps .

gpu-test: gpu-device
	$(GPU_PYTHON) benchmarks/python/gpu_check.py --out $(OUT)/gpu-qualification.json
	$(GPU_PYTHON) -m pytest -m gpu $(GPU_TESTS) -p no:cacheprovider
	$(GPU_PYTHON) -m pytest tests/python/test_cuda_build.py -rs -p no:cacheprovider

# Every CUDA kernel under compute-sanitizer, where it is installed; -k memcheck for one of its tools.
gpu-sanitize: gpu-device
	$(GPU_PYTHON) -m pytest -m gpu tests/python/test_cuda_sanitizer.py -rs -p no:cacheprovider

# Every script within its own budget of seconds (benchmarks/python/harness.py); one that fails does not stop the others,
# and one that overstays is interrupted, which leaves what it measured in a .partial file.
gpu-bench: gpu-device
	@failed=0; for name in $(GPU_BENCHMARKS); do \
	  echo "== $$name"; timeout -s INT 540 $(GPU_PYTHON) benchmarks/python/$$name.py $(GPU_EFFORT) --out $(OUT)/$$name.jsonl || failed=1; \
	done; exit $$failed
