"""ops.embedding_rows: every format, kernel and level against decoded rows in FP64; bounds; arguments."""

import warnings

import pytest
import torch
from embedding_support import FORMATS, bags, table, table_set

from octavo import _core, ops
from octavo.ops.checks import BF16_TOLERANCE, FP32_TOLERANCE, relative_to_largest
from octavo.ops.embedding import TableSet
from octavo.ops.embedding_checks import check_row_lookup
from octavo.ops.embedding_rows import row_lookup


def _kernels() -> list[_core.Kernel]:
    return [k for k in _core.kernels() if k.op == _core.Op.row_lookup and k.supported]


def test_every_kernel_passes_qualification(isa) -> None:
    for kernel in _kernels():
        assert check_row_lookup(kernel) == "", kernel.name


@pytest.mark.parametrize(("dtype", "place"), FORMATS)
@pytest.mark.parametrize("dim", [1, 3, 17, 64, 100, 128, 130, 300])
def test_formats_and_dimensions(isa, dtype, place, dim) -> None:
    dims = [dim, 16, 5]
    made = [table(50, d, dtype, seed=d, place=place) for d in dims]
    values, offsets, _ = bags(3, 23, 50, seed=dim)
    ends = offsets[::23]
    for kernel in _kernels():
        for out_dtype, bound in ((torch.float32, FP32_TOLERANCE), (torch.bfloat16, BF16_TOLERANCE)):
            found = row_lookup(table_set(made, dims, dtype), values, offsets, out_dtype=out_dtype, kernel=kernel)
            again = row_lookup(table_set(made, dims, dtype), values, offsets, out_dtype=out_dtype, kernel=kernel)
            assert len(found) == 3
            for t, rows in enumerate(found):
                assert rows.dtype == out_dtype
                assert torch.equal(rows, again[t])
                expected = made[t][2][values[ends[t] : ends[t + 1]]]
                assert relative_to_largest(rows, expected) <= bound, kernel.name


def test_many_lookups_are_shared_among_threads(isa) -> None:
    g = torch.Generator().manual_seed(1)
    rows = [torch.randn(400, d, generator=g) for d in (32, 7, 64)]
    lengths = torch.tensor([5000, 0, 9001])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    values = torch.randint(0, 400, (int(offsets[-1]),), generator=g)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            for t, found in enumerate(ops.embedding_rows(rows, values, offsets)):
                assert torch.equal(found, rows[t][values[offsets[t] : offsets[t + 1]]])
    finally:
        torch.set_num_threads(before)


def test_nothing_to_look_up(isa) -> None:
    none = torch.empty(0, dtype=torch.int64)
    for offsets in (torch.zeros(1, dtype=torch.int64), torch.zeros(5, dtype=torch.int64)):
        found = ops.embedding_rows([torch.ones(3, 4), torch.empty(0, 2)], none, offsets)
        assert [list(rows.shape) for rows in found] == [[0, 4], [0, 2]]


@pytest.mark.parametrize("index", [-1, 40, 1 << 40])
def test_bounds(isa, index) -> None:
    tables = TableSet([torch.ones(50, 8), torch.ones(40, 8)], names=["user", "item"])
    values, offsets = torch.tensor([1, 2, 3, index]), torch.tensor([0, 2, 4])
    with pytest.raises(IndexError, match=rf"item.*{index}.*40"):
        ops.embedding_rows(tables, values, offsets)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = ops.embedding_rows(tables, values, offsets, bounds="ignore")
    assert torch.equal(found[0], torch.ones(2, 8))
    assert torch.equal(found[1], torch.tensor([[1.0] * 8, [0.0] * 8]))
    with pytest.warns(UserWarning, match="1 of 4 row indices lie outside their tables and give zeros"):
        ops.embedding_rows(tables, values, offsets, bounds="warn")


def test_output_given_by_the_caller(isa) -> None:
    rows, values = torch.randn(9, 5), torch.tensor([8, 0, 3])
    out = torch.zeros(3, 9)[:, 1:6]
    assert ops.embedding_rows([rows], values, torch.tensor([0, 3]), out=[out])[0] is out
    assert torch.equal(out, rows[values])


ROWS, VALUES, OFFSETS = torch.ones(5, 4), torch.tensor([0, 1, 2]), torch.tensor([0, 2, 3])
BAD = [
    (dict(tables=[]), ValueError, "tables: expected at least one table"),
    (dict(offsets=torch.tensor([0, 3, 2])), ValueError, r"offsets: must never decrease"),
    (dict(offsets=torch.tensor([0, 2, 9])), ValueError, r"offsets: must end at the number of values \(3\).*is 9"),
    (dict(offsets=torch.tensor([1, 2, 3])), ValueError, r"offsets: must start at 0"),
    (dict(values=VALUES.int()), TypeError, "values: expected int64, found int32"),
    (dict(bounds="clamp"), ValueError, "bounds: found 'clamp'"),
    (dict(out_dtype=torch.float16), TypeError, "out_dtype: expected torch.float32 or torch.bfloat16"),
    (dict(out=[]), ValueError, r"out: expected one per table \(1\), found 0"),
    (dict(out=[torch.empty(2, 4)]), ValueError, r"out: expected \[3, 4\] on cpu"),
    (dict(tables=[ROWS.byte()]), ValueError, r"scale of table '0': expected \[5, 2\]"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=range(len(BAD)))
def test_bad_arguments_name_themselves(change, error, message) -> None:
    with pytest.raises(error, match=message):
        ops.embedding_rows(**{"tables": [ROWS], "values": VALUES, "offsets": OFFSETS, **change})


def test_operator_is_well_formed_and_compiles() -> None:
    rows = [torch.randn(6, 4), torch.randn(5, 8)]
    values, offsets, _ = bags(2, 3, 5, seed=1)
    empty = torch.empty(0)
    arguments = (rows, [empty, empty], ["a", "b"], [0, 0], values, offsets, "error", torch.float32)
    torch.library.opcheck(
        torch.ops.octavo.embedding_rows.default, arguments, test_utils=("test_schema", "test_faketensor")
    )
    tables = TableSet(rows)

    def f(values: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        first, second = ops.embedding_rows(tables, values, offsets)
        return first.sum() + second.sum()

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        assert torch.equal(torch.compile(f, backend="eager", fullgraph=True)(values, offsets), f(values, offsets))
