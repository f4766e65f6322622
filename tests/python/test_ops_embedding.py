"""ops.embedding_bags against FP64 and torch: formats, poolings, bounds, dimensions, every kernel and level."""

import warnings

import hypothesis.strategies as st
import pytest
import torch
from embedding_support import FORMATS, bags, table, table_set
from hypothesis import given, settings

from octavo import _core, ops
from octavo.ops.checks import BF16_TOLERANCE, FP32_TOLERANCE, relative_to_largest
from octavo.ops.embedding import TableSet, bag_backward, bag_forward
from octavo.ops.embedding_checks import check_bag_backward, check_bag_forward
from octavo.ops.reference import coefficients, pooled_reference
from octavo.ops.table_formats import decode_rows, encode_rows


def _kernels(op: _core.Op) -> list[_core.Kernel]:
    return [k for k in _core.kernels() if k.op == op and k.supported and k.device == _core.Device.cpu]


def test_every_kernel_passes_qualification(isa) -> None:
    for kernel in _kernels(_core.Op.bag_forward):
        assert check_bag_forward(kernel) == "", kernel.name
    for kernel in _kernels(_core.Op.bag_backward):
        assert check_bag_backward(kernel) == "", kernel.name


@pytest.mark.parametrize(("dtype", "place"), FORMATS)
@pytest.mark.parametrize("pooling", ["sum", "mean"])
@pytest.mark.parametrize("dim", [1, 3, 17, 64, 100, 128, 130, 300])
def test_formats_and_dimensions(isa, dtype, place, pooling, dim) -> None:
    made = [table(50, d, dtype, seed=d, place=place) for d in (dim, 16)]
    values, offsets, weights = bags(2, 23, 50, seed=dim)
    for w in (None, weights):
        ref = pooled_reference([m[2] for m in made], [pooling] * 2, values, offsets, w)
        for kernel in _kernels(_core.Op.bag_forward):
            tables = table_set(made, [dim, 16], dtype, pooling)
            y = bag_forward(tables, values, offsets, w, kernel=kernel)
            assert torch.equal(y, bag_forward(tables, values, offsets, w, kernel=kernel)), kernel.name
            assert relative_to_largest(y, ref) <= FP32_TOLERANCE, kernel.name
            y = bag_forward(tables, values, offsets, w, out_dtype=torch.bfloat16, kernel=kernel)
            assert relative_to_largest(y, ref) <= BF16_TOLERANCE, kernel.name


def test_output_given_by_the_caller(isa) -> None:
    rows = torch.randn(9, 5, generator=torch.Generator().manual_seed(1))
    values, offsets, _ = bags(2, 4, 9, seed=3)
    expected = ops.embedding_bags([rows, rows], values, offsets)
    wide = torch.full((4, 14), 7.0)
    out = wide[:, 2:12]
    assert ops.embedding_bags([rows, rows], values, offsets, out=out) is out
    assert torch.equal(out, expected)
    assert bool((wide[:, :2] == 7).all())
    assert bool((wide[:, 12:] == 7).all())


@pytest.mark.parametrize("dim", [1, 2, 7, 16, 64, 129])
def test_torchs_four_bit_rows_agree(isa, dim) -> None:
    x = torch.randn(30, dim + dim % 2, generator=torch.Generator().manual_seed(dim))
    packed = torch.ops.quantized.embedding_bag_4bit_prepack(x)  # codes, then scale and bias in FP16
    codes, tail = packed[:, :-4], packed[:, -4:].contiguous().view(torch.float16).float()
    values, offsets, _ = bags(1, 12, 30, seed=dim)
    expected = torch.ops.quantized.embedding_bag_4bit_rowwise_offsets(
        packed, values, offsets, False, 0, False, None, None, True
    )
    tables = TableSet([codes], [tail], int4_dims=[x.shape[1]])
    assert torch.allclose(ops.embedding_bags(tables, values, offsets), expected, rtol=1e-5, atol=1e-5)
    ours = decode_rows(*encode_rows(x, "int4"), x.shape[1])
    theirs = decode_rows(codes, tail, x.shape[1])
    step = tail[:, :1]  # FP16 rounds their scale and bias
    assert bool(((ours - theirs).abs() <= 1.05 * step + 1e-6).all())


