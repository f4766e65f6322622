"""Class e4m3_block: scales per 1x128 of activations and per 128x128 of weights, on the CPU."""

import copy
import itertools

import pytest
import torch

from octavo import nn, ops
from octavo.ops import backward_checks, kernels
from octavo.ops.dispatch.measure import calls_of
from octavo.ops.packing import pack_as
from octavo.ops.reference import linear_reference

CLASSES = ("bf16", "fp32", "e4m3_row")


def _normal(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def _error(y: torch.Tensor, ref: torch.Tensor) -> float:
    return float((y.double() - ref).abs().max() / ref.abs().max().clamp_min(1e-30)) if ref.numel() else 0.0


def test_codes_and_scales_are_those_of_quantize() -> None:
    weight = _normal(200, 300)
    w = ops.pack_weight(weight, scaling="block_128x128")
    q = ops.quantize(weight, "e4m3", "block_128x128")
    assert w.numerics == "e4m3_block"
    assert w.scale.shape == (2, 3)
    assert torch.equal(w.codes.view(torch.uint8), q.data.view(torch.uint8))
    assert torch.equal(w.scale, q.scale)
    assert torch.equal(w.dequantize(), q.dequantize())
    assert torch.equal(copy.deepcopy(w).dequantize(), w.dequantize())
    with pytest.raises(ValueError, match="scaling: 'block_128x128' is for e4m3 with activations 'same', found 'int8'"):
        ops.pack_weight(weight, "int8", scaling="block_128x128")
    with pytest.raises(ValueError, match="scaling: 'block_128x128' is for e4m3"):
        ops.pack_weight(weight, "e4m3", "bf16", "block_128x128")
    with pytest.raises(ValueError, match="scaling: found 'tensor'; expected one of"):
        ops.pack_weight(weight, scaling="tensor")


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 128, 128), (5, 129, 130), (70, 300, 700), (1, 33, 1200), (4, 7, 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_agree_with_fp64(isa, shape, dtype) -> None:
    """Rows and blocks of very different sizes: a scale taken from a neighbour would show."""
    m, n, k = shape
    sizes = 2.0 ** torch.randint(-9, 9, (-(-max(m, n) // 16), -(-k // 128)), generator=torch.Generator().manual_seed(1))
    sizes = sizes.repeat_interleave(16, 0).repeat_interleave(128, 1)
    x = (_normal(m, k) * sizes[:m, :k]).to(dtype)
    w = pack_as(_normal(n, k, seed=2) / sizes[:n, :k], "e4m3_block")
    bias, residual = _normal(n, seed=3), _normal(m, n, seed=4)
    y = ops.linear(x, w, bias, ops.Norm("layer"), "silu", residual, torch.float32)
    ref = linear_reference(x, w.dequantize().double(), "e4m3_block", bias, ops.Norm("layer"), "silu", residual)
    assert _error(y, ref) <= 1e-5
    assert _error(ops.linear(x, w, out_dtype=torch.float32),
                  linear_reference(x, w.dequantize().double(), "e4m3_block")) <= 1e-5  # fmt: skip


def test_an_outlier_costs_only_its_block() -> None:
    x, weight = _normal(64, 1024), _normal(64, 1024, seed=1)
    x[:, 0] = 1e6
    weight[:, 0] = 0
    exact = x.double() @ weight.double().T
    decibels = {c: ops.errors.sqnr_db(ops.linear(x, pack_as(weight, c)), exact) for c in ("e4m3_block", "e4m3_row")}
    assert decibels["e4m3_block"] > 8  # one of eight blocks is lost
    assert decibels["e4m3_row"] < 1


@pytest.mark.parametrize("shape", [(300,), (1, 300), (9, 300), (3, 2, 300), (200, 300), (0, 300)])
def test_rows_quantized_before_give_the_same_bits(isa, shape) -> None:
    x, w, bias = _normal(*shape), pack_as(_normal(70, 300, seed=1), "e4m3_block"), _normal(70, seed=2)
    q = ops.quantize(x, "e4m3", "block_1x128")
    y = ops.linear(x, w, bias, activation="relu")
    assert torch.equal(ops.linear(q, w, bias, activation="relu"), y)
    out, expected = ops.linear(q, w, bias, activation="relu", out_format="e4m3"), ops.quantize(y)
    assert torch.equal(out.data.view(torch.uint8), expected.data.view(torch.uint8))
    assert torch.equal(out.scale, expected.scale)


def test_traced_layers_give_the_same_bits() -> None:
    x, w = _normal(9, 300), pack_as(_normal(70, 300, seed=1), "e4m3_block")
    y = ops.linear(x, w)
    q = ops.quantize(x, "e4m3", "block_1x128")
    eight = torch.compile(
        lambda data, scale: ops.linear(ops.QuantizedTensor(data, scale, "e4m3", "block_1x128"), w), backend="eager"
    )
    assert torch.equal(torch.compile(lambda x: ops.linear(x, w), backend="eager")(x), y)
    assert torch.equal(eight(q.data, q.scale), y)


def test_same_bits_on_any_number_of_threads(isa) -> None:
    w, x = pack_as(_normal(200, 300, seed=1), "e4m3_block"), _normal(150, 300, seed=2)
    first, before = ops.linear(x, w), torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert torch.equal(ops.linear(x, w), first)
    finally:
        torch.set_num_threads(before)


def test_groups_share_their_rows_of_scales() -> None:
    """Enough work that threads cut the rows of a group."""
    ws = [pack_as(_normal(96, 300, seed=i), "e4m3_block") for i in range(3)]
    xs = [_normal(rows, 300, seed=9 + rows) for rows in (3, 150, 400)]
    for y, x, w in zip(ops.grouped_linear(xs, ws), xs, ws, strict=True):
        assert torch.equal(y, ops.linear(x, w))


@pytest.mark.parametrize(("grad_input", "grad_weight"), list(itertools.product(CLASSES, repeat=2)))
def test_layers_train(grad_input: str, grad_weight: str) -> None:
    """Gradients in BF16 read this weight; in e4m3_row the one packed for them."""
    layer = nn.Linear(260, 150)
    layer.numerics, layer.backward_numerics = "e4m3_block", (grad_input, grad_weight)
    x, grad = _normal(40, 260, seed=1).requires_grad_(), _normal(40, 150, seed=2).bfloat16().float()
    y = layer(x)
    packed, weight = layer.packed(), layer.weight.detach()
    seen = linear_reference(x.detach(), packed.dequantize().double(), "e4m3_block", layer.bias.detach())
    assert _error(y.detach(), seen) <= 1e-5
    g_x, g_weight = torch.autograd.grad(y, (x, layer.weight), grad)
    if grad_input == "fp32":
        wanted = grad.double() @ packed.dequantize().double()
    else:
        own = pack_as(weight, "e4m3_row") if grad_input == "e4m3_row" else packed
        wanted = backward_checks.grad_input_reference(grad, own, grad_input)
    assert _error(g_x, wanted) <= 1e-5
    if grad_weight == "fp32":
        wanted = grad.double().T @ x.detach().double()
    else:
        wanted = backward_checks.grad_weight_reference(grad, x.detach(), grad_weight)
    assert _error(g_weight, wanted) <= 1e-5


def test_gradients_that_want_scales_of_rows_are_refused() -> None:
    x, w = _normal(3, 6).requires_grad_(), pack_as(_normal(4, 6), "e4m3_block")
    with pytest.raises(ValueError, match="'e4m3_row' multiplies a weight of class e4m3_row or .* is e4m3_block; use"):
        ops.linear(x, w, backward="e4m3_row")
    ops.linear(x, w, backward="e4m3_row", backward_weight=pack_as(_normal(4, 6), "e4m3_row")).sum().backward()
    assert x.grad is not None


def test_a_changed_weight_is_packed_into_the_same_memory() -> None:
    layer = nn.Linear(300, 20)
    layer.numerics = "e4m3_block"
    packed, x = layer.packed(), _normal(4, 300)
    before = layer(x)
    with torch.no_grad():
        layer.weight.mul_(3)
    assert layer.packed() is packed
    assert not torch.equal(layer(x), before)
    assert torch.equal(layer.packed().scale, ops.quantize(layer.weight.detach(), "e4m3", "block_128x128").scale)


def test_plans_name_the_class_and_do_not_try_it_by_themselves() -> None:
    from octavo.ops.dispatch.plan import LOW_PRECISION

    assert "e4m3_block" not in LOW_PRECISION
    model, x = torch.nn.Sequential(nn.Linear(256, 32), nn.Linear(32, 8)), _normal(16, 256)
    fast = nn.convert(model, ops.dispatch.uniform_plan(model, x, "e4m3_block"))
    assert {m.numerics for m in fast.modules() if isinstance(m, nn.Linear)} == {"e4m3_block"}
    assert ops.errors.sqnr_db(fast(x), model(x)) > 20
    codes = ops.dispatch.Problem("linear", 8, 16, 300, "float8_e4m3fn")
    for call in calls_of(codes, [kernels.by_name(f"cpu.generic.linear.{c}") for c in ("e4m3_row", "e4m3_block")]):
        assert call().shape == (8, 16)  # x has the scales of each class
    unasked = ops.dispatch.explain(ops.dispatch.Problem("linear", 16, 32, 256))
    assert "of a class that serves where it is named or measured" in unasked
    table = ops.dispatch.explain(ops.dispatch.Problem("linear", 16, 32, 256, numerics="e4m3_block"))
    assert "cpu.generic.linear.e4m3_block" in table
