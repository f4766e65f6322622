"""ops.grouped_linear: bitwise as ops.linear group by group, for any threads; prepared groups; gradients; errors."""

import pytest
import torch

from octavo import _core, ops
from octavo.ops import grouped
from octavo.ops.packing import pack_as

CLASSES = ("bf16", "e4m3_row", "e4m3_weight_only", "int8_dynamic")
SIZES = [(1, 1, 1), (300, 48, 65), (7, 130, 33), (64, 16, 500), (0, 5, 4), (3, 64, 0), (129, 7, 70)]  # M, N, K


def _normal(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def _groups(dtype: torch.dtype = torch.float32):
    """Every class, shapes uneven on purpose, every kind of epilogue."""
    xs, ws, biases, norms, activations = [], [], [], [], []
    for i, (m, n, k) in enumerate(SIZES * 2):
        xs.append(_normal(m, k, seed=i).to(dtype))
        ws.append(pack_as(_normal(n, k, seed=100 + i), CLASSES[i % 4]))
        biases.append(_normal(n, seed=200 + i) if i % 3 else None)
        norms.append([None, ops.Norm("layer", torch.ones(n)), ops.Norm("rms")][i % 3])
        activations.append([None, "silu", "relu", "gelu"][i % 4])
    return xs, ws, biases, norms, activations


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bitwise_as_one_by_one_for_any_thread_count(isa, dtype) -> None:
    xs, ws, biases, norms, activations = _groups(dtype)
    expected = [ops.linear(*group) for group in zip(xs, ws, biases, norms, activations, strict=True)]
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            for _ in range(2):  # the first call may still choose kernels
                found = ops.grouped_linear(xs, ws, biases, norms, activations)
                assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))
    finally:
        torch.set_num_threads(before)


def test_no_row_is_left_out_whatever_the_shares() -> None:
    ws = [pack_as(_normal(128, 256, seed=i), "int8_dynamic") for i in range(3)]
    layers = ops.prepare_grouped([ops.prepare_linear(w, rows=(50,)) for w in ws])
    before = torch.get_num_threads()
    try:
        for threads in (3, 5, 6, 7, 12):
            torch.set_num_threads(threads)
            for rows in range(48, 75):
                xs = [_normal(rows, 256, seed=i) for i in range(3)]
                outs = [torch.full((rows, 128), float("nan")) for _ in ws]
                layers(xs, outs)
                assert not any(out.isnan().any() for out in outs), (threads, rows)
    finally:
        torch.set_num_threads(before)


def test_every_group_runs_once_and_in_one_call(isa, monkeypatch) -> None:
    ws = [pack_as(_normal(40, 50, seed=i), "int8_dynamic") for i in range(5)]
    xs = [_normal(33, 50, seed=i) for i in range(5)]
    ops.grouped_linear(xs, ws)
    served = []
    serve = _core.serve_group
    monkeypatch.setattr(_core, "serve_group", lambda *a: served.append(serve(*a)) or served[-1])
    before = sum(ops.dispatch.counters().values())
    ops.grouped_linear(xs, ws)
    assert sum(ops.dispatch.counters().values()) == before + 5
    if isa in ("avx512", "amx"):  # elsewhere dispatch may choose another library's kernel
        assert not any(y is NotImplemented for y in served[0])


def test_one_epilogue_for_all_and_out_dtype(isa) -> None:
    ws = [pack_as(_normal(40, k, seed=k), "bf16") for k in (8, 31)]
    xs = [_normal(2, 5, k) for k in (8, 31)]
    norm = ops.Norm("layer")
    found = ops.grouped_linear(xs, ws, norms=norm, activations="hardswish", out_dtype=torch.bfloat16)
    for y, x, w in zip(found, xs, ws, strict=True):
        assert y.shape == (2, 5, 40)
        assert torch.equal(y, ops.linear(x, w, norm=norm, activation="hardswish", out_dtype=torch.bfloat16))


def test_no_groups() -> None:
    assert ops.grouped_linear([], []) == []
    assert ops.prepare_grouped([])([]) == []


def test_strided_inputs_and_vectors(isa) -> None:
    wide, bias = _normal(30, 64), _normal(80)[::2]
    ws = [pack_as(_normal(40, 20, seed=i), "e4m3_row") for i in range(2)]
    for x in (wide[::3, 7:27], wide.T[:20].T):
        found = ops.grouped_linear([x, x], ws, [bias, None])
        assert torch.equal(found[0], ops.linear(x, ws[0], bias))
        assert torch.equal(found[1], ops.linear(x, ws[1]))


def test_changed_weight_is_seen() -> None:
    w, x = pack_as(_normal(16, 32), "bf16"), _normal(4, 32, seed=1)
    before = ops.grouped_linear([x], [w])[0]
    w.codes.mul_(2)
    assert torch.equal(ops.grouped_linear([x], [w])[0], 2 * before)


@pytest.mark.parametrize("numerics", CLASSES)
def test_prepared(isa, numerics) -> None:
    ws = [pack_as(_normal(n, 40, seed=n), numerics) for n in (3, 64, 200)]
    biases = [_normal(w.n, seed=9) for w in ws]
    layers = [ops.prepare_linear(w, b, activation="silu", rows=(70,)) for w, b in zip(ws, biases, strict=True)]
    group = ops.prepare_grouped(layers)
    for m in (70, 5, 70):
        xs = [_normal(m, 40, seed=i) for i in range(3)]
        expected = [ops.linear(x, w, b, activation="silu") for x, w, b in zip(xs, ws, biases, strict=True)]
        assert all(torch.equal(f, e) for f, e in zip(group(xs), expected, strict=True))
        outs = [torch.empty(m, w.n) for w in ws]
        found = group(xs, [outs[0], None, outs[2]])
        assert found[0] is outs[0]
        assert found[2] is outs[2]
        assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))


