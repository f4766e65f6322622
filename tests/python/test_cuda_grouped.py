"""Layers of one shape as one batch on Hopper, beside the same layers one by one."""

import warnings

import pytest
import torch

from octavo import ops
from octavo.ops import kernels
from octavo.ops.packing import PackedWeight

pytestmark = pytest.mark.gpu
COUNT = 6


@pytest.fixture(scope="module", autouse=True)
def _qualified() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        ops.dispatch.qualify()


def _normal(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).cuda()


def _weights(numerics: str, n: int, k: int) -> list[PackedWeight]:
    """Side by side, of kernels of octavo's alone."""
    kernel = kernels.by_name(f"cuda.sm90.linear.{numerics}")
    if not kernel.supported:
        pytest.skip(f"{kernel.name} does not run on this device")
    weights = ops.pack_weights(_normal(COUNT, n, k, seed=1) / k**0.5, "bf16" if numerics == "bf16" else "e4m3")
    for w in weights:
        w.numerics = numerics
        w.preferred = {2**power: kernel.name for power in range(20)}
    return weights


def _xs(m: int, k: int, dtype: torch.dtype, in_columns: bool) -> list[torch.Tensor]:
    if in_columns:
        return list(_normal(m, COUNT * k, seed=2).to(dtype).split(k, dim=1))
    return list(_normal(COUNT, m, k, seed=2).to(dtype))


@pytest.mark.parametrize("numerics", ["bf16", "e4m3_row", "e4m3_row_fast"])
@pytest.mark.parametrize("norm", [None, "layer", "rms", "block"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("in_columns", [False, True])
def test_a_batch_is_its_layers(numerics, norm, dtype, in_columns) -> None:
    for m, n, k in ((1, 8, 16), (300, 64, 48), (77, 67, 33), (1000, 264, 128)):
        weights, xs = _weights(numerics, n, k), _xs(m, k, dtype, in_columns)
        biases, scales = _normal(COUNT, n, seed=3), _normal(COUNT, n, seed=4)
        norms = [None if norm is None else ops.Norm(norm, None if norm == "block" else s) for s in scales]
        layers = [
            ops.prepare_linear(w, b, norm=r, activation="silu", x_dtype=dtype, rows=(m,))
            for w, b, r in zip(weights, biases, norms, strict=True)
        ]
        expected = [layer(x) for layer, x in zip(layers, xs, strict=True)]
        bound = 2.0**-6 if dtype == torch.bfloat16 else 2.0**-9 if numerics != "e4m3_row_fast" else 2.0**-6
        for found in (
            ops.prepare_grouped(layers)(xs),
            ops.prepare_grouped(layers)(xs, list(torch.empty(m, COUNT * n, dtype=dtype).cuda().split(n, dim=1))),
            ops.grouped_linear(xs, weights, list(biases), norms, "silu"),
        ):
            for y, e in zip(found, expected, strict=True):
                assert (y.float() - e.float()).abs().max() <= bound * e.float().abs().max()


def test_one_launch_for_all() -> None:
    weights, xs = _weights("bf16", 64, 64), _xs(256, 64, torch.bfloat16, True)
    group = ops.prepare_grouped([ops.prepare_linear(w, x_dtype=torch.bfloat16, rows=(256,)) for w in weights])
    group(xs)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        group(xs)
        torch.cuda.synchronize()
    launches = [e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    assert len(launches) == 1, [e.name for e in launches]


def test_captured_with_memory_that_changes() -> None:
    weights, xs = _weights("e4m3_row", 32, 32), _xs(64, 32, torch.float32, True)
    biases = _normal(COUNT, 32, seed=5)
    group = ops.prepare_grouped([ops.prepare_linear(w, b, rows=(64,)) for w, b in zip(weights, biases, strict=True)])
    group(xs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = group(xs)
    before = group(xs)
    biases += 1
    graph.replay()
    for y, b in zip(found, before, strict=True):
        torch.testing.assert_close(y, b + 1)
