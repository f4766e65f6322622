"""ops.add_norm against its definition in FP64: norms, strides, both outputs, gradients, every kernel and level."""

import pytest
import torch

from octavo import _core, ops
from octavo.ops._types import NORMS
from octavo.ops.add_norm import joined
from octavo.ops.add_norm_checks import check_add_norm
from octavo.ops.checks import BF16_TOLERANCE, FP32_TOLERANCE, relative_to_largest


def _normal(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def _norm(kind: str | None, depth: int) -> ops.Norm | None:
    if kind is None or kind == "block":
        return kind and ops.Norm(kind, block=16)
    return ops.Norm(kind, _normal(depth, seed=8).abs() + 0.5, _normal(depth, seed=9) if kind == "layer" else None)


def _reference(parts, residual, norm) -> torch.Tensor:
    return joined([p.double() for p in parts], None if residual is None else residual.double(), norm)


def test_every_kernel_passes_qualification(isa) -> None:
    kernels = [k for k in _core.kernels() if k.op == _core.Op.add_norm and k.supported]
    assert kernels
    for kernel in kernels:
        assert check_add_norm(kernel) == "", kernel.name


@pytest.mark.parametrize("kind", [None, *NORMS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wukong_layer_ends_so(isa, kind, dtype) -> None:
    block, maps, x = (
        _normal(70, 8, 32).to(dtype),
        _normal(70, 32, 20, seed=1).to(dtype),
        _normal(70, 28, 32, seed=2).to(dtype),
    )
    parts, norm = [block, maps[:, :, :20].mT], _norm(kind, 32)
    y, transposed = ops.add_norm(parts, x, norm, transposed=True)
    assert (y.dtype, y.shape, transposed.shape) == (dtype, (70, 28, 32), (70, 32, 28))
    assert y.is_contiguous()
    assert transposed.is_contiguous()
    assert torch.equal(y, transposed.mT)
    assert torch.equal(y, ops.add_norm(parts, x, norm))
    bound = FP32_TOLERANCE if dtype == torch.float32 else BF16_TOLERANCE
    assert relative_to_largest(y, _reference(parts, x, norm)) <= bound


def test_strides(isa) -> None:
    wide, other, norm = _normal(5, 40, 60, seed=1), _normal(4, 60, 60), _norm("layer", 29)
    for parts, residual in (
        ([wide[::2, 3:20, 7:36], other[:3, ::3, 31:]], None),  # slices
        ([wide.mT[:3, 7:36, :29]], wide.mT[:3, 11:40, 11:]),  # transposed
        ([other[:3, ::3, ::2][..., :29]], other[1:, ::3, 1::2][..., :29]),  # neither rows nor columns are neighbours
        ([wide[:1, :3, :29].expand(3, 3, 29), other[:3, :, :29]], other[:1, :1, :29].expand(3, 63, 29)),
        ([wide[:3, i : i + 1, :29] for i in range(40)], None),
    ):
        found = ops.add_norm(parts, residual, norm)
        assert relative_to_largest(found, _reference(parts, residual, norm)) <= FP32_TOLERANCE
        dense = [part.contiguous() for part in parts]
        assert torch.equal(found, ops.add_norm(dense, None if residual is None else residual.contiguous(), norm))


def test_empty_sizes(isa) -> None:
    for shape in ((0, 3, 4), (2, 0, 4), (2, 3, 0)):
        y, transposed = ops.add_norm(
            [torch.empty(shape)], torch.empty(shape), _norm("layer", shape[2]), transposed=True
        )
        assert y.shape == shape
        assert transposed.shape == y.mT.shape
    assert torch.equal(ops.add_norm([torch.empty(2, 0, 4), torch.ones(2, 3, 4)]), torch.ones(2, 3, 4))


def test_not_finite_values_stay_in_their_tokens(isa) -> None:
    x = _normal(3, 20, 6)
    expected = ops.add_norm([x], None, _norm("layer", 6))
    x[0, 3, 2], x[2, 19, 1] = torch.nan, torch.inf
    y = ops.add_norm([x], None, _norm("layer", 6))
    hit = torch.zeros(3, 20, dtype=torch.bool)
    hit[0, 3] = hit[2, 19] = True
    assert torch.equal(y.isnan().any(2), hit)
    assert torch.equal(y[~hit], expected[~hit])


@pytest.mark.parametrize("batch", [1, 3, 200])
def test_bitwise_the_same_for_any_thread_count(isa, batch) -> None:
    parts, residual = [_normal(batch, 70, 40), _normal(batch, 40, 5).mT], _normal(batch, 75, 40)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(ops.add_norm(parts, residual, _norm("layer", 40)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("transposed", [False, True])
def test_gradients(transposed) -> None:
    parts, residual = [_normal(3, 4, 8), _normal(3, 8, 2).mT], _normal(3, 6, 8)
    weight = torch.ones(8, requires_grad=True)
    leaves = [t.detach().clone().requires_grad_() for t in (*parts, residual)]
    found = ops.add_norm(leaves[:2], leaves[2], ops.Norm("layer", weight), transposed=transposed)
    total = (
        found[0].square().sum() + (found[1] * _normal(3, 8, 6, seed=3)).sum() if transposed else found.square().sum()
    )
    total.backward()
    twins = [t.detach().clone().double().requires_grad_() for t in (*parts, residual)]
    y = torch.nn.functional.layer_norm(torch.cat(twins[:2], 1) + twins[2], (8,))
    expected = y.square().sum() + ((y.mT * _normal(3, 8, 6, seed=3)).sum() if transposed else 0)
    expected.backward()
    for leaf, twin in zip(leaves, twins, strict=True):
        assert torch.allclose(leaf.grad, twin.grad.float(), atol=1e-5)
    assert weight.grad is not None
    with torch.no_grad():
        assert torch.allclose(ops.add_norm(parts, residual, ops.Norm("layer", weight)), y.float(), atol=1e-5)


def test_compiled_it_is_one_node_with_the_same_bits() -> None:
    norm = _norm("layer", 12)

    def layer(a, b, r):
        y, transposed = ops.add_norm([a, b], r, norm, transposed=True)
        return ops.add_norm([y], None, None), transposed

    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=True)
    with torch.inference_mode():
        for batch in (5, 9):
            inputs = (_normal(batch, 4, 12), _normal(batch, 3, 12, seed=1), _normal(batch, 7, 12, seed=2))
            for found, expected in zip(compiled(*inputs), layer(*inputs), strict=True):
                assert torch.equal(found, expected)
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: ops.add_norm(x), TypeError, "parts: expected a list or tuple of tensors, found Tensor"),
        (lambda x: ops.add_norm([]), ValueError, "parts: is empty"),
        (lambda x: ops.add_norm([x, x.bfloat16()]), TypeError, r"parts\[1\]: expected float32, found bfloat16"),
        (lambda x: ops.add_norm([x.double()]), TypeError, r"parts\[0\]: expected float32 or bfloat16"),
        (lambda x: ops.add_norm([x[0]]), ValueError, r"parts\[0\]: expected 3 dimension"),
        (lambda x: ops.add_norm([x, x[:, :, 1:]]), ValueError, r"parts\[1\]: shape \[2, 3, 3\] does not fit"),
        (lambda x: ops.add_norm([x, x], x), ValueError, r"residual: shape \[2, 3, 4\]; expected \[2, 6, 4\]"),
        (lambda x: ops.add_norm([x], x.bfloat16()), TypeError, "residual: expected float32"),
        (lambda x: ops.add_norm([x], None, "layer"), TypeError, "norm: expected an octavo.ops.Norm, found str"),
        (lambda x: ops.add_norm([x], None, ops.Norm("rms", torch.ones(3))), ValueError, r"norm.weight: shape \[3\]"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call(torch.ones(2, 3, 4))


def test_what_kernels_cannot_read_is_computed_by_torch() -> None:
    x, norm = _normal(2, 3, 4), ops.Norm("rms")
    negated = torch._neg_view(x)  # whose memory holds other numbers
    assert torch.equal(ops.add_norm([negated], negated), ops.add_norm([-x], -x))
    by_negated = ops.add_norm([x], None, ops.Norm("rms", torch._neg_view(torch.ones(4))))
    assert torch.allclose(by_negated, -ops.add_norm([x], None, norm))
    tangent = torch.func.jvp(lambda t: ops.add_norm([t], None, norm), (x,), (x,))[1]
    assert torch.allclose(tangent, torch.zeros(2, 3, 4), atol=1e-4)  # the norm of 1.01 x is that of x
    assert torch.allclose(
        torch.func.vmap(lambda t: ops.add_norm([t], None, norm))(x[None])[0], ops.add_norm([x], None, norm)
    )
    assert torch.equal(ops.quantize(negated).data.float(), ops.quantize(-x).data.float())
    assert torch.equal(ops.pairwise_dots(negated), ops.pairwise_dots(x))
    assert torch.equal(ops.add_norm([torch.full((1, 20, 7), -0.0)]).signbit(), torch.ones(1, 20, 7, dtype=torch.bool))
