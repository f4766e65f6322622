"""ops.linear(residual_rows=) on a device, where kernels read the rows through their index."""

import warnings

import pytest
import torch

from octavo import ops
from octavo.ops import Norm

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:Synchronization debug mode")]
M, N, K, R = 1000, 264, 96, 70


@pytest.fixture(scope="module", autouse=True)
def _qualified() -> None:
    """Before any test: a verdict on a kernel is no matter of these."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        ops.dispatch.qualify()


@pytest.fixture
def layer() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, weight, shared rows, their index."""
    g = torch.Generator().manual_seed(0)
    x, weight, shared = (torch.randn(*size, generator=g).cuda() for size in ((M, K), (N, K), (R, N)))
    return x.bfloat16(), weight, shared, torch.randint(0, R, (M,), generator=g).cuda()


@pytest.mark.parametrize("format", ["bf16", "e4m3"])
@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("norm", [None, Norm("layer"), Norm("block")])
def test_as_rows_repeated(layer, format, before, norm) -> None:
    x, weight, shared, rows = layer
    w = ops.pack_weight(weight, format)
    arguments = dict(norm=norm, activation="silu", residual_before_norm=before, out_dtype=torch.float32)
    found = ops.linear(x, w, residual=shared, residual_rows=rows, **arguments)
    expected = ops.linear(x, w, residual=shared[rows], **arguments)
    assert float((found - expected).abs().max() / expected.abs().max()) <= 1e-5  # another route, the same sums
    codes = ops.linear(x, w, norm=norm, residual=shared, residual_rows=rows, out_format="e4m3")
    assert codes.data.shape == (M, N)


def test_rows_outside_are_nan_and_nothing_waits(layer) -> None:
    x, weight, shared, rows = layer
    w = ops.pack_weight(weight, "bf16")
    right = ops.linear(x, w, activation="relu", residual=shared, residual_rows=rows, residual_before_norm=True)
    wrong = rows.clone()
    wrong[3], wrong[999] = -1, R
    torch.cuda.set_sync_debug_mode("error")
    try:
        y = ops.linear(x, w, activation="relu", residual=shared, residual_rows=wrong, residual_before_norm=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert y.isnan().all(1).nonzero().flatten().tolist() == [3, 999]
    kept = rows == wrong
    assert torch.equal(y[kept], right[kept])


def test_captured_compiled_and_trained(layer) -> None:
    x, weight, shared, rows = layer
    w = ops.pack_weight(weight, "bf16")

    def run(shared: torch.Tensor) -> torch.Tensor:
        return ops.linear(x, w, residual=shared, residual_rows=rows)

    expected = run(shared)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = run(shared)
    graph.replay()
    assert torch.equal(y, expected)
    assert torch.equal(torch.compile(run, backend="aot_eager", fullgraph=True)(shared), expected)
    gradients = []
    for _ in range(2):
        leaf = shared.clone().requires_grad_()
        run(leaf).float().sum().backward()
        gradients.append(leaf.grad)
    assert torch.equal(gradients[0], gradients[1])
    counts = torch.bincount(rows, minlength=R).float()
    assert torch.equal(gradients[0], counts[:, None].expand(R, N))