def test_affine_codes_are_the_nearest() -> None:
    x = torch.randn(50, 33, generator=torch.Generator().manual_seed(6))
    for dtype, steps in (("int8", 255), ("int4", 15)):
        codes, scale = encode_rows(x, dtype)
        decoded = decode_rows(codes, scale, 33 if dtype == "int4" else None)
        assert scale is not None
        assert torch.allclose(scale[:, 0], (x.amax(1) - x.amin(1)) / steps, rtol=1e-6)
        assert bool(((decoded - x).abs() <= 0.5001 * scale[:, :1]).all())


@pytest.mark.parametrize(("dtype", "steps"), [("int8", 255), ("int4", 15)])
def test_rows_that_span_more_than_fp32_reaches_are_finite(isa, dtype, steps) -> None:
    most = torch.finfo(torch.float32).max
    x = torch.tensor([[1e38, -3e38, 3e38], [-most, most, 0.0], [-1e38, 2.4e38, 0.0], [3e38, most, 2.9e38]])
    codes, scale = encode_rows(x, dtype)
    y = decode_rows(codes, scale, 3 if dtype == "int4" else None)
    assert scale is not None
    expected = torch.where(torch.tensor([[True], [True], [False], [False]]), x.clamp(-1.7e38, 1.7e38), x)
    assert bool(((y - expected).abs() <= 0.51 * scale[:, :1]).all())
    tables = table_set([(codes, scale)], [3], dtype)
    for kernel in _kernels(_core.Op.bag_forward):
        assert torch.allclose(bag_forward(tables, torch.arange(4), torch.arange(5), kernel=kernel), y, rtol=1e-5)


def test_powers_of_two_round_the_scale_up() -> None:
    x = torch.randn(40, 20, generator=torch.Generator().manual_seed(8)) * torch.logspace(-30, 30, 40)[:, None]
    codes, scale = encode_rows(x, "e4m3", "power_of_two")
    _, exact = encode_rows(x, "e4m3")
    assert scale is not None
    assert exact is not None
    assert scale.dtype == torch.float8_e8m0fnu
    ratio = scale.float() / exact
    assert bool((ratio >= 1).all())
    assert bool((ratio < 2).all())
    error = (decode_rows(codes, scale) - x).abs()
    assert bool((error <= x.abs() / 16 + scale.float()[:, None] * 2.0**-10).all())


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_torchs_embedding_bag_agrees(mode) -> None:
    rows = torch.randn(40, 24, generator=torch.Generator().manual_seed(1))
    values, offsets, weights = bags(1, 31, 40, seed=2)
    expected = torch.nn.functional.embedding_bag(values, rows, offsets, mode=mode, include_last_offset=True)
    assert torch.allclose(ops.embedding_bags([rows], values, offsets, pooling=mode), expected, atol=1e-6)
    if mode == "sum":
        expected = torch.nn.functional.embedding_bag(
            values, rows, offsets, mode=mode, include_last_offset=True, per_sample_weights=weights
        )
        assert torch.allclose(ops.embedding_bags([rows], values, offsets, weights), expected, atol=1e-5)


def test_empty_batches_bags_and_tables(isa) -> None:
    rows = torch.randn(4, 6)
    none = torch.empty(0, dtype=torch.int64)
    assert ops.embedding_bags([rows, rows], none, torch.zeros(1, dtype=torch.int64)).shape == (0, 12)
    offsets = torch.tensor([0, 0, 0])
    for pooling in ("sum", "mean"):
        assert torch.equal(ops.embedding_bags([rows], none, offsets, pooling=pooling), torch.zeros(2, 6))
    assert ops.embedding_bags([torch.empty(0, 6)], none, offsets).abs().sum() == 0


def test_one_long_bag_and_strided_tables(isa) -> None:
    wide = torch.randn(1000, 40, generator=torch.Generator().manual_seed(3))
    rows = wide[::2, 3:35]
    values = torch.randint(0, 500, (20_000,), generator=torch.Generator().manual_seed(4))
    y = ops.embedding_bags([rows], values, torch.tensor([0, 20_000]))
    assert relative_to_largest(y, rows.double()[values].sum(0, keepdim=True)) <= FP32_TOLERANCE


def test_rows_beyond_two_gigabytes(isa) -> None:
    rows = torch.empty((5, 1 << 29), dtype=torch.uint8)  # 2.5 GiB, mapped on demand
    rows[4, :8] = 7
    scale = torch.zeros(5, 2)
    scale[4, 0] = 2.0
    y = ops.embedding_bags([rows[:, :8]], torch.tensor([4]), torch.tensor([0, 1]), scales=[scale])
    assert torch.equal(y, torch.full((1, 8), 14.0))


