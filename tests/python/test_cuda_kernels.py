"""The CUDA kernels on a device, through octavo.ops, against FP64 on dequantized operands."""

import warnings

import pytest
import torch

from octavo import _core, nn, ops
from octavo.ops import kernels
from octavo.ops.checks import BF16_TOLERANCE, FP32_TOLERANCE, check_linear, relative_to_largest
from octavo.ops.linear_call import run
from octavo.ops.packing import pack_as
from octavo.ops.reference import linear_reference

pytestmark = pytest.mark.gpu
LINEAR = "cuda.sm90.linear.e4m3_row"


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
    assert check_linear(_kernel(LINEAR)) == ""


@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (1, 512, 512), (63, 65, 129), (128, 256, 512), (1000, 130, 72), (5, 8, 0)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linear_shapes(shape, dtype) -> None:
    kernel = _kernel(LINEAR)
    m, n, k = shape
    w = pack_as((_normal(n, k, seed=2) / max(k, 1) ** 0.5).cuda(), "e4m3_row")
    x, bias = _normal(m, k, seed=3).to(dtype), _normal(n, seed=4)
    for b in (None, bias):
        y = run(x.cuda(), w, None if b is None else b.cuda(), kernel=kernel)
        ref = linear_reference(x, w.dequantize().double().cpu(), "e4m3_row", b)
        bound = FP32_TOLERANCE if dtype == torch.float32 else BF16_TOLERANCE
        assert relative_to_largest(y, ref) <= bound


@pytest.mark.parametrize("shape", [(0, 64, 32), (3, 0, 32), (0, 0, 0)])
def test_empty(shape) -> None:
    kernel = _kernel(LINEAR)
    m, n, k = shape
    w = pack_as(_normal(n, k, seed=10).cuda(), "e4m3_row")
    y = run(_normal(m, k, seed=11).cuda(), w, kernel=kernel)
    assert y.shape == (m, n)
    assert y.is_cuda
    q = ops.quantize(torch.empty(m, k, device="cuda"), "e4m3", "row")
    assert q.data.shape == (m, k)
    assert q.scale.cpu().tolist() == [1.0] * m


@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("residual_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("out_dtype", [torch.float32, torch.bfloat16])
def test_types_mix_and_out_is_written_in_place(x_dtype, residual_dtype, out_dtype) -> None:
    kernel = _kernel(LINEAR)
    w = pack_as((_normal(72, 96, seed=12) / 10).cuda(), "e4m3_row")
    x, residual = _normal(21, 96, seed=13).to(x_dtype), _normal(21, 72, seed=14).to(residual_dtype)
    wide = torch.full((21, 100), 7.0, dtype=out_dtype, device="cuda")
    y = run(x.cuda(), w, None, None, "relu", residual.cuda(), out=wide[:, 10:82], kernel=kernel)
    ref = linear_reference(x, w.dequantize().double().cpu(), "e4m3_row", None, None, "relu", residual)
    bound = FP32_TOLERANCE if out_dtype == torch.float32 else BF16_TOLERANCE
    assert y.data_ptr() == wide[:, 10:82].data_ptr()
    assert relative_to_largest(y, ref) <= bound
    assert bool((wide[:, :10] == 7).all())
    assert bool((wide[:, 82:] == 7).all())


def test_out_on_the_wrong_device_is_refused_also_when_the_call_is_known() -> None:
    kernel = _kernel(LINEAR)
    w, x = pack_as((_normal(16, 32, seed=15) / 6).cuda(), "e4m3_row"), _normal(4, 32, seed=16).cuda()
    run(x, w, out=torch.empty(4, 16, device="cuda"), kernel=kernel)
    with pytest.raises(ValueError, match="out: is on cpu"):
        run(x, w, out=torch.empty(4, 16), kernel=kernel)


def test_strides_determinism_and_streams() -> None:
    kernel = _kernel(LINEAR)
    w = pack_as((_normal(96, 80, seed=5) / 9).cuda(), "e4m3_row")
    wide = _normal(50, 200, seed=6).cuda()
    expected = run(wide[::2, 10:90].contiguous(), w, kernel=kernel)
    assert torch.equal(run(wide[::2, 10:90], w, kernel=kernel), expected)
    assert torch.equal(run(wide[::2, 10:90], w, kernel=kernel), expected)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        y = run(wide[::2, 10:90], w, kernel=kernel)
    stream.synchronize()
    assert torch.equal(y, expected)


def test_graph_capture() -> None:
    _kernel(LINEAR)
    w = pack_as((_normal(256, 512, seed=7) / 22).cuda(), "e4m3_row")
    x = _normal(128, 512, seed=8).cuda().bfloat16()
    expected = ops.linear(x, w)  # chosen and qualified before the capture
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = ops.linear(x, w)
    y.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(y, expected)


def test_a_converted_model_runs_on_the_device() -> None:
    kernel = _kernel(LINEAR)
    model = torch.nn.Sequential(nn.LinearNorm(64, 256), nn.Linear(256, 8)).cuda()
    x = _normal(300, 64, seed=9).cuda()
    before = kernel.calls
    fast = nn.convert(model, ops.dispatch.uniform_plan(model, x, "e4m3_row"))
    assert ops.errors.sqnr_db(fast(x), model(x)) > 20
    assert kernel.calls > before or ops.dispatch.counters().get("torch.cuda.linear.e4m3_row", 0) > 0
