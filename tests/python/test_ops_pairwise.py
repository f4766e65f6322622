"""ops.pairwise_dots against FP64 on rounded operands: shapes, strides, triangles, gradients, every kernel and level."""

import pytest
import torch

from octavo import _core, ops
from octavo.ops.checks import BF16_TOLERANCE, FP32_TOLERANCE, relative_to_largest
from octavo.ops.pairwise import run
from octavo.ops.pairwise_checks import check_pairwise_dots
from octavo.ops.reference import pairwise_reference

SHAPES = [(1, 1, 1), (3, 2, 5), (4, 27, 64), (2, 33, 15), (1, 100, 40), (7, 17, 2)]  # B, F, D


def _normal(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def test_every_kernel_passes_qualification(isa) -> None:
    kernels = [k for k in _core.kernels() if k.op == _core.Op.pairwise_dots and k.supported]
    assert {k.numerics.name for k in kernels} == {"fp32", "bf16"}
    for kernel in kernels:
        assert check_pairwise_dots(kernel) == "", kernel.name


@pytest.mark.parametrize("numerics", ["fp32", "bf16"])
@pytest.mark.parametrize("pairs", ["all", "lower", "upper"])
@pytest.mark.parametrize("shape", SHAPES)
def test_of_one_operand(isa, numerics, pairs, shape) -> None:
    x = _normal(*shape)
    ref = pairwise_reference(x, x, "all", pairs, numerics)
    y = ops.pairwise_dots(x, pairs=pairs, numerics=numerics)
    assert y.shape == ref.shape
    assert y.dtype == torch.float32
    assert relative_to_largest(y, ref) <= FP32_TOLERANCE
    assert torch.equal(ops.pairwise_dots(x, pairs=pairs, numerics=numerics), y)
    half = ops.pairwise_dots(x.bfloat16(), pairs=pairs)
    assert half.dtype == torch.bfloat16
    assert relative_to_largest(half, pairwise_reference(x.bfloat16(), x.bfloat16(), "all", pairs, "bf16")) <= (
        BF16_TOLERANCE
    )


@pytest.mark.parametrize("numerics", ["fp32", "bf16"])
def test_strides(isa, numerics) -> None:
    wide = _normal(5, 40, 60, seed=1)
    for x, y in (
        (wide[::2, 3:20, 7:36], wide[1:4, ::2, 30:59]),  # slices
        (wide.mT[:3, 7:36], wide.mT[1:4, 20:37]),  # transposed
        (wide[:3, ::3, ::2], wide[:3, :9, :30]),  # neither rows nor columns are neighbours
        (wide[:1].expand(3, 40, 60), wide[:3]),  # one matrix for all
        (wide.permute(1, 0, 2)[:3], wide.permute(1, 0, 2)[4:7]),
    ):
        ref = pairwise_reference(x, y, "all", "all", numerics)
        found = ops.pairwise_dots(x, y, numerics=numerics)
        assert relative_to_largest(found, ref) <= FP32_TOLERANCE
        assert torch.equal(found, ops.pairwise_dots(x.contiguous(), y.contiguous(), numerics=numerics))


def test_operands_of_different_types(isa) -> None:
    x, y = _normal(3, 5, 7), _normal(3, 19, 7, seed=1).bfloat16()
    for numerics in ("fp32", "bf16"):
        for a, b in ((x, y), (y, x)):
            found = ops.pairwise_dots(a, b, numerics=numerics, out_dtype=torch.float32)
            assert relative_to_largest(found, pairwise_reference(a, b, "all", "all", numerics)) <= FP32_TOLERANCE


@pytest.mark.parametrize("pairs", ["all", "lower", "upper"])
def test_into_a_slice_of_a_row(isa, pairs) -> None:
    x = _normal(6, 9, 13)
    expected = ops.pairwise_dots(x, pairs=pairs)
    row = torch.full((6, 200), -7.0)
    out = row[:, 50 : 50 + expected[0].numel()].view(expected.shape)
    assert ops.pairwise_dots(x, pairs=pairs, out=out) is out
    assert torch.equal(out, expected)
    assert bool((row[:, :50] == -7).all())
    assert bool((row[:, 50 + expected[0].numel() :] == -7).all())


def test_empty_sizes(isa) -> None:
    assert ops.pairwise_dots(torch.empty(0, 3, 4)).shape == (0, 3, 3)
    assert ops.pairwise_dots(torch.empty(2, 0, 4)).shape == (2, 0, 0)
    assert ops.pairwise_dots(torch.empty(2, 1, 4), pairs="lower").shape == (2, 0)
    assert ops.pairwise_dots(_normal(2, 3, 4), torch.empty(2, 0, 4)).shape == (2, 3, 0)
    for numerics in ("fp32", "bf16"):
        zero = ops.pairwise_dots(torch.empty(2, 3, 0), numerics=numerics)
        assert torch.equal(zero, torch.zeros(2, 3, 3))


def test_not_finite_values_stay_in_their_pairs(isa) -> None:
    x = _normal(2, 20, 6).abs() + 0.1
    x[0, 3, 2], x[1, 4, 1] = torch.nan, torch.inf
    for numerics in ("fp32", "bf16"):
        y = ops.pairwise_dots(x, numerics=numerics)
        nan = torch.zeros(20, 20, dtype=torch.bool)
        nan[3] = nan[:, 3] = True
        assert torch.equal(y[0].isnan(), nan)
        assert bool((y[1, 4] == torch.inf).all())
        assert not bool(y[1].isnan().any())


@pytest.mark.parametrize("numerics", ["fp32", "bf16"])
@pytest.mark.parametrize("batch", [1, 3, 200])
def test_bitwise_the_same_for_any_thread_count(isa, numerics, batch) -> None:
    x = _normal(batch, 70, 40)
    before = torch.get_num_threads()
    try:
        for pairs in ("all", "lower", "upper"):
            found = []
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                found.append(ops.pairwise_dots(x, pairs=pairs, numerics=numerics))
            assert torch.equal(found[0], found[1])
            assert torch.equal(found[0], found[2])
    finally:
        torch.set_num_threads(before)


def _gradients(function, inputs, grad):
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    function(*leaves).backward(grad)
    return [t.grad for t in leaves]


@pytest.mark.parametrize("pairs", ["all", "lower", "upper"])
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_of_one_operand(isa, pairs, shape) -> None:
    x = _normal(*shape)
    grad = _normal(*ops.pairwise_dots(x, pairs=pairs).shape, seed=5)
    (found,) = _gradients(lambda t: ops.pairwise_dots(t, pairs=pairs), [x], grad)
    (ref,) = _gradients(lambda t: pairwise_reference(t, t, "all", pairs, "fp32"), [x.double()], grad.double())
    assert found.dtype == torch.float32
    assert relative_to_largest(found, ref) <= FP32_TOLERANCE


def test_gradients_of_two_operands(isa) -> None:
    x, y, grad = _normal(3, 5, 33), _normal(3, 21, 33, seed=1), _normal(3, 5, 21, seed=2)
    found = _gradients(ops.pairwise_dots, [x, y], grad)
    ref = _gradients(lambda a, b: a @ b.mT, [x.double(), y.double()], grad.double())
    for f, r in zip(found, ref, strict=True):
        assert relative_to_largest(f, r) <= FP32_TOLERANCE


def test_gradients_in_bf16_round_their_operands(isa) -> None:
    x, grad = _normal(3, 19, 34).bfloat16(), _normal(3, 19 * 9, seed=2).bfloat16()
    (found,) = _gradients(lambda t: ops.pairwise_dots(t, pairs="upper"), [x], grad)
    (ref,) = _gradients(lambda t: pairwise_reference(t, t, "all", "upper", "fp32"), [x.double()], grad.double())
    assert found.dtype == torch.bfloat16
    assert relative_to_largest(found, ref) <= BF16_TOLERANCE


def test_the_wukong_block(isa) -> None:
    x, y = _normal(4, 30, 16), _normal(4, 30, 5, seed=1)
    found = ops.pairwise_dots(x, ops.pairwise_dots(x.mT, y.mT).mT)
    ref = x.double() @ (x.double().mT @ y.double())
    assert relative_to_largest(found, ref) <= FP32_TOLERANCE


def test_operator() -> None:
    x, y = _normal(3, 5, 8), _normal(3, 4, 8, seed=1)
    packed, wide = _normal(3, 10), _normal(3, 4, 5, seed=1)
    for arguments in (
        (x, y, "all", "all", "fp32", torch.float32),
        (x.bfloat16(), x.bfloat16(), "all", "lower", "bf16", torch.bfloat16),
        (packed, wide, "upper", "all", "fp32", torch.float32),
    ):
        torch.library.opcheck(torch.ops.octavo.pairwise_dots.default, arguments)


def test_traced(isa) -> None:
    x = _normal(3, 9, 8)
    compiled = torch.compile(lambda t: ops.pairwise_dots(t, pairs="lower") * 2, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), ops.pairwise_dots(x, pairs="lower") * 2)
    leaf = x.clone().requires_grad_()
    compiled(leaf).sum().backward()
    (expected,) = _gradients(lambda t: ops.pairwise_dots(t, pairs="lower") * 2, [x], torch.ones(3, 36))
    assert torch.equal(leaf.grad, expected)


