"""octavo::linear in graphs, and its gradients."""

import pytest
import torch

from octavo import ops
from octavo.ops.packing import pack_as

CLASSES = ("bf16", "e4m3_row", "e4m3_weight_only", "int8_dynamic")


def _leaf(*size: int, seed: int) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).requires_grad_()


@pytest.mark.parametrize("numerics", CLASSES)
@pytest.mark.parametrize("before", [False, True])
def test_gradients_pass_straight_through_the_rounding(numerics, before) -> None:
    x, weight, bias, residual = _leaf(5, 12, seed=1), _leaf(9, 12, seed=2), _leaf(9, seed=3), _leaf(5, 9, seed=4)
    norm = ops.Norm("layer", _leaf(9, seed=5), _leaf(9, seed=6))
    leaves = (x, weight, bias, norm.weight, norm.bias, residual)
    w = pack_as(weight, numerics)
    y = ops.linear(x, w, bias, norm, "silu", residual, residual_before_norm=before, backward="fp32")
    seed = torch.randn(5, 9, generator=torch.Generator().manual_seed(7))
    found = torch.autograd.grad(y, leaves, seed)

    dequantized = w.dequantize().double().requires_grad_()
    twins = [t.detach().double().requires_grad_() for t in leaves if t is not None]
    z = twins[0] @ dequantized.T
    with torch.no_grad():
        rounded = ops.linear(x, w).double() - z  # of x: gradients are taken where the forward was
    z = z + rounded

    normal = torch.nn.functional.layer_norm(
        z + twins[2] + (twins[5] if before else 0), (9,), twins[3], twins[4], norm.eps
    )
    exact = torch.nn.functional.silu(normal) + (0 if before else twins[5])

    expected = torch.autograd.grad(exact, [twins[0], dequantized, *twins[2:]], seed.double())
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.float32
        assert torch.allclose(a.double(), b, rtol=1e-4, atol=1e-5)


def test_gradients_of_swish_rms_norm() -> None:
    x, weight, scale = _leaf(5, 12, seed=1), _leaf(9, 12, seed=2), _leaf(9, seed=5)
    w = pack_as(weight, "bf16")
    y = ops.linear(x, w, norm=ops.Norm("swish_rms", scale), backward="fp32")
    seed = torch.randn(5, 9, generator=torch.Generator().manual_seed(7))
    found = torch.autograd.grad(y, (x, weight, scale), seed)
    twins = [t.detach().double().requires_grad_() for t in (x, w.dequantize(), scale)]
    z = twins[0] @ twins[1].T
    with torch.no_grad():
        rounded = ops.linear(x, w).double() - z
    z = z + rounded
    r = z / (z.square().mean(-1, keepdim=True) + 1e-5).sqrt() * twins[2]
    for a, b in zip(found, torch.autograd.grad(r * r.sigmoid(), twins, seed.double()), strict=True):
        assert torch.allclose(a.double(), b, rtol=1e-4, atol=1e-5)


def test_only_what_is_needed_gets_a_gradient() -> None:
    weight, x = _leaf(4, 6, seed=1), torch.randn(3, 6).bfloat16().float()
    ops.linear(x, pack_as(weight, "bf16")).sum().backward()
    assert weight.grad is not None
    assert torch.allclose(weight.grad, x.sum(0).expand(4, 6), atol=1e-5)
    with torch.no_grad():
        assert not ops.linear(x, pack_as(weight, "bf16")).requires_grad


def test_no_out_with_gradients() -> None:
    with pytest.raises(ValueError, match="out: cannot be combined with gradients"):
        ops.linear(_leaf(3, 6, seed=0), pack_as(torch.randn(4, 6), "bf16"), out=torch.empty(3, 4))


@pytest.mark.parametrize("numerics", CLASSES)
def test_operator_is_well_formed(numerics) -> None:
    w = pack_as(torch.randn(8, 12), numerics)
    x, bias, ones, residual = torch.randn(2, 3, 12), torch.randn(8), torch.ones(8), torch.randn(2, 3, 8)
    arguments = (x, w.codes, w.scale, numerics, True, bias, "layer", ones, ones, 1e-5, 256, "relu", residual, False)
    # torch's schema check multiplies what it compares, which it cannot do in FP8
    schema = ("test_schema",) if numerics in ("bf16", "int8_dynamic") else ()
    tests = (*schema, "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.octavo.linear.default, (*arguments, torch.bfloat16), test_utils=tests)
    torch.library.opcheck(torch.ops.octavo.linear_recorded.default, (*arguments, torch.bfloat16), test_utils=tests)
    for backward in (("fp32", "fp32"), ("bf16", "bf16"), ("fp32", "bf16")):
        torch.library.opcheck(
            torch.ops.octavo.linear_backward.default,
            (*arguments, torch.randn(2, 3, 8), torch.randn(2, 3, 8), *backward, [True, False, True, True, False, True]),
            test_utils=tests,
        )


@pytest.mark.parametrize("numerics", CLASSES)
def test_compiled_graph_holds_one_node_and_equals_eager(numerics) -> None:
    w = pack_as(torch.randn(8, 12), numerics)
    norm = ops.Norm("rms", torch.rand(8))
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: object) -> object:
        graphs.append(graph)
        return graph.forward

    def f(x: torch.Tensor) -> torch.Tensor:
        return ops.linear(x, w, norm=norm, activation="gelu") + 1

    x = torch.randn(5, 12)
    compiled = torch.compile(f, backend=backend, fullgraph=True, dynamic=True)
    assert torch.equal(compiled(x), f(x))
    assert torch.equal(compiled(x[:3]), f(x[:3]))
    nodes = [node for node in graphs[0].graph.nodes if node.op == "call_function" and "octavo" in str(node.target)]
    assert len(graphs) == 1
    assert len(nodes) == 1
