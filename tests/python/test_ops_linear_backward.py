"""Gradients of ops.linear by kernels, against FP64 autograd."""

import gc
import itertools
from types import SimpleNamespace

import pytest
import torch

from octavo import _core, nn, ops
from octavo.ops import backward_checks, linear_backward
from octavo.ops.epilogue import apply_epilogue
from octavo.ops.linear_backward import run_grad_input, run_grad_weight
from octavo.ops.packing import pack_as

NORMS = (None, "layer", "rms", "block", "swish_rms")
ACTIVATIONS = (None, "relu", "silu", "gelu", "hardswish", "sigmoid")
RESIDUALS = (None, "before", "after")
SHAPES = ((5, 12, 7), (33, 67, 130), (1, 3, 1))  # M, N, K


def _normal(*size: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).to(dtype)


class Case:
    """A layer's leaves, and its gradients both ways; the FP64 twin sees the product that the forward saw."""

    def __init__(self, shape, norm, activation, residual, dtype, format="bf16") -> None:
        m, n, k = shape
        self.activation, self.before, self.dtype = activation, residual == "before", dtype
        self.x = _normal(m, k, seed=1).bfloat16().to(dtype).requires_grad_()
        self.weight = (_normal(n, k, seed=2) / k**0.5).bfloat16().float().requires_grad_()
        self.bias = _normal(n, seed=3).requires_grad_()
        self.residual = None if residual is None else _normal(m, n, seed=4, dtype=dtype).requires_grad_()
        weight = (1 + 0.2 * _normal(n, seed=5)).requires_grad_() if norm in ("layer", "rms", "swish_rms") else None
        shift = (0.3 * _normal(n, seed=6)).requires_grad_() if norm == "layer" else None
        self.norm = None if norm is None else ops.Norm(norm, weight, shift, block=48)
        self.w = pack_as(self.weight, format)
        self.grad = _normal(m, n, seed=7).bfloat16().to(dtype)

    @property
    def leaves(self) -> list[torch.Tensor]:
        found = [self.x, self.weight, self.bias, self.residual]
        found += [] if self.norm is None else [self.norm.weight, self.norm.bias]
        return [t for t in found if t is not None]

    def found(self, backward: str = "bf16") -> list[torch.Tensor]:
        y = ops.linear(self.x, self.w, self.bias, self.norm, self.activation, self.residual,
                       residual_before_norm=self.before, backward=backward)  # fmt: skip
        return list(torch.autograd.grad(y, self.leaves, self.grad))

    def expected(self) -> tuple[list[torch.Tensor], list[torch.Tensor | float]]:
        """FP64 gradients, z kept in the output's type as the layer keeps it; and what each may miss by: the gradient of
        z is rounded to BF16 once, sums are FP32's, outputs are rounded to their types.
        """
        x, residual = (None if t is None else t.detach().double().requires_grad_() for t in (self.x, self.residual))
        weight = self.w.dequantize().double().requires_grad_()
        product = apply_epilogue(x @ weight.T, self.bias.double(), None, None, residual if self.before else None, True)
        z = product.detach().to(self.dtype).double().requires_grad_()
        late = None if self.before else residual
        y = apply_epilogue(z, None, self.norm, self.activation, late)
        vectors = [] if self.norm is None else [t for t in (self.norm.weight, self.norm.bias) if t is not None]
        gz, *of_vectors = torch.autograd.grad(y, [z, *vectors], self.grad.double(), retain_graph=True)
        of_x, of_weight = torch.autograd.grad(product, [x, weight], gz, retain_graph=True)
        found, unit = [of_x, of_weight, gz.sum(0)], 1.01 * 2.0**-8
        misses: list[torch.Tensor | float] = [
            unit * (gz.abs() @ weight.detach().abs()), unit * (gz.abs().T @ x.detach().abs()), 1e-5
        ]  # fmt: skip
        if residual is not None:
            found.append(gz if self.before else self.grad.double())
            misses.append(1e-5)
        half = 0.0 if self.dtype == torch.float32 else 2.0**-7  # outputs, and z where it fell beside FP64's
        of_all = [*found, *of_vectors]
        return of_all, [m + half * g.abs().max() + 1e-5 * g.abs().max() for m, g in
                        zip([*misses, *[0.0] * len(of_vectors)], of_all, strict=True)]  # fmt: skip


