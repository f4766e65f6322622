"""pairwise_dots on a device, against the CPU's (tests/cpp/cuda_emulator: its kernels on the CPU)."""

import warnings

import pytest
import torch

from octavo import ops
from octavo.ops import kernels
from octavo.ops.checks import BF16_TOLERANCE, FP32_TOLERANCE, relative_to_largest
from octavo.ops.pairwise_checks import check_pairwise_dots

pytestmark = pytest.mark.gpu
SHAPES = [(1, 1, 1), (3, 2, 5), (4, 27, 64), (1000, 33, 15), (65536, 16, 16), (7, 200, 130)]  # B, F, D


@pytest.fixture(scope="module", autouse=True)
def _qualified() -> None:
    """Before any test: a verdict on a kernel is what one of them asserts, not a warning in whichever comes first."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        ops.dispatch.qualify()


def _normal(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("numerics", ["fp32", "bf16"])
def test_qualification(numerics) -> None:
    assert check_pairwise_dots(kernels.by_name(f"cuda.sm80.pairwise_dots.{numerics}")) == ""


@pytest.mark.parametrize("numerics", ["fp32", "bf16"])
@pytest.mark.parametrize("pairs", ["all", "lower", "upper"])
@pytest.mark.parametrize("shape", SHAPES)
def test_as_on_the_cpu(numerics, pairs, shape) -> None:
    x = _normal(*shape)
    found = ops.pairwise_dots(x.cuda(), pairs=pairs, numerics=numerics)
    expected = ops.pairwise_dots(x, pairs=pairs, numerics=numerics)
    assert found.is_cuda
    assert relative_to_largest(found, expected.double()) <= FP32_TOLERANCE
    assert torch.equal(ops.pairwise_dots(x.cuda(), pairs=pairs, numerics=numerics), found)
    half = ops.pairwise_dots(x.cuda().bfloat16(), pairs=pairs)
    assert relative_to_largest(half, ops.pairwise_dots(x.bfloat16(), pairs=pairs).double()) <= 2 * BF16_TOLERANCE


@pytest.mark.parametrize("numerics", ["fp32", "bf16"])
def test_strides(numerics) -> None:
    wide = _normal(5, 40, 60, seed=1).cuda()
    for x, y in (
        (wide[::2, 3:20, 7:36], wide[1:4, ::2, 30:59]),  # slices
        (wide.mT[:3, 7:36], wide.mT[1:4, 20:37]),  # transposed
        (wide[:3, ::3, ::2], wide[:3, :9, :30]),  # neither rows nor columns are neighbours
        (wide[:1].expand(3, 40, 60), wide[:3]),  # one matrix for all
    ):
        found = ops.pairwise_dots(x, y, numerics=numerics)
        assert torch.equal(found, ops.pairwise_dots(x.contiguous(), y.contiguous(), numerics=numerics))
        assert relative_to_largest(found, ops.pairwise_dots(x.cpu(), y.cpu(), numerics=numerics).double()) <= (
            FP32_TOLERANCE
        )


@pytest.mark.parametrize("pairs", ["all", "lower"])
def test_into_a_slice_of_a_row(pairs) -> None:
    x = _normal(600, 9, 13).cuda()
    expected = ops.pairwise_dots(x, pairs=pairs)
    row = torch.full((600, 200), -7.0, device="cuda")
    out = row[:, 50 : 50 + expected[0].numel()].view(expected.shape)
    assert ops.pairwise_dots(x, pairs=pairs, out=out) is out
    assert torch.equal(out, expected)
    assert bool((row[:, :50] == -7).all())
    assert bool((row[:, 50 + expected[0].numel() :] == -7).all())


@pytest.mark.parametrize("pairs", ["all", "lower", "upper"])
def test_gradients(pairs) -> None:
    x = _normal(5, 27, 33)
    grad = _normal(*ops.pairwise_dots(x, pairs=pairs).shape, seed=5)
    here, there = x.clone().requires_grad_(), x.cuda().requires_grad_()
    ops.pairwise_dots(here, pairs=pairs).backward(grad)
    ops.pairwise_dots(there, pairs=pairs).backward(grad.cuda())
    assert relative_to_largest(there.grad, here.grad.double()) <= FP32_TOLERANCE


def test_captured_and_compiled() -> None:
    x = _normal(100, 27, 64).cuda()
    expected = ops.pairwise_dots(x, pairs="lower")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = ops.pairwise_dots(x, pairs="lower")
    graph.replay()
    assert torch.equal(found, expected)
    compiled = torch.compile(lambda t: ops.pairwise_dots(t, pairs="lower"), backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), expected)


def test_beyond_2_gib() -> None:
    x = torch.zeros(2**16 + 1, 128, 128, device="cuda", dtype=torch.bfloat16)
    x[-1] = _normal(128, 128).cuda().bfloat16()
    assert torch.equal(ops.pairwise_dots(x)[-1], ops.pairwise_dots(x[-1:])[0])


def test_operands_on_two_devices() -> None:
    with pytest.raises(ValueError, match="y: is on cpu but x is on cuda:0"):
        ops.pairwise_dots(_normal(2, 3, 4).cuda(), _normal(2, 3, 4))
