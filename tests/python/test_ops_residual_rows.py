"""ops.linear(residual_rows=): rows of a residual shared by rows of the output, against the same rows repeated."""

import pytest
import torch

from octavo import ops
from octavo.ops import Norm
from octavo.ops.residual_rows import gathered

M, N, K, R = 50, 24, 17, 6
FORMATS = ["bf16", "e4m3", "int8"]


def _normal(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


X, WEIGHT, SHARED = _normal(M, K), _normal(N, K, seed=1), _normal(R, N, seed=2)
ROWS = torch.randint(0, R, (M,), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("before", [False, True])
def test_as_rows_repeated(format, before) -> None:
    w = ops.pack_weight(WEIGHT, format)
    for norm in (None, Norm("layer"), Norm("block", block=16)):
        for dtype in (torch.float32, torch.bfloat16):
            arguments = dict(norm=norm, activation="relu", residual_before_norm=before, out_dtype=dtype)
            expected = ops.linear(X, w, residual=SHARED[ROWS].to(dtype), **arguments)
            found = ops.linear(X, w, residual=SHARED.to(dtype), residual_rows=ROWS, **arguments)
            assert torch.equal(found, expected)


def test_any_leading_shape_stride_and_output() -> None:
    w = ops.pack_weight(WEIGHT, "bf16")
    wide = torch.full((M, 3 * N), -7.0)
    out = wide[:, N : 2 * N]
    expected = ops.linear(X, w, residual=SHARED[ROWS])
    assert ops.linear(X, w, residual=_normal(R, 2, N)[:, 1].copy_(SHARED), residual_rows=ROWS, out=out) is out
    assert torch.equal(out, expected)
    assert bool((wide[:, :N] == -7).all())
    cube = ops.linear(X.view(5, 10, K), w, residual=SHARED, residual_rows=ROWS.view(5, 10))
    assert torch.equal(cube, expected.view(5, 10, N))
    codes = ops.linear(X, w, residual=SHARED, residual_rows=ROWS, out_format="e4m3")
    assert torch.equal(codes.scale, ops.linear(X, w, residual=SHARED[ROWS], out_format="e4m3").scale)
    assert ops.linear(X[:0], w, residual=SHARED[:0], residual_rows=ROWS[:0]).shape == (0, N)


def test_a_rankers_first_layer_in_halves() -> None:
    """W [x_c, x_u] + b with the users' half once per user."""
    users, bias = _normal(R, 9, seed=4), _normal(N, seed=5)
    whole = _normal(N, K + 9, seed=6)
    together = torch.nn.functional.linear(torch.cat([X, users[ROWS]], 1).double(), whole.double(), bias.double())
    half = ops.linear(users, ops.pack_weight(whole[:, K:], "bf16"), bias)
    y = ops.linear(
        X, ops.pack_weight(whole[:, :K], "bf16"), activation="relu", residual=half, residual_rows=ROWS,
        residual_before_norm=True,
    )  # fmt: skip
    assert float((y - together.relu()).abs().max() / together.abs().max()) < 2**-7


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients(dtype) -> None:
    leaves = [X.clone().requires_grad_(), SHARED.clone().to(dtype).requires_grad_()]
    w = ops.pack_weight(WEIGHT, "bf16")
    grad = _normal(M, N, seed=7)
    ops.linear(
        leaves[0], w, norm=Norm("rms"), residual=leaves[1], residual_rows=ROWS, residual_before_norm=True
    ).backward(grad)
    x, repeated = X.clone().requires_grad_(), SHARED.to(dtype)[ROWS].requires_grad_()
    ops.linear(x, w, norm=Norm("rms"), residual=repeated, residual_before_norm=True).backward(grad)
    assert torch.equal(leaves[0].grad, x.grad)
    expected = torch.zeros(R, N, dtype=torch.float64).index_add_(0, ROWS, repeated.grad.double())
    assert leaves[1].grad.dtype == dtype
    tolerance = 1e-6 if dtype == torch.float32 else 2**-8
    assert float((leaves[1].grad - expected).abs().max() / expected.abs().max()) <= tolerance


def test_gradient_of_a_row_that_nobody_names() -> None:
    shared = SHARED.clone().requires_grad_()
    gathered(shared, torch.tensor([[0, 2], [2, 2]])).sum().backward()
    assert shared.grad.sum(1).tolist() == [N, 0, 3 * N, 0, 0, 0]


def test_traced() -> None:
    w = ops.pack_weight(WEIGHT, "e4m3")

    def layer(x: torch.Tensor, shared: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return ops.linear(x, w, activation="silu", residual=shared, residual_rows=rows)

    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(X, SHARED, ROWS), layer(X, SHARED, ROWS))
    shared, again = SHARED.clone().requires_grad_(), SHARED.clone().requires_grad_()
    compiled(X, shared, ROWS).sum().backward()
    layer(X, again, ROWS).sum().backward()
    assert torch.equal(shared.grad, again.grad)
    torch.library.opcheck(torch.ops.octavo.residual_rows.default, (SHARED, ROWS))


W = ops.pack_weight(WEIGHT, "bf16")
BAD = [
    (dict(residual=None), ValueError, "residual_rows: says which rows of residual to add; give residual too"),
    (dict(residual=SHARED[:, 1:]), ValueError, r"residual: shape \[6, 23\]; expected \[R, 24\] with residual_rows"),
    (dict(residual=SHARED[0]), ValueError, r"residual: expected 2 dimension\(s\), found shape \[24\]"),
    (dict(residual=SHARED[:0]), ValueError, "residual: has no rows, but residual_rows names some"),
    (dict(residual_rows=ROWS.int()), TypeError, "residual_rows: expected int64, found int32"),
    (dict(residual_rows=ROWS[1:]), ValueError, r"residual_rows: shape \[49\]; expected \[50\], one for each row of x"),
    (dict(residual_rows=[1]), TypeError, "residual_rows: expected a torch.Tensor, found list"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
@pytest.mark.parametrize("records", [False, True])
def test_bad_arguments_name_themselves(change, error, message, records) -> None:
    x = X.clone().requires_grad_(records)
    with pytest.raises(error, match=message):
        ops.linear(x, W, **(dict(residual=SHARED, residual_rows=ROWS) | change))


@pytest.mark.parametrize("bad", [-1, R])
def test_rows_outside(bad) -> None:
    rows = ROWS.clone()
    rows[7] = bad
    for x in (X, X.clone().requires_grad_()):
        with pytest.raises(IndexError, match=f"residual_rows: row 7 names row {bad} of residual, which has 6"):
            ops.linear(x, W, residual=SHARED, residual_rows=rows)