def test_not_finite_rows(isa) -> None:
    x = torch.randn(3, 20)
    x[1, 5] = torch.nan
    x[2, 7] = torch.inf
    values, offsets = torch.tensor([0, 1, 2]), torch.tensor([0, 1, 2, 3])
    for dtype, place in FORMATS:
        if place == "in_row":
            continue
        codes, scale = encode_rows(x, dtype, place)
        int4_dim = 20 if dtype == "int4" else None
        y = ops.embedding_bags(TableSet([codes], [scale], int4_dims=[int4_dim]), values, offsets)
        expected = decode_rows(codes, scale, int4_dim)
        assert torch.equal(y.isnan(), expected.isnan()), dtype
        assert bool(y[1].isnan().any()), dtype
        assert torch.allclose(y.nan_to_num(), expected.nan_to_num(), rtol=1e-6, atol=1e-6), dtype


@pytest.mark.parametrize("index", [-1, 40, 1 << 40])
def test_bounds(isa, index) -> None:
    tables = TableSet([torch.randn(50, 8), torch.randn(40, 8)], names=["user", "item"])
    values, offsets = torch.tensor([1, 2, 3, index]), torch.tensor([0, 1, 2, 2, 4])
    with pytest.raises(IndexError, match=rf"item.*{index}.*40"):
        ops.embedding_bags(tables, values, offsets)
    kept = torch.tensor([1, 2, 3]), torch.tensor([0, 1, 2, 2, 3])
    expected = ops.embedding_bags(tables, *kept)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(ops.embedding_bags(tables, values, offsets, bounds="ignore"), expected)
    with pytest.warns(UserWarning, match="skipped 1 of 4 row indices outside their tables"):
        assert torch.equal(ops.embedding_bags(tables, values, offsets, bounds="warn"), expected)


def test_a_refused_backward_updates_nothing(isa) -> None:
    first, second = torch.ones(5, 4), torch.ones(5, 4)
    tables = TableSet([first, second])
    with pytest.raises(IndexError):
        bag_backward(tables, torch.tensor([1, 9]), torch.tensor([0, 1, 2]), None, torch.ones(1, 8), "sgd", 0.1)
    assert bool((first == 1).all())
    assert bool((second == 1).all())
    bag_backward(
        tables, torch.tensor([1, 9]), torch.tensor([0, 1, 2]), None, torch.ones(1, 8), "sgd", 0.5, bounds="ignore"
    )
    assert torch.equal(first[1], torch.full((4,), 0.5))
    assert bool((second == 1).all())


