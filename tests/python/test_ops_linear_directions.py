"""Classes of forward, grad_input and grad_weight chosen apart, against FP64 on the operands as each class rounds."""

import copy
import itertools

import pytest
import torch

from octavo import _core, nn, ops
from octavo.ops import backward_checks, qualification
from octavo.ops._types import NUMERICS
from octavo.ops.epilogue import apply_epilogue
from octavo.ops.linear_backward import GRAD_INPUT, GRAD_WEIGHT
from octavo.ops.packing import PackedWeight, pack_as

DIRECTIONS = list(itertools.product(NUMERICS, GRAD_INPUT, GRAD_WEIGHT))


@pytest.fixture(scope="module", autouse=True)
def _qualified() -> None:
    """Kernels that run to be qualified are counted too: not while a test counts."""
    for name in ("linear", "linear_epilogue_backward", "linear_grad_input", "linear_grad_weight"):
        qualification.ensure(_core.Op[name])


def _normal(*size: int, seed: int) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def _relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).abs().max() / b.double().abs().max().clamp_min(1e-30))


def _layer(numerics: str, grad_input: str, grad_weight: str, shape=(67, 130), norm: str | None = None):
    n, k = shape
    torch.manual_seed(0)
    layer = nn.Linear(k, n) if norm is None else nn.LinearNorm(k, n, norm, "silu")
    layer.numerics, layer.backward_numerics = numerics, (grad_input, grad_weight)
    return layer


def _of_input(grad: torch.Tensor, weight: torch.Tensor, forward: str, numerics: str) -> torch.Tensor:
    """FP64 gradient of x: the weight as the forward has it, unless the class reads other codes."""
    own = {"e4m3_row": ("e4m3_row", "e4m3_weight_only"), "int8_dynamic": ("int8_dynamic",)}
    if numerics in own and forward not in own[numerics]:
        return backward_checks.grad_input_reference(grad, pack_as(weight, numerics), numerics)
    if numerics == "fp32":
        return grad.double() @ (weight if forward == "fp32" else pack_as(weight, forward).dequantize()).double()
    w = pack_as(weight, numerics if forward == "fp32" else forward)
    return backward_checks.grad_input_reference(grad, w, numerics)


@pytest.mark.parametrize(("forward", "grad_input", "grad_weight"), DIRECTIONS)
def test_every_combination_against_fp64(forward, grad_input, grad_weight) -> None:
    layer = _layer(forward, grad_input, grad_weight)
    x, grad = _normal(40, 130, seed=1).requires_grad_(), _normal(40, 67, seed=2)
    before = ops.dispatch.counters()
    y = layer(x)
    g_x, g_weight, g_bias = torch.autograd.grad(y, (x, layer.weight, layer.bias), grad)
    weight = layer.weight.detach()
    with torch.no_grad():
        exact = torch.nn.functional.linear(x, weight, layer.bias)
        expected = exact if forward == "fp32" else ops.linear(x, pack_as(weight, forward), layer.bias)
    assert torch.equal(y, expected)
    upstream = grad if "fp32" in (grad_input, grad_weight) else grad.bfloat16().float()
    assert _relative(g_x, _of_input(upstream, weight, forward, grad_input)) < 1e-5
    seen = x.detach()
    product = grad.double().T @ seen.double()
    if grad_weight != "fp32":
        product = backward_checks.grad_weight_reference(upstream, seen, grad_weight)
    assert _relative(g_weight, product) < 1e-5
    assert torch.allclose(g_bias, grad.sum(0), atol=1e-5)
    ran = {name for name, calls in ops.dispatch.counters().items() if calls > before.get(name, 0)}
    for op, numerics in (("linear", forward), ("linear_grad_input", grad_input), ("linear_grad_weight", grad_weight)):
        found = {name.rsplit(".", 1)[1] for name in ran if f".{op}." in name}
        assert found == (set() if numerics == "fp32" else {numerics})


@pytest.mark.parametrize("norm", ["layer", "rms", "block", "swish_rms"])
@pytest.mark.parametrize("classes", [("fp32", "bf16"), ("bf16", "fp32"), ("bf16", "bf16"), ("int8_dynamic", "bf16")])
def test_an_fp32_forward_with_its_epilogue(norm, classes) -> None:
    layer = nn.LinearNorm(31, 20, norm, None if norm == "swish_rms" else "hardswish")
    layer.backward_numerics = classes
    twin = copy.deepcopy(layer)
    twin.backward_numerics = "bf16"  # a name: FP32 by torch
    x, grad = _normal(33, 31, seed=3).requires_grad_(), _normal(33, 20, seed=4)
    y, exact = layer(x), twin(x)
    assert torch.equal(y, exact)
    found = torch.autograd.grad(y, [x, *layer.parameters()], grad)
    expected = torch.autograd.grad(exact, [x, *twin.parameters()], grad)
    misses = {"fp32": 1e-5, "bf16": 2.0**-7, "int8_dynamic": 0.03}
    names = ["x", *(name for name, _ in layer.named_parameters())]
    for name, a, b in zip(names, found, expected, strict=True):
        miss = misses[classes[0]] if name == "x" else misses[classes[1]] if name == "weight" else 1e-5
        assert float((a - b).norm() / b.norm()) < miss, name
        if miss > 1e-5:
            assert float((a - b).norm() / b.norm()) > 1e-5, name


