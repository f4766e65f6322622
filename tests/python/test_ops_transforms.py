"""torch.compile around torch.func's transforms, and weights that a graph packs itself."""

from collections.abc import Callable, Iterator

import pytest
import torch

from octavo import nn, ops
from octavo.ops.packing import pack_as

CLASSES = ("bf16", "e4m3_row", "e4m3_weight_only", "int8_dynamic")
GENERATOR = torch.Generator().manual_seed(11)
W = torch.randn(16, 16, generator=GENERATOR) / 4
NORM = ops.Norm("layer", torch.rand(16, generator=GENERATOR), torch.randn(16, generator=GENERATOR))
OTHER = torch.randn(6, 3, 16, generator=GENERATOR)
FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "pairwise_dots": lambda x: ops.pairwise_dots(x, pairs="lower").square(),
    "pairwise_dots of y": lambda x: ops.pairwise_dots(OTHER, x).square(),
    "add_norm": lambda x: ops.add_norm([x], x, NORM) ** 3,
    "linear": lambda x: ops.linear(x, pack_as(W, "bf16"), norm=NORM, activation="silu"),
    "residual": lambda x: ops.linear(
        x * 2, pack_as(W, "int8_dynamic"), residual=x, residual_before_norm=True, norm=NORM
    ),
    "bias": lambda x: ops.linear(W, pack_as(W, "bf16"), bias=x[0, 0]).square(),
    "norm": lambda x: ops.linear(W, pack_as(W, "bf16"), norm=ops.Norm("layer", x[0, 0], x[1, 0])).square(),
    "weight": lambda x: ops.linear(OTHER, ops.pack_weight(x[0])).square(),
    "grouped": lambda x: ops.grouped_linear([x, x * 2], [pack_as(W, "bf16")] * 2)[1].square(),
}


@pytest.fixture(autouse=True)
def _fresh_graphs() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_compiled_gradients_of_functions_are_those_of_backward(name: str) -> None:
    """Dynamo believes that torch.func.grad's argument requires no gradient."""
    x = torch.randn(6, 5, 16, generator=GENERATOR)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(FUNCTIONS[name](leaf).sum(), leaf)
    compiled = torch.compile(torch.func.grad(lambda x: FUNCTIONS[name](x).sum()), fullgraph=True, backend="aot_eager")
    assert expected.abs().max() > 0.01
    assert torch.allclose(compiled(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:There is a performance drop because we have not yet implemented the batching rule")
@pytest.mark.parametrize("name", ["pairwise_dots", "add_norm", "linear", "weight"])
def test_compiled_vmap_is_a_loop(name: str) -> None:
    x = torch.randn(3, 6, 16, 16, generator=GENERATOR)
    expected = torch.stack([FUNCTIONS[name](one) for one in x])
    compiled = torch.compile(torch.func.vmap(FUNCTIONS[name]), fullgraph=True)
    assert torch.allclose(compiled(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("numerics", CLASSES)
def test_weights_packed_in_a_graph_are_not_taken_for_each_other(numerics: str) -> None:
    """Inductor writes the codes of a second weight over those of the first, in the same tensor, at the same version."""
    weights = [torch.randn(64, 64, generator=GENERATOR, requires_grad=True) for _ in range(3)]

    def chain(x: torch.Tensor) -> torch.Tensor:
        for weight in weights:
            x = ops.linear(x, pack_as(weight, numerics), norm=ops.Norm("rms"))
        return x

    x = torch.randn(5, 64, generator=GENERATOR)
    with torch.no_grad():
        assert torch.equal(torch.compile(chain, fullgraph=True)(x), chain(x))


@pytest.mark.parametrize("numerics", CLASSES)
def test_modules_evaluated_in_a_graph(numerics: str) -> None:
    layers = torch.nn.Sequential(*[nn.LinearNorm(32, 32) for _ in range(3)])
    for layer in layers:
        layer.numerics = numerics
    x = torch.randn(5, 32, generator=GENERATOR)
    with torch.no_grad():
        assert torch.equal(torch.compile(layers, fullgraph=True)(x), layers(x))
