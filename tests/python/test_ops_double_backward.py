"""Gradients of gradients (``create_graph=True``), as a gradient penalty needs them."""

import pytest
import torch

from octavo import nn, ops
from octavo.ops.packing import pack_as

GENERATOR = torch.Generator().manual_seed(5)


def _leaf(*size: int) -> torch.Tensor:
    return torch.randn(*size, generator=GENERATOR).requires_grad_()


def _penalty(y: torch.Tensor, x: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
    """The loss and the size of its gradient; linear behind y, so that nothing but the layer makes the second order."""
    (grad,) = torch.autograd.grad((y * seed).sum(), x, create_graph=True)
    return grad.square().sum() + (y * seed).sum()


@pytest.mark.parametrize("norm", [None, "layer", "rms", "block"])
@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("numerics", ["bf16", "e4m3_row", "int8_dynamic"])
def test_a_layer(numerics: str, norm: str | None, before: bool) -> None:
    x, weight, bias, residual = _leaf(7, 12), _leaf(9, 12), _leaf(9), _leaf(7, 9)
    vectors = {"layer": (_leaf(9), _leaf(9)), "rms": (_leaf(9), None)}.get(norm or "", (None, None))
    seed = torch.randn(7, 9, generator=GENERATOR)
    if before:  # one that trains is refused
        residual = residual.detach()
    leaves = [t for t in (x, weight, bias, residual, *vectors) if t is not None and t.requires_grad]
    w = pack_as(weight, numerics)
    normal = None if norm is None else ops.Norm(norm, *vectors, block=4)
    y = ops.linear(x, w, bias, normal, "silu", residual, residual_before_norm=before, backward="fp32")
    found = torch.autograd.grad(_penalty(y, x, seed), leaves, allow_unused=True)

    twins = {id(t): t.detach().double().requires_grad_() for t in leaves}
    own = [None if t is None else twins.get(id(t), t.double()) for t in (x, weight, bias, residual, *vectors)]
    exact_weight = own[1] + (w.dequantize().double() - own[1]).detach()
    z = own[0] @ exact_weight.T + own[2] + (own[3] if before else 0)
    with torch.no_grad():
        seen = ops.linear(x, w, bias, residual=residual if before else None).double() - z
    z = z + seen
    if norm == "layer":
        z = torch.nn.functional.layer_norm(z, (9,), own[4], own[5])
    elif norm == "rms":
        z = torch.nn.functional.rms_norm(z, (9,), own[4], 1e-5)
    elif norm == "block":
        z = torch.cat([torch.nn.functional.rms_norm(part, (part.shape[1],), eps=1e-5) for part in z.split(4, 1)], 1)
    exact = torch.nn.functional.silu(z) + (0 if before else own[3])
    expected = torch.autograd.grad(_penalty(exact, own[0], seed.double()), list(twins.values()), allow_unused=True)
    for t, a, b in zip(leaves, found, expected, strict=True):
        assert a.dtype == t.dtype
        assert torch.allclose(a.double(), b, rtol=1e-4, atol=1e-4 * float(b.abs().max())), (
            t.shape,
            (a - b).abs().max(),
        )


def test_a_linear_layer_whose_gradient_is_linear_in_its_weight() -> None:
    """Nothing behind it makes the gradient of y require one: second derivatives were lost without a word."""
    x, weight = _leaf(3, 6), _leaf(4, 6)
    (grad,) = torch.autograd.grad(ops.linear(x, pack_as(weight, "bf16")).sum(), x, create_graph=True)
    (found,) = torch.autograd.grad(grad.square().sum(), weight)
    assert torch.allclose(found, (6 * weight.bfloat16().float().sum(0)).expand(4, 6), rtol=1e-4, atol=1e-4)


def test_a_layer_that_is_its_own_residual() -> None:
    x, weight, seed = _leaf(5, 8), _leaf(8, 8), torch.randn(5, 8, generator=GENERATOR)
    found = []
    for residual in (x, x.clone()):
        y = ops.linear(x, pack_as(weight, "bf16"), residual=residual, activation="silu", backward="fp32")
        found.append(torch.autograd.grad(_penalty(y, x, seed), (x, weight)))
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-5)


