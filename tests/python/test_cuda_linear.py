"""Linear layers and their gradients on Hopper, through octavo.ops, against FP64 on dequantized operands."""

import warnings

import pytest
import torch

from octavo import _core, nn, ops
from octavo.ops import kernels
from octavo.ops.backward_checks import grad_input_reference, grad_weight_reference
from octavo.ops.checks import check_linear, relative_to_largest, tolerance, weight_on
from octavo.ops.epilogue import Norm, apply_epilogue
from octavo.ops.linear_backward import run_grad_input, run_grad_weight, run_gradients
from octavo.ops.linear_call import record, run
from octavo.ops.packing import PackedWeight, pack_as
from octavo.ops.qualification import check_of
from octavo.ops.quantization import spread
from octavo.ops.reference import linear_reference

pytestmark = pytest.mark.gpu
CLASSES = ("bf16", "e4m3_row", "e4m3_row_fast", "e4m3_block")
GRADIENTS = [k.name for k in _core.kernels() if k.name.startswith("cuda.sm90.linear_grad")]
TILES = {tile["name"]: tile for tile in _core.gemm_tiles()}


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


def _linear(numerics: str) -> _core.Kernel:
    return _kernel(f"cuda.sm90.linear.{numerics}")


def _normal(*size: int, seed: int) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def _weight(n: int, k: int, numerics: str, seed: int) -> tuple[PackedWeight, PackedWeight]:
    """The same codes on the CPU and on the device."""
    w = pack_as(_normal(n, k, seed=seed) / max(k, 1) ** 0.5, numerics)
    return w, weight_on(w, "cuda")


def _on_device(norm: Norm | None) -> Norm | None:
    if norm is None:
        return None
    weight, bias = (None if v is None else v.cuda() for v in (norm.weight, norm.bias))
    return Norm(norm.kind, weight, bias, norm.eps, norm.block)


@pytest.mark.parametrize("numerics", CLASSES)
def test_qualification(numerics: str) -> None:
    assert check_linear(_linear(numerics)) == ""


@pytest.mark.parametrize("name", GRADIENTS)
def test_qualification_of_gradients(name: str) -> None:
    kernel = _kernel(name)
    assert check_of(kernel.op)(kernel) == ""


# Products alone, every instantiation on tails: m, n, k before what the tile's rules add.
_TILE_SHAPES = ((1, 8, 16), (5, 56, 48), (67, 184, 144), (300, 248, 528), (1027, 136, 1040), (4099, 520, 80))