def test_gradients_are_those_of_linear() -> None:
    def leaves():
        x, weight, bias = _normal(5, 12), _normal(7, 12, seed=1), _normal(7, seed=2)
        return [t.requires_grad_() for t in (x, weight, bias)]

    x, weight, bias = leaves()
    w = ops.pack_weight(weight)
    sum(y.sum() for y in ops.grouped_linear([x, x], [w, w], [bias, None], activations="silu")).backward()
    x2, weight2, bias2 = leaves()
    w2 = ops.pack_weight(weight2)
    (ops.linear(x2, w2, bias2, activation="silu").sum() + ops.linear(x2, w2, activation="silu").sum()).backward()
    for a, b in ((x, x2), (weight, weight2), (bias, bias2)):
        assert torch.equal(a.grad, b.grad)


def test_traced() -> None:
    ws = [pack_as(_normal(9, 12, seed=i), "int8_dynamic") for i in range(2)]
    xs = [_normal(4, 12, seed=i) for i in range(2)]
    compiled = torch.compile(lambda a, b: ops.grouped_linear([a, b], ws), backend="aot_eager")
    for f, e in zip(compiled(*xs), ops.grouped_linear(xs, ws), strict=True):
        assert torch.equal(f, e)


@pytest.mark.parametrize(
    "recipe", [("e4m3",), ("e4m3", "bf16"), ("e4m3", "same", "block_128x128"), ("int8",), ("bf16",)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_packed_together_lie_side_by_side(recipe, dtype) -> None:
    weights = _normal(3, 130, 33).to(dtype)
    packed = ops.pack_weights(weights, *recipe)
    for i, (w, weight) in enumerate(zip(packed, weights, strict=True)):
        alone = ops.pack_weight(weight, *recipe)
        assert w.numerics == alone.numerics
        for mine, other, first in ((w.codes, alone.codes, packed[0].codes), (w.scale, alone.scale, packed[0].scale)):
            if other is None:
                assert mine is None
                continue
            assert torch.equal(mine.view(torch.uint8), other.view(torch.uint8))
            assert mine.data_ptr() == first.data_ptr() + i * first.numel() * first.element_size()
    assert ops.pack_weights(weights[:0], *recipe) == []


def test_weights_packed_together_train() -> None:
    weights, x = _normal(2, 7, 12, seed=1).requires_grad_(), _normal(5, 12)
    sum(y.sum() for y in ops.grouped_linear([x, x], ops.pack_weights(weights))).backward()
    for i in range(2):
        alone = weights.detach()[i].clone().requires_grad_()
        ops.linear(x, ops.pack_weight(alone)).sum().backward()
        assert torch.equal(weights.grad[i], alone.grad)


def test_results_side_by_side_where_all_have_one_shape(isa) -> None:
    ws = ops.pack_weights(_normal(3, 20, 12), "bf16")
    layers = [ops.prepare_linear(w, out_dtype=torch.bfloat16, rows=(5,)) for w in ws]
    xs = list(_normal(5, 36).split(12, dim=1))
    outs = grouped.side_by_side(layers, xs)
    assert [o.data_ptr() - outs[0].data_ptr() for o in outs] == [0, 200, 400]
    assert all(o.shape == (5, 20) and o.dtype == torch.bfloat16 for o in outs)
    found = ops.prepare_grouped(layers)(xs, outs)
    assert all(torch.equal(y, layer(x)) for y, layer, x in zip(found, layers, xs, strict=True))
    other = ops.prepare_linear(ops.pack_weight(_normal(21, 12), "bf16"), out_dtype=torch.bfloat16)
    wide = ops.prepare_linear(ws[0])
    for changed in ([*layers[:2], other], [*layers[:2], wide], [*layers[:2], None], [None] * 3):
        assert grouped.side_by_side(changed, xs) is None
    assert grouped.side_by_side(layers, [*xs[:2], xs[2][:4]]) is None
    assert grouped.side_by_side(layers, [*xs[:2], None]) is None
    assert grouped.outs_for(layers, xs) is None  # a CPU has no use for it
    assert grouped.outs_for([], []) is None


X, W = _normal(2, 4), pack_as(_normal(6, 4), "bf16")
BAD = [
    (dict(xs=[X]), ValueError, r"xs: expected one per weight \(2\), found 1"),
    (dict(biases=[None]), ValueError, r"biases: expected one per weight \(2\), found 1"),
    (dict(xs=[X, _normal(2, 5)]), ValueError, r"group 1: x: shape \[2, 5\] does not fit weight \[6, 4\]"),
    (dict(ws=[W, X]), TypeError, "group 1: ws: expected a PackedWeight"),
    (dict(activations=["relu", "tanh"]), ValueError, "group 1: activation: found 'tanh'"),
    (dict(biases=[_normal(5), None]), ValueError, "group 0: bias: has 5 elements; expected N = 6"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_arguments_name_themselves(change, error, message) -> None:
    with pytest.raises(error, match=message):
        ops.grouped_linear(**(dict(xs=[X, X], ws=[W, W]) | change))


def test_bad_prepared_calls() -> None:
    group = ops.prepare_grouped([ops.prepare_linear(W)])
    with pytest.raises(ValueError, match=r"xs: expected one per layer \(1\), found 2"):
        group([X, X])
    with pytest.raises(ValueError, match="group 0: x: shape"):
        group([_normal(2, 5)])
    with pytest.raises(TypeError, match="layers: group 0: expected what octavo.ops.prepare_linear returns, found Pack"):
        ops.prepare_grouped([W])
