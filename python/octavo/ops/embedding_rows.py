"""``embedding_rows``: rows of many tables one by one, without pooling (kernels: ``*.row_lookup``)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import pairwise

import torch

from octavo import _core
from octavo.ops import kernels
from octavo.ops._library import define
from octavo.ops._types import choice
from octavo.ops.embedding import (
    BOUNDS,
    OUT_TYPES,
    TableLists,
    TableSet,
    check_indices,
    check_out,
    new_out,
    table_set,
)


def embedding_rows(
    tables: TableSet | Sequence[torch.Tensor],
    values: torch.Tensor,
    offsets: torch.Tensor,
    scales: Sequence[torch.Tensor | None] | None = None,
    bounds: str = "error",
    out_dtype: torch.dtype = torch.float32,
    out: Sequence[torch.Tensor] | None = None,
) -> list[torch.Tensor]:
    """Rows of T tables as features that are sequences need them: for table t [V_t, D_t], a row for each of its lookups.

    Args:
        tables, values, offsets, scales: as of :func:`embedding_bags`; table t's lookups, V_t of them, are
            ``values[offsets[t*B] : offsets[(t+1)*B]]``. How a :class:`TableSet` pools plays no part.
        bounds: an index outside its table raises IndexError (``error``), or gives zeros, with one warning a call that
            counts them (``warn``) or silently (``ignore``). On CUDA as for :func:`embedding_bags`; besides, how many
            rows each table has is read back from ``offsets``, which waits for the device.
        out_dtype: float32 or bfloat16.
        out: T such matrices, columns contiguous: filled and returned.

    No gradients: tables train through :class:`octavo.nn.EmbeddingCollection`. Raises TypeError or ValueError naming
    the argument.
    """
    if not isinstance(tables, TableSet):
        tables = TableSet(tables, scales)
    choice("bounds", bounds, tuple(BOUNDS))
    if out_dtype not in OUT_TYPES:
        raise TypeError(f"out_dtype: expected torch.float32 or torch.bfloat16, found {out_dtype}")
    if torch.compiler.is_compiling():
        rows = traced_rows(tables, values, offsets, bounds, out_dtype)
        return rows if out is None else [y.copy_(x) for x, y in zip(rows, out, strict=True)]
    return row_lookup(tables, values, offsets, bounds, out_dtype, out=out)


def traced_rows(
    tables: TableSet | TableLists, values: torch.Tensor, offsets: torch.Tensor, bounds: str, out_dtype: torch.dtype
) -> list[torch.Tensor]:
    """The call as one node ``octavo::embedding_rows`` of a graph, and the split of what it gives."""
    empty = values.new_empty(0, dtype=torch.float32)
    scales = [empty if s is None else s for s in tables.scales]
    flat = torch.ops.octavo.embedding_rows(
        tables.rows, scales, tables.names, [dim or 0 for dim in tables.int4_dims], values, offsets, bounds, out_dtype
    )
    return list(flat)


def row_lookup(
    tables: TableSet,
    values: torch.Tensor,
    offsets: torch.Tensor,
    bounds: str = "error",
    out_dtype: torch.dtype = torch.float32,
    kernel: _core.Kernel | None = None,
    out: Sequence[torch.Tensor] | None = None,
) -> list[torch.Tensor]:
    """The eager path of :func:`embedding_rows`. ``kernel`` runs that one instead of the preferred one."""
    batch = check_indices(len(tables), values, offsets, None, tables.device)
    ends = offsets[::batch].tolist() if batch else [0] * (len(tables) + 1)
    counts = [end - begin for begin, end in pairwise(ends)]
    if out is None:
        if min(counts) < 0 or sum(counts) > values.shape[0]:
            counts = [0] * len(counts)  # the kernel says which offset is wrong
        out = [new_out(rows, dim, out_dtype, tables.device) for rows, dim in zip(counts, tables.widths, strict=True)]
    elif len(out) != len(tables):
        raise ValueError(f"out: expected one per table ({len(tables)}), found {len(out)}")
    else:
        for matrix, shape in zip(out, zip(counts, tables.widths, strict=True), strict=True):
            check_out(matrix, list(shape), out_dtype, tables.device)
    if kernel is None:
        kernel = kernels.serving(_core.Op.row_lookup, (tables.device.type,))
    outside = _core.row_lookup(
        kernel, tables.core, batch, values.data_ptr(), values.shape[0], offsets.data_ptr(), BOUNDS[bounds],
        [(y.data_ptr(), y.shape[0], y.stride(0)) for y in out], OUT_TYPES[out_dtype],
        kernels.stream_of(values),
    )  # fmt: skip
    if outside and bounds == "warn":
        warnings.warn(
            f"embedding_rows: {outside} of {values.shape[0]} row indices lie outside their tables and give zeros",
            stacklevel=3,
        )
    return list(out)


def _embedding_rows(
    rows: list[torch.Tensor], scales: list[torch.Tensor], names: list[str], int4_dims: list[int], values: torch.Tensor,
    offsets: torch.Tensor, bounds: str, out_dtype: torch.dtype,
) -> list[torch.Tensor]:  # fmt: skip
    return row_lookup(table_set(rows, scales, names, int4_dims), values, offsets, bounds, out_dtype)


def _fake_embedding_rows(
    rows: list[torch.Tensor], scales: list[torch.Tensor], names: list[str], int4_dims: list[int], values: torch.Tensor,
    offsets: torch.Tensor, bounds: str, out_dtype: torch.dtype,
) -> list[torch.Tensor]:  # fmt: skip
    context = torch.library.get_ctx()
    return [
        values.new_empty((context.new_dynamic_size(), dim or r.shape[1]), dtype=out_dtype)
        for r, dim in zip(rows, int4_dims, strict=True)
    ]


define(
    "embedding_rows(Tensor[] rows, Tensor[] scales, str[] names, int[] int4_dims, Tensor values, Tensor offsets, "
    "str bounds, ScalarType out_dtype) -> Tensor[]",
    _embedding_rows,
    _fake_embedding_rows,
)
