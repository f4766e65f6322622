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


@pytest.mark.parametrize("kind", [None, *NORMS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("used", ["y", "y^T", "both"])
def test_gradients(isa, kind, dtype, used) -> None:
    given = [_normal(9, 4, 24).to(dtype), _normal(9, 24, 15, seed=1).to(dtype).mT, _normal(9, 19, 24, seed=2).to(dtype)]
    leaves = [t.detach().requires_grad_() for t in given]
    twins = [t.detach().double().requires_grad_() for t in given]
    norm, exact_norm = (_norm(kind, 24) for _ in range(2))
    for n in (norm, exact_norm):
        for v in (n.weight, n.bias) if n is not None else ():
            if v is not None:
                v.requires_grad_()
    y, transposed = ops.add_norm(leaves[:2], leaves[2], norm, transposed=True)
    exact = joined(twins[:2], twins[2], exact_norm)
    g, gt = _normal(9, 19, 24, seed=3).to(dtype), _normal(9, 24, 19, seed=4).to(dtype)
    total, wanted = torch.zeros(()), torch.zeros((), dtype=torch.float64)
    if used != "y^T":
        total, wanted = (y * g).float().sum(), (exact * g.double()).sum()
    if used != "y":
        total, wanted = total + (transposed * gt).float().sum(), wanted + (exact.mT * gt.double()).sum()
    total.backward()
    wanted.backward()
    bound = FP32_TOLERANCE if dtype == torch.float32 else 3 * BF16_TOLERANCE  # z is kept in BF16
    pairs = list(zip(leaves, twins, strict=True))
    if norm is not None:
        pairs += [(norm.weight, exact_norm.weight), (norm.bias, exact_norm.bias)]
    for leaf, twin in pairs:
        if leaf is not None:
            assert leaf.grad.dtype == leaf.dtype
            assert relative_to_largest(leaf.grad, twin.grad.double()) <= bound


def test_gradients_of_leaves_share_no_memory() -> None:
    for parts, residual in (
        ([_normal(1, 3, 4), _normal(1, 2, 4)], _normal(1, 5, 4)), ([_normal(2, 3, 4)], _normal(2, 3, 4)),
        ([_normal(2, 3, 4)], None),
    ):  # fmt: skip
        leaves = [t.requires_grad_() for t in (*parts, residual) if t is not None]
        ops.add_norm(parts, residual).sum().backward()
        for leaf in leaves:
            leaf.grad.add_(1)
        assert all(bool((leaf.grad == 2).all()) for leaf in leaves)


def test_what_needs_no_gradient_gets_none_and_empty_ones_work() -> None:
    x, weight = _normal(2, 3, 4), torch.ones(4, requires_grad=True)
    ops.add_norm([x], x, ops.Norm("rms", weight)).sum().backward()
    assert weight.grad is not None
    assert x.grad is None
    for shape in ((0, 3, 4), (2, 0, 4), (2, 3, 0)):
        part, vector = torch.ones(shape, requires_grad=True), torch.ones(shape[2], requires_grad=True)
        y, transposed = ops.add_norm([part], None, ops.Norm("rms", vector), transposed=True)
        (y.sum() + transposed.sum()).backward()
        assert part.grad.shape == shape
        assert torch.equal(vector.grad, torch.zeros(shape[2]))


@pytest.mark.parametrize("kind", [None, *NORMS])
@pytest.mark.parametrize("transposed", [False, True])
def test_gradients_of_gradients(kind, transposed) -> None:
    given = [_normal(3, 4, 9), _normal(3, 9, 2, seed=1).mT, _normal(3, 6, 9, seed=2)]
    norms = [_norm(kind, 9) for _ in range(2)]
    leaves = [
        [t.detach().clone().to(dtype).requires_grad_() for t in given] for dtype in (torch.float32, torch.float64)
    ]
    for norm, own in zip(norms, leaves, strict=True):
        own += [v.requires_grad_() for v in (norm.weight, norm.bias) if v is not None] if norm is not None else []
    slopes, found = _normal(3, 6, 9, seed=3), []
    for norm, own, function in zip(norms, leaves, (ops.add_norm, joined), strict=True):
        y = function(own[:2], own[2], norm, *([True] if transposed and function is ops.add_norm else []))
        y = y[1].mT if isinstance(y, tuple) else y
        firsts = torch.autograd.grad((y * slopes).sum() + y.pow(3).sum(), own, create_graph=True)
        penalty = sum(g.double().square().sum() for g in firsts) + y.double().sum()
        found.append(torch.autograd.grad(penalty, own, allow_unused=True, materialize_grads=True))
    for ours, exact in zip(*found, strict=True):
        assert relative_to_largest(ours, exact.double()) <= 1e-4
    batched = torch.autograd.functional.jacobian(
        lambda x: ops.add_norm([x], None, norms[0])[:, 0, 0], given[0][:1], vectorize=True
    )
    plain = torch.autograd.functional.jacobian(lambda x: joined([x], None, norms[0])[:, 0, 0], given[0][:1])
    assert torch.allclose(batched, plain, atol=1e-5)


@pytest.mark.parametrize("tokens", [7, 16])
def test_no_eps(tokens) -> None:
    for kind in ("layer", "rms", "swish_rms"):
        x, w = _normal(2, tokens, 8).requires_grad_(), [torch.ones(8, requires_grad=True) for _ in range(2)]
        found = torch.autograd.grad(ops.add_norm([x], None, ops.Norm(kind, w[0], eps=0.0)).pow(3).sum(), [x, w[0]])
        exact = torch.autograd.grad(joined([x], None, ops.Norm(kind, w[1], eps=0.0)).pow(3).sum(), [x, w[1]])
        for ours, theirs in zip(found, exact, strict=True):
            assert torch.allclose(ours, theirs, atol=1e-4)


def test_what_hooks_stored_otherwise_is_read_as_it_is() -> None:
    x = _normal(2, 5, 8).requires_grad_()
    expected = torch.autograd.grad(ops.add_norm([x], None, _norm("layer", 8)).pow(3).sum(), x)[0]
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.mT.contiguous() if t.dim() == 3 else t,
                                                  lambda t: t.mT if t.dim() == 3 else t):  # fmt: skip
        y = ops.add_norm([x], None, _norm("layer", 8)).pow(3).sum()
    assert torch.allclose(torch.autograd.grad(y, x)[0], expected)


@pytest.mark.parametrize("batch", [1, 3, 200])
def test_gradients_are_bitwise_the_same_for_any_thread_count(isa, batch) -> None:
    part, residual = _normal(batch, 40, 75).mT.requires_grad_(), _normal(batch, 75, 40).requires_grad_()
    norm, before, found = _norm("layer", 40), torch.get_num_threads(), []
    assert norm is not None
    leaves = [part, residual, norm.weight.requires_grad_(), norm.bias.requires_grad_()]
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            y, transposed = ops.add_norm([part], residual, norm, transposed=True)
            found.append(torch.autograd.grad(y.square().sum() + transposed.exp().sum(), leaves))
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


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