@given(st.data())
@settings(max_examples=120, deadline=None)
def test_any_jagged_input(data) -> None:
    count, batch = data.draw(st.integers(1, 4)), data.draw(st.integers(0, 6))
    sizes = [(data.draw(st.integers(1, 9)), data.draw(st.integers(1, 40))) for _ in range(count)]
    pooling = [data.draw(st.sampled_from(["sum", "mean"])) for _ in range(count)]
    lengths = [data.draw(st.integers(0, 4)) for _ in range(count * batch)]
    values = [data.draw(st.integers(0, sizes[i // batch][0] - 1)) for i, n in enumerate(lengths) for _ in range(n)]
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    dtype, place = data.draw(st.sampled_from(FORMATS))
    made = [table(r, d, dtype, seed=7, place=place) for r, d in sizes]
    tables = table_set(made, [d for _, d in sizes], dtype, pooling)
    y = ops.embedding_bags(tables, torch.tensor(values, dtype=torch.int64), offsets)
    ref = pooled_reference([m[2] for m in made], pooling, torch.tensor(values, dtype=torch.int64), offsets)
    assert y.shape == ref.shape
    if ref.numel():
        assert relative_to_largest(y, ref) <= FP32_TOLERANCE


@pytest.mark.parametrize("optimizer", ["sgd", "row_wise_adagrad", "none"])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("dim", [1, 17, 64, 130])
def test_backward_is_the_dense_gradient_and_one_step(isa, optimizer, decay, dim) -> None:
    pooling, dims = ["sum", "mean"], [dim, 8]
    values, offsets, weights = bags(2, 37, 20, seed=dim, longest=9)  # rows repeat within and across bags
    g = torch.Generator().manual_seed(5)
    rows, states = [torch.randn(20, d, generator=g) for d in dims], [torch.rand(20, generator=g) for _ in dims]
    grad = torch.randn(37, sum(dims), generator=g)
    for w in (None, weights):
        new_rows, new_states = [r.clone() for r in rows], [s.clone() for s in states]
        grad_w = None if w is None else torch.zeros_like(w)
        tables = TableSet(new_rows, None, pooling, None, new_states)
        bag_backward(tables, values, offsets, w, grad, optimizer, 0.1, 1e-3, decay, grad_weights=grad_w)
        column = 0
        for t, d in enumerate(dims):
            span, bag, factor = coefficients(pooling[t], t, 37, offsets, w)
            upstream = grad[:, column : column + d].double()
            column += d
            dense = torch.zeros(20, d, dtype=torch.float64)
            dense.index_add_(0, values[span], upstream[bag] * factor[:, None])
            touched = torch.zeros(20, 1, dtype=torch.float64).index_fill_(0, values[span], 1.0)
            dense += decay * rows[t].double() * touched
            state, step = states[t].double(), torch.full((20, 1), 0.1, dtype=torch.float64)
            if optimizer == "row_wise_adagrad":
                state = state + dense.square().mean(1)
                step = 0.1 / (state.sqrt() + 1e-3)[:, None]
            expected = rows[t].double() - (0.0 if optimizer == "none" else step * dense)
            assert relative_to_largest(new_rows[t], expected) <= FP32_TOLERANCE
            assert relative_to_largest(new_states[t], state) <= FP32_TOLERANCE
            assert torch.equal(new_rows[t][touched[:, 0] == 0], rows[t][touched[:, 0] == 0])
            if grad_w is not None:
                share = coefficients(pooling[t], t, 37, offsets, None)[2]
                per_value = (upstream[bag] * rows[t].double()[values[span]]).sum(1) * share
                assert relative_to_largest(grad_w[span], per_value) <= FP32_TOLERANCE


def test_backward_has_the_same_bits_for_any_thread_count(isa) -> None:
    values, offsets, _ = bags(3, 400, 60, seed=1, longest=12)
    grad = torch.randn(400, 96, generator=torch.Generator().manual_seed(2))

    def step() -> torch.Tensor:
        rows = [torch.ones(60, 32) for _ in range(3)]
        tables = TableSet(rows, states=[torch.zeros(60) for _ in range(3)])
        bag_backward(tables, values, offsets, None, grad, "row_wise_adagrad", 0.1)
        return torch.cat(rows)

    before = torch.get_num_threads()
    first = step()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert torch.equal(step(), first)
            assert torch.equal(
                ops.embedding_bags([first] * 3, values, offsets), ops.embedding_bags([first] * 3, values, offsets)
            )
    finally:
        torch.set_num_threads(before)


ROWS = torch.ones(5, 4)
VALUES, OFFSETS = torch.tensor([0, 1, 2]), torch.tensor([0, 2, 3])
BAD = [
    (dict(tables=[]), ValueError, "tables: expected at least one table"),
    (dict(tables=[ROWS.double()]), TypeError, "table '0': is torch.float64"),
    (dict(tables=[ROWS[0]]), ValueError, r"table '0': expected \[rows, dim\], found shape \[4\]"),
    (dict(tables=[ROWS.T]), ValueError, "table '0': columns must be contiguous"),
    (dict(tables=[ROWS.to("meta")]), ValueError, "table '0': is on meta"),
    (dict(values=VALUES.int()), TypeError, "values: expected int64, found int32"),
    (dict(values=VALUES[None]), ValueError, r"values: expected one contiguous dimension, found shape \[1, 3\]"),
    (dict(values=[0, 1, 2]), TypeError, "values: expected a torch.Tensor, found list"),
    (
        dict(offsets=torch.tensor([0, 3, 2])),
        ValueError,
        r"offsets: must never decrease, but offsets\[2\] = 2 follows 3",
    ),
    (dict(offsets=torch.tensor([1, 2, 3])), ValueError, r"offsets: must start at 0, offsets\[0\] is 1"),
    (dict(offsets=torch.tensor([0, 2, 9])), ValueError, r"offsets: must end at the number of values \(3\).*is 9"),
    (dict(offsets=torch.tensor([0, 1])), ValueError, r"offsets: must end at the number of values \(3\)"),
    (dict(offsets=OFFSETS.int()), TypeError, "offsets: expected int64, found int32"),
    (dict(offsets=torch.empty(0, dtype=torch.int64)), ValueError, "offsets: 0 entries"),
    (dict(tables=[ROWS, ROWS], offsets=torch.tensor([0, 1, 2, 3])), ValueError, r"2 table\(s\) need 2 \* B \+ 1"),
    (dict(weights=torch.ones(2)), ValueError, r"weights: expected one per value \(3\), found 2"),
    (dict(weights=torch.ones(3).double()), TypeError, "weights: expected float32, found float64"),
    (dict(pooling="max"), ValueError, "pooling of table '0': found 'max'"),
    (dict(bounds="clamp"), ValueError, "bounds: found 'clamp'"),
    (dict(out=torch.empty(2, 4).bfloat16()), TypeError, "out: expected a torch.float32 tensor, found torch.bfloat16"),
    (dict(out=torch.empty(2, 5)), ValueError, r"out: expected \[2, 4\] on cpu, columns contiguous"),
    (dict(out=torch.empty(4, 2).T), ValueError, "out: expected .*columns contiguous, .*strides"),
    (dict(out=torch.empty(1, 4).expand(2, 4)), ValueError, "out: its elements overlap in memory"),
    (dict(out_dtype=torch.float16), TypeError, "out_dtype: expected torch.float32 or torch.bfloat16"),
    (dict(tables=[ROWS.byte()]), ValueError, r"scale of table '0': expected \[5, 2\] for torch.uint8 rows, found none"),
    (dict(scales=[torch.ones(5)]), ValueError, "scale of table '0': expected none for torch.float32 rows"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=range(len(BAD)))
def test_bad_arguments_name_themselves(change, error, message) -> None:
    with pytest.raises(error, match=message):
        ops.embedding_bags(**{"tables": [ROWS], "values": VALUES, "offsets": OFFSETS, **change})


def test_operator_is_well_formed_and_compiles() -> None:
    rows = [torch.randn(6, 4), torch.randn(5, 8)]
    values, offsets, weights = bags(2, 3, 5, seed=1)
    empty = torch.empty(0)
    arguments = (
        rows,
        [empty, empty],
        ["a", "b"],
        [False, True],
        [0, 0],
        values,
        offsets,
        weights,
        "error",
        torch.float32,
    )
    torch.library.opcheck(
        torch.ops.octavo.embedding_bags.default, arguments,
        test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"),
    )  # fmt: skip

    def f(values: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        return ops.embedding_bags(TABLES, values, offsets) * 2

    assert torch.equal(torch.compile(f, backend="eager", fullgraph=True)(values, offsets), f(values, offsets))


TABLES = TableSet([torch.randn(6, 4), torch.randn(5, 8)])


@pytest.mark.parametrize("dim", [1, 3, 7, 8, 9, 16, 20, 33, 64, 130])
def test_every_code_of_a_row_is_decoded_exactly(isa, dim) -> None:
    eights = torch.arange(256, dtype=torch.uint8)
    halves = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16)
    for codes, dtype in ((eights, torch.float8_e4m3fn), (halves, torch.float16), (halves, torch.bfloat16)):
        rows = torch.cat([codes, codes[: -len(codes) % dim]]).view(-1, dim).view(dtype)
        scales = [torch.ones(len(rows))] if dtype == torch.float8_e4m3fn else None
        values, offsets = torch.arange(len(rows)), torch.arange(len(rows) + 1)
        expected = rows.float()
        for kernel in _kernels(_core.Op.bag_forward):
            y = bag_forward(TableSet([rows], scales), values, offsets, None, kernel=kernel)
            assert torch.equal(y.isnan(), expected.isnan()), (kernel.name, dtype)
            normal = expected.abs().nan_to_num() >= 2.0**-126
            assert torch.equal(y[normal], expected[normal]), (kernel.name, dtype)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16", "e4m3", "int8", "int4"])
@pytest.mark.parametrize("dim", [1, 5, 8, 11, 16, 41, 67])
def test_neighbours_of_an_output_stay_as_they_are(isa, dtype, dim) -> None:
    made = [table(20, dim, dtype, seed=dim, place="separate")]
    values, offsets, _ = bags(1, 6, 20, seed=dim)
    for kernel in _kernels(_core.Op.bag_forward):
        for out_dtype in (torch.float32, torch.bfloat16):
            wide = torch.full((6, dim + 64), 7.0, dtype=out_dtype)
            tables = table_set(made, [dim], dtype)
            y = bag_forward(tables, values, offsets, None, "error", out_dtype, kernel, wide[:, 32 : 32 + dim])
            assert torch.equal(y, bag_forward(tables, values, offsets, out_dtype=out_dtype, kernel=kernel))
            assert bool((wide[:, :32] == 7).all()), kernel.name
            assert bool((wide[:, 32 + dim :] == 7).all()), kernel.name
