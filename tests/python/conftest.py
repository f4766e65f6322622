"""Shared by all tests: caches of their own, and the instruction sets this CPU has."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_cache = tempfile.mkdtemp(prefix="octavo-test-cache-")
atexit.register(shutil.rmtree, _cache, ignore_errors=True)
os.environ["XDG_CACHE_HOME"] = _cache  # before octavo looks: verdicts of this machine's user are not trusted here

sys.path.append(str(Path(__file__).parents[2] / "benchmarks" / "python"))  # what tests and benchmarks share

from octavo import _core  # noqa: E402

_LEVELS = ("baseline", "avx2", "avx512", "amx")


@pytest.fixture(params=_LEVELS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """The test once per instruction set level, forced; levels above this CPU's are skipped."""
    from octavo.ops import dispatch

    before = _core.isa()
    try:
        dispatch.force_isa(request.param)
    except ValueError as error:
        pytest.skip(str(error))
    yield request.param
    dispatch.force_isa(before)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked gpu need a device that octavo's CUDA kernels can use."""
    if _core.cuda_info() is not None:
        return
    why = "no usable CUDA device" if _core.built_with_cuda else "octavo was built without CUDA"
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture(scope="session")
def row_scales() -> None:
    """Skips where torch's FP8 product takes no scale a row on a CPU: before torch 2.13."""
    import torch

    codes, scale = torch.ones(16, 16).to(torch.float8_e4m3fn), torch.ones(16, 1)
    try:
        torch._scaled_mm(codes, codes.T, scale, scale.T, out_dtype=torch.float32)
    except RuntimeError as refusal:
        if "only supports per-tensor scaling for CPU" not in str(refusal):
            raise
        pytest.skip(f"torch {torch.__version__} takes no scale a row on a CPU")
