"""torch.compile around torch.func's transforms, and weights that a graph packs itself."""

from collections.abc import Callable, Iterator

import pytest
import torch

from octavo import nn, ops
from octavo.exfm import scale_gradient
from octavo.ops.packing import pack_as

CLASSES = ("bf16", "e4m3_row", "e4m3_weight_only", "int8_dynamic")
GENERATOR = torch.Generator().manual_seed(11)
W = torch.randn(16, 16, generator=GENERATOR) / 4
NORM = ops.Norm("layer", torch.rand(16, generator=GENERATOR), torch.randn(16, generator=GENERATOR))
OTHER = torch.randn(6, 3, 16, generator=GENERATOR)


def _linear(x: torch.Tensor, numerics: str = "bf16", **options: object) -> torch.Tensor:
    return ops.linear(x, pack_as(W, numerics), backward="fp32", **options)


FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "pairwise_dots": lambda x: ops.pairwise_dots(x, pairs="lower").square(),
    "pairwise_dots of y": lambda x: ops.pairwise_dots(OTHER, x).square(),
    "add_norm": lambda x: ops.add_norm([x], x, NORM) ** 3,
    "linear": lambda x: _linear(x, norm=NORM, activation="silu"),
    "residual": lambda x: _linear(x * 2, "int8_dynamic", residual=x, residual_before_norm=True, norm=NORM).square(),
    "late residual": lambda x: _linear(x * 2, residual=x, activation="silu").square(),
    "rows of a residual": lambda x: _linear(
        OTHER[:, 0], residual=x[0], residual_rows=torch.tensor([4, 0, 0, 2, 1, 4]), activation="gelu"
    ).square(),
    "bias": lambda x: _linear(W, bias=x[0, 0]).square(),
    "norm": lambda x: _linear(W, norm=ops.Norm("layer", x[0, 0], x[1, 0])).square(),
    "weight": lambda x: ops.linear(OTHER, ops.pack_weight(x[0]), backward="fp32").square(),
    "scaled gradient": lambda x: scale_gradient(x, 3.0).square(),
}