def _relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).abs().max() / b.double().abs().max().clamp_min(1e-30))


@pytest.mark.parametrize(
    ("norm", "activation"), [c for c in itertools.product(NORMS, ACTIVATIONS) if c[0] != "swish_rms" or c[1] is None]
)
def test_every_epilogue_against_fp64(isa, norm, activation) -> None:
    for i, (residual, dtype) in enumerate(itertools.product(RESIDUALS, (torch.float32, torch.bfloat16))):
        case = Case(SHAPES[i % 2], norm, activation, residual, dtype)
        found, (expected, misses) = case.found(), case.expected()
        for leaf, a, b, miss in zip(case.leaves, found, expected, misses, strict=True):
            assert a.dtype == leaf.dtype
            assert a.shape == leaf.shape
            assert bool(((a.double() - b).abs() <= miss).all()), (residual, dtype, list(leaf.shape))


@pytest.mark.parametrize("shape", [(1, 3, 1), (2, 1, 5), (1030, 70, 131), (70, 200, 96)])
def test_shapes(isa, shape) -> None:
    case = Case(shape, None, "silu", "after", torch.float32)
    for a, b, miss in zip(case.found(), *case.expected(), strict=True):
        assert bool(((a.double() - b).abs() <= miss).all())


@pytest.mark.parametrize("shape", [(0, 4, 6), (3, 0, 6), (3, 4, 0)])
def test_empty_matrices(isa, shape) -> None:
    m, n, k = shape
    x, weight, bias = (torch.randn(*s).requires_grad_() for s in ((m, k), (n, k), (n,)))
    y = ops.linear(x, pack_as(weight, "bf16"), bias, ops.Norm("layer"), "relu")
    found = torch.autograd.grad(y.sum(), (x, weight, bias))
    z = bias.expand(m, n)  # all there is
    exact = apply_epilogue(z, None, ops.Norm("layer"), "relu").sum()
    for g, expected in zip(
        found, (torch.zeros(m, k), torch.zeros(n, k), torch.autograd.grad(exact, bias)[0]), strict=True
    ):
        assert torch.allclose(g, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("format", "backward"),
    [("e4m3_row", "e4m3_row"), ("e4m3_weight_only", "e4m3_row"), ("int8_dynamic", "int8_dynamic"),
     ("e4m3_row", "bf16"), ("int8_dynamic", "bf16"), ("e4m3_block", "bf16")],
)  # fmt: skip
def test_classes_of_backward(isa, format, backward) -> None:
    case = Case((40, 67, 130), None, None, None, torch.float32, format)
    found, grad = case.found(backward), case.grad
    ran = ops.dispatch.counters()
    classes = ("bf16", "bf16") if backward == "bf16" else (backward, "bf16" if backward == "int8_dynamic" else backward)
    assert _relative(found[0], backward_checks.grad_input_reference(grad, case.w, classes[0])) < 1e-5
    assert _relative(found[1], backward_checks.grad_weight_reference(grad, case.x.detach(), classes[1])) < 1e-5
    assert torch.allclose(found[2], grad.sum(0), atol=1e-5)
    for op, numerics in zip(("linear_grad_input", "linear_grad_weight"), classes, strict=True):
        assert any(name.endswith(f".{op}.{numerics}") and count for name, count in ran.items())