X = _normal(2, 3, 4)
BAD = [
    (dict(x=[1.0]), TypeError, "x: expected a torch.Tensor, found list"),
    (dict(x=X.double()), TypeError, "x: expected float32 or bfloat16, found float64"),
    (dict(x=X[0]), ValueError, r"x: expected 3 dimension\(s\), found shape \[3, 4\]"),
    (dict(y=_normal(2, 3, 5)), ValueError, r"y: shape \[2, 3, 5\] does not fit x \[2, 3, 4\]; B and D must be equal"),
    (dict(y=X, pairs="lower"), ValueError, "pairs: 'lower' is the triangle of x x\\^T; leave y out"),
    (dict(pairs="strict"), ValueError, "pairs: found 'strict'; expected one of 'all'"),
    (dict(numerics="int8"), ValueError, "numerics: found 'int8'; expected one of 'fp32', 'bf16'"),
    (dict(out_dtype=torch.float16), TypeError, "out_dtype: expected"),
    (dict(out=torch.empty(2, 3, 4)), ValueError, r"out: shape \[2, 3, 4\]; expected \[2, 3, 3\]"),
    (dict(out=torch.empty(2, 3, 3).mT), ValueError, "out: its last dimension must be contiguous"),
    (dict(out=torch.empty(2, 3, 3), out_dtype=torch.bfloat16), TypeError, "out: is torch.float32 but out_dtype"),
    (
        dict(x=X.clone().requires_grad_(), out=torch.empty(2, 3, 3)),
        ValueError,
        "out: cannot be combined with gradients",
    ),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_arguments_name_themselves(change, error, message) -> None:
    with pytest.raises(error, match=message):
        ops.pairwise_dots(**(dict(x=X) | change))


def test_the_core_names_what_it_cannot_take() -> None:
    with pytest.raises(ValueError, match="x is a triangle of 4 products; expected 3 for y's 3 columns"):
        run(_normal(2, 4), _normal(2, 5, 3), "lower", "all", "fp32", torch.float32)
    with pytest.raises(ValueError, match="a triangle needs as many rows in y as in x, found 5 and 3"):
        run(_normal(2, 3, 4), _normal(2, 5, 4), "all", "lower", "fp32", torch.float32, torch.empty(2, 3))