def test_a_residual_before_the_norm_that_trains_is_refused_when_it_matters() -> None:
    x, weight, residual = _leaf(5, 8), _leaf(8, 8), _leaf(5, 8)
    w = pack_as(weight, "bf16")
    y = ops.linear(x, w, norm=ops.Norm("rms"), residual=residual, residual_before_norm=True)
    found = torch.autograd.grad(y.square().sum(), (x, weight, residual), create_graph=True, retain_graph=True)
    for a, b in zip(found, torch.autograd.grad(y.square().sum(), (x, weight, residual)), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(RuntimeError, match="ops.linear: no gradients of gradients with a residual before the norm"):
        found[0].sum().backward()


def test_a_residual_may_be_overwritten_and_infinite() -> None:
    x, residual = _leaf(5, 8), torch.zeros(5, 8)
    residual[:, 3] = float("-inf")
    y = ops.linear(x, pack_as(_leaf(8, 8), "bf16"), None, None, "sigmoid", residual, residual_before_norm=True)
    residual.zero_()
    (grad,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    assert grad.isfinite().all()


def test_autocast_does_not_round() -> None:
    x = _leaf(4, 5, 8)
    y = ops.pairwise_dots(x)
    (plain,) = torch.autograd.grad(y.square().sum(), x, retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    assert torch.allclose(found, plain, rtol=1e-5, atol=1e-5)


def test_the_weight_is_the_forwards() -> None:
    layer, x = nn.Linear(8, 8), _leaf(5, 8)
    layer.numerics, layer.backward_numerics = "bf16", ("int8_dynamic", "bf16")
    (found,) = torch.autograd.grad(layer(x).sum(), x, create_graph=True)
    assert torch.allclose(found, layer.weight.bfloat16().float().sum(0).expand(5, 8), atol=1e-6)


def test_weights_of_bags_are_refused() -> None:
    bags = nn.EmbeddingBags([nn.Table("t", rows=10, dim=4)]).eval()
    weights = torch.rand(3, generator=GENERATOR).requires_grad_()
    y = bags(torch.tensor([1, 5, 2]), torch.tensor([0, 2, 3]), weights)
    (grad,) = torch.autograd.grad(y.sum(), weights, create_graph=True)
    with pytest.raises(RuntimeError, match=r"nn.EmbeddingBags: its weights have no gradients of gradients"):
        grad.sum().backward()


@pytest.mark.parametrize("pairs", ["all", "lower", "upper"])
@pytest.mark.parametrize("numerics", ["fp32", "bf16"])
@pytest.mark.parametrize("two", [False, True])
def test_products_of_pairs(pairs: str, numerics: str, two: bool) -> None:
    if two and pairs != "all":
        pytest.skip("a triangle is of x x^T")
    x, other = _leaf(4, 5, 8), _leaf(4, 6, 8)
    leaves = [x, other] if two else [x]
    y = ops.pairwise_dots(x, other if two else None, pairs=pairs, numerics=numerics)
    seed = torch.randint(-9, 10, y.shape, generator=GENERATOR).float()  # which the kernels of gradients round to BF16
    found = torch.autograd.grad(_penalty(y, x, seed), leaves)

    twins = [t.detach().double().requires_grad_() for t in leaves]
    rounded = [t + (t.bfloat16().double() - t).detach() if numerics == "bf16" else t for t in twins]
    products = rounded[0] @ rounded[-1].mT
    if pairs != "all":
        rows, columns = (torch.tril_indices(5, 5, -1) if pairs == "lower" else torch.triu_indices(5, 5, 1)).unbind()
        products = products[:, rows, columns]
    expected = torch.autograd.grad(_penalty(products, twins[0], seed.double()), twins)
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a.double(), b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


@pytest.mark.parametrize("rows", [[2, 0, 2, 2, 1], []])
def test_a_residual_shared_by_rows(rows: list[int]) -> None:
    m = len(rows)
    x, weight, residual, named = _leaf(m, 6), _leaf(4, 6), _leaf(3, 4), torch.tensor(rows, dtype=torch.int64)
    seed, found = torch.randn(m, 4, generator=GENERATOR), []
    for shared, of in ((residual, named), (residual[named], None)):
        y = ops.linear(x, pack_as(weight, "bf16"), None, ops.Norm("rms"), "silu", shared, residual_rows=of)
        found.append(torch.autograd.grad(_penalty(y, x, seed), (x, weight, residual)))
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-5)