def test_a_class_that_the_weight_does_not_have_is_refused() -> None:
    x = torch.randn(3, 6).requires_grad_()
    w = pack_as(torch.randn(4, 6), "bf16")
    with pytest.raises(ValueError, match="backward: 'e4m3_row' multiplies a weight of class e4m3_row or .*one is bf"):
        ops.linear(x, w, backward="e4m3_row")
    with pytest.raises(ValueError, match="backward: found 'fp8'"):
        ops.linear(x, w, backward="fp8")
    with pytest.raises(ValueError, match="backward: found 'fp8'"):
        nn.LinearNorm(6, 4, backward="fp8")
    assert nn.Linear(6, 4, backward="fp32").backward_numerics == "fp32"


def test_bitwise_the_same_twice_and_on_any_number_of_threads(isa) -> None:
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            case = Case((1200, 70, 131), "layer", "gelu", "before", torch.bfloat16, "e4m3_row")
            results.append([*case.found("e4m3_row"), *case.found("bf16")])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_rows_may_be_strided_and_gradients_expanded(isa) -> None:
    weight = _normal(6, 8, seed=1).requires_grad_()
    wide = _normal(4, 5, 16, seed=2).bfloat16().float().requires_grad_()
    y = ops.linear(wide[:, 1:, 3:11], pack_as(weight, "bf16"))
    g_wide, g_weight = torch.autograd.grad(y.sum(), (wide, weight))
    rounded = pack_as(weight.detach(), "bf16").dequantize()
    assert _relative(g_wide[:, 1:, 3:11], rounded.sum(0).expand(4, 4, 8)) < 2.0**-8
    assert not g_wide[:, :1].any()
    assert _relative(g_weight, wide.detach()[:, 1:, 3:11].sum((0, 1)).expand(6, 8)) < 1e-5


def test_nan_and_infinity_stay_where_they_are(isa) -> None:
    w = pack_as(_normal(5, 7, seed=1), "bf16")
    grad, x = _normal(40, 5, seed=2), _normal(40, 7, seed=3)
    grad[3, 2], grad[9, 1] = float("nan"), float("inf")
    for kernel in _core.kernels():
        if not kernel.supported or kernel.numerics.name != "bf16" or kernel.product != _core.DType.f32:
            continue
        if kernel.op == _core.Op.linear_grad_input:
            y = run_grad_input(kernel, grad, w, torch.float32)
            assert y[3].isnan().all()
            assert not y[9].isfinite().any()
            assert y[[i for i in range(40) if i not in (3, 9)]].isfinite().all()
        if kernel.op == _core.Op.linear_grad_weight:
            y = run_grad_weight(kernel, grad, x)
            assert y[2].isnan().all()
            assert not y[1].isfinite().any()
            assert y[[0, 3, 4]].isfinite().all()


def test_only_wanted_gradients_are_computed() -> None:
    x = torch.randn(4, 6)
    weight = torch.randn(3, 6)
    bias = torch.randn(3).requires_grad_()
    before = ops.dispatch.counters()
    (g,) = torch.autograd.grad(ops.linear(x, pack_as(weight, "bf16"), bias).sum(), bias)
    assert torch.equal(g, torch.full((3,), 4.0))
    ran = {name for name, calls in ops.dispatch.counters().items() if calls > before.get(name, 0)}
    assert not any("grad_input" in name or "grad_weight" in name for name in ran)