def _tile_scales(
    m: int, n: int, k: int, blocks: bool
) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """FP64 scales of every element of x [m, k] and w [n, k], and the device's (cuda/gemm/problem.hpp)."""

    def some(*size: int) -> torch.Tensor:
        return 0.5 + torch.rand(*size, generator=torch.Generator().manual_seed(sum(size)))

    if not blocks:
        x_scale, w_scale = some(m), some(n)
        return x_scale.double()[:, None], w_scale.double()[:, None], (x_scale.cuda(), w_scale.cuda())
    x_scale, w_scale = some(m, -(-k // 128)), some(-(-n // 128), -(-k // 128))
    there = torch.nn.functional.pad(x_scale.T, (0, -m % 4)).contiguous().cuda(), w_scale.cuda()
    sizes = (x_scale, torch.Size((m, k)), "block_1x128"), (w_scale, torch.Size((n, k)), "block_128x128")
    return *(spread(*size).double() for size in sizes), there


@pytest.mark.parametrize("tile", TILES)
def test_every_instantiation(tile: str) -> None:
    """Each kernel by name, into each type it writes, against FP64 on its operands."""
    facts = TILES[tile]
    _linear("bf16")  # or there is no Hopper
    bf16, direct, norm = facts["product"] == "bf16", facts["store"] == "direct", facts["store"] == "norm"
    bound = {"bf16": 1e-5, "e4m3_fast": 2**-7}.get(facts["product"], 2**-10)
    x_type = torch.bfloat16 if bf16 else torch.float8_e5m2 if facts["product"] == "e5m2" else torch.float8_e4m3fn
    w_type = torch.bfloat16 if bf16 else torch.float8_e4m3fn
    for m, n, k in _TILE_SHAPES:
        n = min(n, facts["shape"][1]) if norm else n + 3 if direct and facts["w_major"] == "k" else n
        m = -(-m // 8) * 8 if facts["x_major"] == "mn" else m
        x, w = _normal(m, k, seed=m).to(x_type), (_normal(n, k, seed=n) / 4).to(w_type)
        x_scale, w_scale, scales = _tile_scales(m, n, k, facts["product"] == "e4m3_block")
        ref = (x.double() * x_scale) @ (w.double() * w_scale).T
        if norm:
            ref = apply_epilogue(ref, None, Norm("rms", torch.ones(n), None, 0.0), None)
        there = x.T.contiguous().cuda() if facts["x_major"] == "mn" else x.cuda()
        weight = w.T.contiguous().cuda() if facts["w_major"] == "mn" else w.cuda()
        for f32 in (False, True) if direct else (False,):
            d = torch.full((m, n), 7.0, dtype=torch.float32 if f32 else torch.bfloat16, device="cuda")
            _core.run_gemm_tile(tile, m, n, k, there.data_ptr(), weight.data_ptr(), *(s.data_ptr() for s in scales),
                                d.data_ptr(), f32, torch.cuda.current_stream().cuda_stream)  # fmt: skip
            assert relative_to_largest(d, ref) <= bound + (0 if f32 else 2**-8), (m, n, k, f32)


@pytest.mark.parametrize("numerics", CLASSES)
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (1, 512, 512), (63, 65, 129), (128, 256, 512), (1000, 130, 72), (5, 8, 0), (65536, 8, 16)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shapes(numerics: str, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    kernel = _linear(numerics)
    m, n, k = shape
    w, there = _weight(n, k, numerics, seed=2)
    x, bias = _normal(m, k, seed=3).to(dtype), _normal(n, seed=4)
    for b in (None, bias):
        y = run(x.cuda(), there, None if b is None else b.cuda(), kernel=kernel)
        ref = linear_reference(x, w.dequantize().double(), numerics, b)
        assert relative_to_largest(y, ref) <= tolerance(kernel, dtype)


@pytest.mark.parametrize("numerics", CLASSES)
@pytest.mark.parametrize("kind", [None, "layer", "rms", "block", "swish_rms"])
@pytest.mark.parametrize("n", [1, 8, 128, 192, 256, 331, 512])
def test_epilogues_on_every_route(numerics: str, kind: str | None, n: int) -> None:
    """Norms in the GEMM and behind it, both residuals, every activation."""
    kernel = _linear(numerics)
    w, there = _weight(n, 208, numerics, seed=7)
    x, bias = _normal(77, 208, seed=8), _normal(n, seed=9)
    weight = None if kind in (None, "block") else 1 + 0.1 * _normal(n, seed=10)
    norm = None if kind is None else Norm(kind, weight, 0.1 * _normal(n, seed=11) if kind == "layer" else None)
    activations = (None,) if kind == "swish_rms" else (None, "relu", "silu", "gelu", "hardswish", "sigmoid")
    for i, activation in enumerate(activations):
        dtype = (torch.bfloat16, torch.float32)[i % 2]
        for residual, before in ((None, False), (_normal(77, n, seed=12).to(dtype), i % 3 == 0)):
            y = run(x.to(dtype).cuda(), there, bias.cuda(), _on_device(norm), activation,
                    None if residual is None else residual.cuda(), before, kernel=kernel)  # fmt: skip
            ref = linear_reference(
                x.to(dtype), w.dequantize().double(), numerics, bias, norm, activation, residual, before
            )
            if n == 1 and kind == "layer":  # nothing is left of one column but the shift
                continue
            assert relative_to_largest(y, ref) <= tolerance(kernel, dtype, kind), (activation, residual is None, before)


@pytest.mark.parametrize("numerics", CLASSES)
@pytest.mark.parametrize("shape", [(0, 64, 32), (3, 0, 32), (0, 0, 0)])
def test_empty(numerics: str, shape: tuple[int, int, int]) -> None:
    kernel = _linear(numerics)
    m, n, k = shape
    y = run(_normal(m, k, seed=10).cuda(), _weight(n, k, numerics, seed=11)[1], kernel=kernel)
    assert y.shape == (m, n)
    assert y.is_cuda


@pytest.mark.parametrize("numerics", CLASSES)
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("residual_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("out_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("columns", [(10, 82), (16, 88)])
def test_types_mix_and_out_is_written_in_place(numerics, x_dtype, residual_dtype, out_dtype, columns) -> None:
    """Rows of out that start anywhere, and ones that the memory accelerator can write."""
    kernel = _linear(numerics)
    w, there = _weight(72, 96, numerics, seed=12)
    x, residual = _normal(21, 96, seed=13).to(x_dtype), _normal(21, 72, seed=14).to(residual_dtype)
    wide = torch.full((21, 104), 7.0, dtype=out_dtype, device="cuda")
    out = wide[:, slice(*columns)]
    y = run(x.cuda(), there, None, None, "relu", residual.cuda(), out=out, kernel=kernel)
    ref = linear_reference(x, w.dequantize().double(), numerics, None, None, "relu", residual)
    assert y.data_ptr() == out.data_ptr()
    assert relative_to_largest(y, ref) <= tolerance(kernel, out_dtype)
    assert bool((wide[:, : columns[0]] == 7).all())
    assert bool((wide[:, columns[1] :] == 7).all())


def test_out_on_the_wrong_device_is_refused_also_when_the_call_is_known() -> None:
    kernel = _linear("e4m3_row")
    w, x = _weight(16, 32, "e4m3_row", seed=15)[1], _normal(4, 32, seed=16).cuda()
    run(x, w, out=torch.empty(4, 16, device="cuda"), kernel=kernel)
    with pytest.raises(ValueError, match="out: is on cpu"):
        run(x, w, out=torch.empty(4, 16), kernel=kernel)


@pytest.mark.parametrize("numerics", CLASSES)
def test_strides_determinism_and_streams(numerics: str) -> None:
    kernel = _linear(numerics)
    w = _weight(96, 80, numerics, seed=5)[1]
    wide = _normal(50, 200, seed=6).cuda()
    for dtype in (torch.float32, torch.bfloat16):
        x = wide.to(dtype)
        expected = run(x[::2, 10:90].contiguous(), w, kernel=kernel)
        assert torch.equal(run(x[::2, 10:90], w, kernel=kernel), expected)
        assert torch.equal(run(x[:1, 10:90].expand(25, 80), w, kernel=kernel), expected[:1].expand(25, 96))
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            y = run(x[::2, 10:90], w, kernel=kernel)
        stream.synchronize()
        assert torch.equal(y, expected)


@pytest.mark.parametrize("numerics", CLASSES)
@pytest.mark.parametrize("norm", [False, True])
def test_graph_capture(numerics: str, norm: bool) -> None:
    _linear(numerics)
    w = _weight(256, 512, numerics, seed=7)[1]
    x = _normal(128, 512, seed=8).cuda().bfloat16()
    spec = Norm("rms", torch.ones(256, device="cuda")) if norm else None
    expected = ops.linear(x, w, norm=spec)  # chosen and qualified before the capture
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = ops.linear(x, w, norm=spec)
    y.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(y, expected)


@pytest.mark.parametrize("numerics", CLASSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_recorded_layer_keeps_what_the_norm_saw(numerics: str, dtype: torch.dtype) -> None:
    kernel = _linear(numerics)
    w, there = _weight(67, 48, numerics, seed=20)
    x, bias = _normal(33, 48, seed=21).to(dtype), _normal(67, seed=22)
    norm = Norm("rms", 1 + 0.1 * _normal(67, seed=23))
    y, z, _ = record(x.cuda(), there, bias.cuda(), _on_device(norm), "silu", None, False, None)
    assert z is not None
    seen = linear_reference(x, w.dequantize().double(), numerics, bias)
    assert relative_to_largest(z, seen) <= tolerance(kernel, dtype)
    assert relative_to_largest(y, apply_epilogue(seen, None, norm, "silu")) <= tolerance(kernel, dtype, "rms")


@pytest.mark.parametrize("name", GRADIENTS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 8, 16), (1000, 136, 72), (3000, 67, 130), (70000, 64, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients(name: str, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    """Sums over few rows, over many in slices with and without a rest, padded sides."""
    kernel = _kernel(name)
    m, n, k = shape
    grad, x = _normal(m, n, seed=30).to(dtype), _normal(m, k, seed=31).to(dtype)
    if kernel.op == _core.Op.linear_grad_weight:
        found = run_grad_weight(kernel, grad.cuda(), x.cuda())
        bound, ref = kernel.tolerance, grad_weight_reference(grad, x, kernel.numerics.name)
        again = run_grad_weight(kernel, grad.cuda(), x.cuda())
    else:
        w, there = _weight(n, k, kernel.numerics.name, seed=32)
        found = run_grad_input(kernel, grad.cuda(), there, dtype)
        bound, ref = tolerance(kernel, dtype), grad_input_reference(grad, w, kernel.numerics.name)
        again = run_grad_input(kernel, grad.cuda(), there, dtype)
    assert relative_to_largest(found, ref) <= bound
    assert torch.equal(found, again)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_gradients_in_eight_bits_share_one_cast(dtype: torch.dtype) -> None:
    """The bits of each kernel alone."""
    by_x, by_weight = (_kernel(f"cuda.sm90.linear_grad_{side}.e4m3_row") for side in ("input", "weight"))
    assert by_x.works_with(by_weight)
    for m, n, k in ((1, 1, 1), (1000, 136, 72), (3000, 67, 130)):
        _, there = _weight(n, k, "e4m3_row", seed=33)
        grad, x = (_normal(m, size, seed=34).to("cuda", dtype) for size in (n, k))
        found = run_gradients(by_x, by_weight, grad, there, x)
        assert torch.equal(found[0], run_grad_input(by_x, grad, there, dtype))
        assert torch.equal(found[1], run_grad_weight(by_weight, grad, x))


def test_a_converted_model_runs_on_the_device() -> None:
    kernel = _linear("e4m3_row")
    model = torch.nn.Sequential(nn.LinearNorm(64, 256), nn.Linear(256, 8)).cuda()
    x = _normal(300, 64, seed=9).cuda()
    before = kernel.calls
    fast = nn.convert(model, ops.dispatch.uniform_plan(model, x, "e4m3_row"))
    assert ops.errors.sqnr_db(fast(x), model(x)) > 20
    assert kernel.calls > before or ops.dispatch.counters().get("torch.cuda.linear.e4m3_row", 0) > 0


@pytest.mark.parametrize("backward", ["bf16", "e4m3_row"])
@pytest.mark.parametrize("kind", [None, "layer", "swish_rms"])
def test_training_runs_on_kernels_and_agrees_with_the_cpu(backward: str, kind: str | None) -> None:
    """The whole step on the device: forward, epilogue's gradient, both products."""
    names = [f"cuda.sm90.linear_grad_{side}.{backward}" for side in ("input", "weight")]
    before = [_kernel(name).calls for name in names]
    gradients = []
    for device in ("cpu", "cuda"):
        x = _normal(300, 96, seed=40).to(device).requires_grad_()
        weight = (_normal(72, 96, seed=41) / 10).to(device).requires_grad_()
        bias = _normal(72, seed=42).to(device).requires_grad_()
        gamma = None if kind is None else (1 + 0.1 * _normal(72, seed=43)).to(device).requires_grad_()
        norm = None if kind is None else Norm(kind, gamma, torch.zeros(72, device=device) if kind == "layer" else None)
        y = ops.linear(x, pack_as(weight, "e4m3_row"), bias, norm, None, backward=backward)
        y.backward(_normal(300, 72, seed=44).to(device))
        gradients.append([t.grad for t in (x, weight, bias, gamma) if t is not None])
    for found, expected in zip(gradients[1], gradients[0], strict=True):
        assert found is not None
        assert expected is not None
        assert relative_to_largest(found, expected.double()) <= 2**-6
    assert [kernels.by_name(name).calls > count for name, count in zip(names, before, strict=True)] == [True, True]
