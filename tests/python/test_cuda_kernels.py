"""The CUDA quantizer on a device, through octavo.ops, against the definition. Layers: test_cuda_linear.py."""

import warnings

import pytest
import torch

from octavo import _core, ops
from octavo.ops import kernels
from octavo.ops.checks import check_quantize
from octavo.ops.reference import quantize_reference

pytestmark = pytest.mark.gpu
QUANTIZE = "cuda.sm80.quantize_row"


@pytest.fixture(scope="module", autouse=True)
def _qualified() -> None:
    """Before any test: a verdict on a kernel is what one of them asserts, not a warning in whichever comes first."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        ops.dispatch.qualify()


def _kernel(name: str) -> _core.Kernel:
    kernel = kernels.by_name(name)
    if not kernel.supported:
        pytest.skip(f"{name} does not run on this device")
    return kernel


def _normal(*size: int, seed: int) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def test_qualification() -> None:
    assert check_quantize(_kernel(QUANTIZE)) == ""


@pytest.mark.parametrize("shape", [(1, 1), (3, 17), (257, 1000), (4, 20000)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pow2", [False, True])
def test_quantize_is_the_definition(shape, dtype, pow2) -> None:
    _kernel(QUANTIZE)
    x = _normal(*shape, seed=1).to(dtype)
    q = ops.quantize(x.cuda(), "e4m3", "row", pow2)
    codes, scale = quantize_reference(x, "e4m3", "row", pow2)
    assert torch.equal(q.data.cpu().view(torch.uint8), codes.view(torch.uint8))
    assert torch.equal(q.scale.cpu(), scale)


@pytest.mark.parametrize("shape", [(0, 32), (3, 0), (0, 0)])
def test_empty(shape) -> None:
    _kernel(QUANTIZE)
    q = ops.quantize(torch.empty(*shape, device="cuda"), "e4m3", "row")
    assert q.data.shape == shape
    assert q.scale.cpu().tolist() == [1.0] * shape[0]
