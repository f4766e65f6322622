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
    leaves = [t for t in (x, weight, bias, residual, *vectors) if t is not None]
    w = pack_as(weight, numerics)
    normal = None if norm is None else ops.Norm(norm, *vectors, block=4)
    y = ops.linear(x, w, bias, normal, "silu", residual, residual_before_norm=before, backward="fp32")
    found = torch.autograd.grad(_penalty(y, x, seed), leaves, allow_unused=True)

    twins = {id(t): t.detach().double().requires_grad_() for t in leaves}
    own = [None if t is None else twins[id(t)] for t in (x, weight, bias, residual, *vectors)]
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


def test_a_module_that_is_its_own_residual() -> None:
    layer, x = nn.Linear(8, 8), _leaf(5, 8)
    layer.numerics = "bf16"
    y = ops.linear(x, layer.packed(), residual=x, activation="silu", residual_before_norm=True)
    (grad,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    (plain,) = torch.autograd.grad(ops.linear(x, layer.packed(), residual=x, activation="silu",
                                              residual_before_norm=True, backward="fp32").sum(), x)  # fmt: skip
    assert torch.allclose(grad, plain, rtol=1e-3, atol=1e-3)


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


def test_a_residual_shared_by_rows() -> None:
    x, weight, residual, rows = _leaf(5, 6), _leaf(4, 6), _leaf(3, 4), torch.tensor([2, 0, 2, 2, 1])
    seed, found = torch.randn(5, 4, generator=GENERATOR), []
    for shared, named in ((residual, rows), (residual[rows], None)):
        y = ops.linear(x, pack_as(weight, "bf16"), None, ops.Norm("rms"), "silu", shared, residual_before_norm=True,
                       residual_rows=named)  # fmt: skip
        found.append(torch.autograd.grad(_penalty(y, x, seed), (x, weight, residual)))
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-5)