@pytest.mark.parametrize("classes", [("fp32", "bf16"), ("bf16", "fp32")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_direction_in_fp32_behind_an_epilogue(classes, dtype) -> None:
    norm, residual = ops.Norm("layer"), _normal(33, 20, seed=7).to(dtype)
    x = _normal(33, 31, seed=5).bfloat16().to(dtype).requires_grad_()  # the forward rounds neither x nor the weight
    weight = _normal(20, 31, seed=6).bfloat16().float().requires_grad_()
    w = pack_as(weight, "bf16")
    y = ops.linear(x, w, None, norm, "silu", residual, residual_before_norm=True, backward=classes)
    grad = _normal(33, 20, seed=8).to(dtype)
    found = torch.autograd.grad(y, (x, weight), grad)
    dequantized = w.dequantize().double().requires_grad_()
    seen = x.detach().double().requires_grad_()
    z = seen @ dequantized.T + residual.double()
    kept = z.detach().to(dtype).double().requires_grad_()
    (gz,) = torch.autograd.grad(apply_epilogue(kept, None, norm, "silu"), kept, grad.double())
    expected = torch.autograd.grad(z, (seen, dequantized), gz)
    for a, b, numerics in zip(found, expected, classes, strict=True):
        exact = numerics == "fp32" and dtype == torch.float32
        assert _relative(a, b) < (1e-5 if exact else 2.0**-7)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("shape", [(0, 4, 6), (3, 0, 6), (3, 4, 0), (1, 1, 1)])
@pytest.mark.parametrize("forward", ["fp32", "bf16"])
@pytest.mark.parametrize("classes", [("fp32", "bf16"), ("bf16", "fp32"), ("e4m3_row", "e4m3_row")])
def test_empty_and_smallest_matrices(shape, forward, classes) -> None:
    m, n, k = shape
    layer = _layer(forward, *classes, shape=(n, k))
    x = _normal(m, k, seed=1).requires_grad_()
    g_x, g_weight, g_bias = torch.autograd.grad(layer(x).sum(), (x, layer.weight, layer.bias))
    assert torch.allclose(g_x, layer.weight.detach().sum(0).expand(m, k), rtol=0.07, atol=1e-6)
    assert torch.allclose(g_weight, x.detach().sum(0).expand(n, k), rtol=0.07, atol=1e-6)
    assert torch.equal(g_bias, torch.full((n,), float(m)))


@pytest.mark.parametrize(
    ("forward", "classes"), [("fp32", ("bf16", "bf16")), ("fp32", ("fp32", "bf16")), ("bf16", ("int8_dynamic", "fp32"))]
)
def test_compiled_equals_eager_and_follows_the_weight(forward, classes) -> None:
    torch._dynamo.reset()
    layer = _layer(forward, *classes, shape=(8, 12), norm="rms")
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x = _normal(5, 12, seed=1).requires_grad_()
    leaves = [x, *layer.parameters()]
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    for _ in range(2):
        eager = torch.autograd.grad(layer(x).square().sum(), leaves)
        y = compiled(x)
        for a, b in zip(torch.autograd.grad(y.square().sum(), leaves), eager, strict=True):
            assert torch.allclose(a, b, rtol=1e-6, atol=1e-6)
        layer(x).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("forward", ["fp32", "bf16"])
def test_codes_of_the_backward_follow_the_weight(forward) -> None:
    layer = _layer(forward, "int8_dynamic", "bf16", shape=(9, 12))
    x, grad = _normal(7, 12, seed=1).requires_grad_(), _normal(7, 9, seed=2).bfloat16().float()
    for _ in range(2):
        (g,) = torch.autograd.grad(layer(x), x, grad)
        w = pack_as(layer.weight.detach(), "int8_dynamic")
        assert _relative(g, backward_checks.grad_input_reference(grad, w, "int8_dynamic")) < 1e-5
        twin = copy.deepcopy(layer)
        assert twin.backward_numerics == ("int8_dynamic", "bf16")
        assert torch.equal(torch.autograd.grad(twin(x), x, grad)[0], g)
        with torch.no_grad():
            layer.weight.mul_(3)
    y = layer(x)
    with torch.no_grad():
        layer.weight.mul_(2)
    layer(x)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_frozen_layer_passes_gradients_on() -> None:
    layer = _layer("fp32", "bf16", "bf16", shape=(9, 12)).requires_grad_(False)
    x = _normal(7, 12, seed=1).requires_grad_()
    (g,) = torch.autograd.grad(layer(x).sum(), x)
    assert _relative(g, layer.weight.bfloat16().double().sum(0).expand(7, 12)) < 1e-5
    assert not layer(x.detach()).requires_grad


def test_bad_classes_are_named() -> None:
    layer = nn.Linear(6, 4)
    with pytest.raises(ValueError, match=r"backward\[1\], of grad_weight: found 'int8_dynamic'; expected one of"):
        layer.backward_numerics = ("bf16", "int8_dynamic")
    with pytest.raises(ValueError, match=r"backward: found \('bf16',\); expected a class, or a pair"):
        nn.Linear(6, 4, backward=("bf16",))
    x, w = torch.randn(3, 6).requires_grad_(), pack_as(torch.randn(4, 6), "bf16")
    with pytest.raises(ValueError, match="'int8_dynamic' multiplies a weight of class int8_dyn.*give backward_weight"):
        ops.linear(x, w, backward=("int8_dynamic", "bf16"))
    with pytest.raises(ValueError, match=r"backward_weight: is \[4, 5\], w is \[4, 6\]"):
        ops.linear(x, w, backward=("int8_dynamic", "bf16"), backward_weight=pack_as(torch.randn(4, 5), "int8_dynamic"))
    elsewhere = pack_as(torch.randn(4, 6), "int8_dynamic")
    elsewhere = PackedWeight(elsewhere.codes.to("meta"), elsewhere.scale, "int8_dynamic")
    with pytest.raises(ValueError, match="backward_weight: is on meta, w is on cpu"):
        ops.linear(x, w, backward=("int8_dynamic", "bf16"), backward_weight=elsewhere)