@pytest.fixture(autouse=True)
def _fresh_graphs() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _equal(found: torch.Tensor, expected: torch.Tensor) -> bool:
    assert expected.abs().max() > 0.01
    return torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def _compiled(f: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    return torch.compile(f, fullgraph=True, backend="aot_eager")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_compiled_gradients_of_functions_are_those_of_backward(name: str) -> None:
    """Dynamo believes that torch.func.grad's argument requires no gradient."""
    x = torch.randn(6, 5, 16, generator=GENERATOR)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(FUNCTIONS[name](leaf).sum(), leaf)
    assert _equal(_compiled(torch.func.grad(lambda x: FUNCTIONS[name](x).sum()))(x), expected)


def test_grouped_layers_too() -> None:
    x, w = torch.randn(6, 5, 16, generator=GENERATOR), pack_as(W, "bf16")
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(_linear(leaf * 2).square().sum(), leaf)
    grouped = torch.func.grad(lambda x: ops.grouped_linear([x, x * 2], [w, w])[1].square().sum())
    assert _equal(_compiled(grouped)(x), expected)


@pytest.mark.parametrize("name", ["pairwise_dots", "add_norm", "linear", "late residual", "weight"])
def test_gradients_of_gradients_in_a_graph(name: str) -> None:
    x = torch.randn(6, 5, 16, generator=GENERATOR) if name != "weight" else torch.randn(1, 16, 16, generator=GENERATOR)
    leaf = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(FUNCTIONS[name](leaf).sum(), leaf, create_graph=True)
    (expected,) = torch.autograd.grad(first.square().sum(), leaf)
    inner = torch.func.grad(lambda x: FUNCTIONS[name](x).sum())
    assert _equal(_compiled(torch.func.grad(lambda x: inner(x).square().sum()))(x), expected)


@pytest.mark.parametrize("classes", ["fp32", ("bf16", "bf16"), ("fp32", "bf16"), ("int8_dynamic", "fp32")])
@pytest.mark.parametrize("numerics", ["fp32", "bf16"])
def test_modules_under_a_plan(numerics: str, classes: object) -> None:
    layer, x = nn.Linear(16, 16), torch.randn(5, 16, generator=GENERATOR)
    layer.numerics, layer.backward_numerics = numerics, classes
    exact = layer.weight if numerics == "fp32" else layer.weight.bfloat16().float()
    leaf = x.clone().requires_grad_()
    rounded = leaf if numerics == "fp32" else leaf + (leaf.bfloat16() - leaf).detach()
    (expected,) = torch.autograd.grad((rounded @ exact.T + layer.bias).square().sum(), leaf)
    assert _equal(_compiled(torch.func.grad(lambda x: layer(x).square().sum()))(x), expected)


@pytest.mark.parametrize("numerics", ["fp32", "bf16", "int8_dynamic"])
def test_parameters_of_a_module(numerics: str) -> None:
    layer, x = nn.LinearNorm(16, 16), torch.randn(5, 16, generator=GENERATOR)
    layer.numerics, layer.backward_numerics = numerics, "fp32"
    parameters = {name: p.detach() for name, p in layer.named_parameters()}
    expected = torch.autograd.grad((layer(x) ** 3).sum(), list(layer.parameters()))

    def loss(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        return (torch.func.functional_call(layer, parameters, (x,)) ** 3).sum()

    for a, b in zip(_compiled(torch.func.grad(loss))(parameters).values(), expected, strict=True):
        assert _equal(a, b)


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


@pytest.mark.parametrize(
    ("rows", "error"), [([0, 1, -1, 2, 4], IndexError), ([0, 1], ValueError), ([0.0, 1, 2, 3, 4], TypeError)]
)
def test_rows_are_checked_in_transforms_too(rows: list[int], error: type[Exception]) -> None:
    x, residual = torch.randn(5, 16, generator=GENERATOR), torch.randn(5, 16, generator=GENERATOR)
    f = torch.func.grad(lambda x: _linear(x, residual=residual, residual_rows=torch.tensor(rows)).square().sum())
    with pytest.raises((error, torch._dynamo.exc.Unsupported), match="residual_rows|Observed exception"):
        _compiled(f)(x)


def test_options_are_checked_in_transforms_too() -> None:
    x, w = torch.randn(5, 16, generator=GENERATOR), pack_as(W, "int8_dynamic")
    q = ops.quantize(x, "int8")
    for f in (
        lambda b: ops.linear(q, w, bias=b).square().sum(),  # eight-bit rows record no gradients
        lambda b: ops.linear(x, w, bias=b, backward="foo").sum(),
    ):
        with pytest.raises(torch._dynamo.exc.Unsupported, match="Observed exception"):
            _compiled(torch.func.grad(f))(torch.zeros(16))


@pytest.mark.filterwarnings("ignore:There is a performance drop because we have not yet implemented the batching rule")
def test_autocast_leaves_the_values_of_a_class() -> None:
    x = torch.randn(3, 2, 4, 32, generator=GENERATOR)
    expected = torch.stack([ops.pairwise_dots(one) for one in x])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(_compiled(torch.func.vmap(ops.pairwise_dots))(x), expected, rtol=1e-5, atol=1e-5)


def test_constant_weights_of_bags_pass() -> None:
    bags = nn.EmbeddingBags([nn.Table("t", rows=10, dim=4)]).eval()
    values, offsets, weights = torch.tensor([1, 5, 2]), torch.tensor([0, 2, 3]), torch.rand(3, generator=GENERATOR)

    def loss(dense: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return (bags(values, offsets, weights) @ dense).square().sum()

    dense = torch.randn(4, generator=GENERATOR)
    pooled = bags(values, offsets, weights)
    assert _equal(
        torch.compile(torch.func.grad(loss), backend="aot_eager")(dense, weights), 2 * pooled.T @ (pooled @ dense)
    )
    with pytest.raises(RuntimeError):  # torch's or octavo's, as the graph breaks
        torch.compile(torch.func.grad(loss, argnums=1), backend="aot_eager")(dense, weights)


def test_a_scaled_gradient_leaves_infinities() -> None:
    x = torch.tensor([1.0, float("-inf"), 3.0])
    assert torch.equal(_compiled(torch.func.vmap(lambda x: scale_gradient(x, 0.5)))(x), x)


def test_add_norm_without_grad_mode() -> None:
    x = torch.randn(3, 4, 5, 16, generator=GENERATOR)
    with torch.no_grad():
        found = _compiled(torch.func.vmap(lambda x: ops.add_norm([x], x, NORM)))(x)
    assert _equal(found, torch.stack([ops.add_norm([one], one, NORM) for one in x]))