def test_kernels_that_work_together_get_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those are CUDA's; here CPU kernels stand in, so that every argument of the call is read."""
    w, grad, x = pack_as(_normal(5, 7, seed=1), "bf16"), _normal(40, 9, seed=2)[:, :5], _normal(40, 11, seed=3)[:, :7]
    apart = linear_backward._products(grad, x, w, ("bf16", "bf16"), True, True)
    of_x, of_weight = (
        next(k for k in _core.kernels() if k.op == op and k.supported and k.library == "octavo"
             and k.numerics.name == "bf16")
        for op in (_core.Op.linear_grad_input, _core.Op.linear_grad_weight)
    )  # fmt: skip
    calls = []

    def both(_, __, g, m, g_stride, g_type, weight, g_x, g_x_type, x, x_stride, x_type, g_weight, stream):
        calls.append(m)
        _core.linear_grad_input(of_x, g, m, g_stride, g_type, weight, g_x, g_x_type, stream)
        _core.linear_grad_weight(of_weight, g, g_stride, g_type, x, x_stride, x_type, m, 5, 7, g_weight, stream)

    pair = SimpleNamespace(works_with=lambda other: True)
    monkeypatch.setattr(linear_backward, "_kernel_for", lambda *_: pair)
    monkeypatch.setattr(_core, "linear_gradients", both)
    together = linear_backward._products(grad, x, w, ("bf16", "bf16"), True, True)
    assert calls == [40]
    for one, other in zip(apart, together, strict=True):
        assert _relative(one, other) < 1e-6


def test_kernels_that_do_not_work_together_are_refused() -> None:
    kernel = _core.kernel("cpu.generic.quantize")
    assert not kernel.works_with(kernel)
    w = pack_as(_normal(5, 7, seed=1), "bf16")
    with pytest.raises(ValueError, match=r"linear_gradients: cpu\.generic\.quantize is no such kernel"):
        _core.linear_gradients(kernel, kernel, 0, 0, 5, 0, w.core(), 0, 0, 0, 7, 0, 0)


def test_a_weight_changed_after_the_forward_is_noticed() -> None:
    w = pack_as(torch.randn(4, 6), "bf16")
    y = ops.linear(torch.randn(3, 6).requires_grad_(), w)
    w.codes.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_compiled_training_equals_eager() -> None:
    layer = nn.LinearNorm(12, 8)
    layer.numerics = "bf16"
    x = _normal(5, 12, seed=1).requires_grad_()
    leaves = [x, *layer.parameters()]
    eager = torch.autograd.grad(layer(x).square().sum(), leaves)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    layer.packed()
    for a, b in zip(torch.autograd.grad(compiled(x).square().sum(), leaves), eager, strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-6)


def test_changed_scales_are_seen_by_the_gradients() -> None:
    w = ops.pack_weight(torch.randn(8, 12), "int8")
    x = torch.randn(3, 12, requires_grad=True)
    (before,) = torch.autograd.grad(ops.linear(x, w).sum(), x)
    w.scale.mul_(2)
    (after,) = torch.autograd.grad(ops.linear(x, w).sum(), x)
    assert torch.allclose(after, 2 * before, rtol=1e-2, atol=1e-3)


def test_weights_of_traced_calls_die_with_their_codes() -> None:
    from octavo.ops.linear_operator import _weights

    kept = len(_weights)
    for _ in range(3):
        w = ops.pack_weight(torch.randn(8, 12), "bf16")
        torch.ops.octavo.linear(
            torch.randn(2, 12), w.codes, None, "bf16", True, *[None] * 4, 1e-5, 256, None, None, False, None
        )
        del w
    gc.collect()
    assert len(_weights) == kept


@pytest.mark.parametrize("numerics", ["e4m3_row", "int8_dynamic"])
def test_gradients_are_rounded_as_the_quantizers_round(isa, numerics) -> None:
    n = 96
    w, g = pack_as(torch.eye(n), numerics), torch.Generator().manual_seed(4)
    grad = torch.randn(50, n, generator=g) * torch.exp2(torch.randint(-20, 1, (50, n), generator=g))
    expected = backward_checks.grad_input_reference(grad, w, numerics)
    for kernel in _core.kernels():
        if kernel.op == _core.Op.linear_grad_input and kernel.numerics.name == numerics and kernel.supported:
            y = run_grad_input(kernel, grad, w, torch.float32).double()
            assert bool(((y - expected).abs() <= 1e-5 * expected.abs()).all()), kernel.name
