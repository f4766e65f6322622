"""What the embedding-bag kernels are held to before they may be chosen."""

from __future__ import annotations

import torch

from octavo import _core
from octavo.ops.checks import BF16_TOLERANCE, FP32_TOLERANCE, relative_to_largest
from octavo.ops.embedding import TableSet, bag_backward, bag_forward
from octavo.ops.embedding_rows import row_lookup
from octavo.ops.reference import coefficients, pooled_reference
from octavo.ops.table_formats import decode_rows, encode_rows, row_bytes, rows_in

# Dimensions of the tables of one call: the smallest, tails, a whole cache line of each row format, a wide one.
DIMS = (1, 3, 64, 130)
_ROWS, _BATCH = 37, 61


def check_bag_forward(kernel: _core.Kernel) -> str:
    """Every row format and output type, sum and mean, with and without weights, empty and skewed bags, in FP64."""
    g = torch.Generator().manual_seed(11)
    values, offsets, weights = _bags(g)
    pooling = ["sum", "mean", "mean", "sum"]
    for format, place in _FORMATS:
        tables, decoded = _tables(format, place, pooling, g)
        for w in (None, weights):
            ref = pooled_reference(decoded, pooling, values, offsets, w)
            for dtype, bound in ((torch.float32, FP32_TOLERANCE), (torch.bfloat16, BF16_TOLERANCE)):
                error = relative_to_largest(
                    bag_forward(tables, values, offsets, w, out_dtype=dtype, kernel=kernel), ref
                )
                if not error <= bound:
                    return (
                        f"bag_forward rows {format} {place} -> {dtype}, dims {DIMS}, "
                        f"{'weighted, ' if w is not None else ''}batch {_BATCH}: expected error <= {bound:.1e} "
                        f"of the largest element, found {error:.1e}"
                    )
    return ""


def check_row_lookup(kernel: _core.Kernel) -> str:
    """Every row format and output type, rows one by one, in FP64."""
    g = torch.Generator().manual_seed(13)
    values, offsets, _ = _bags(g)
    for format, place in _FORMATS:
        tables, decoded = _tables(format, place, "sum", g)
        spans = offsets[:: (len(offsets) - 1) // len(DIMS)].tolist()
        for dtype, bound in ((torch.float32, FP32_TOLERANCE), (torch.bfloat16, BF16_TOLERANCE)):
            found = row_lookup(tables, values, offsets, out_dtype=dtype, kernel=kernel)
            for t, rows in enumerate(found):
                error = relative_to_largest(rows, decoded[t][values[spans[t] : spans[t + 1]]])
                if not error <= bound:
                    return (
                        f"row_lookup rows {format} {place} -> {dtype}, dim {DIMS[t]}, {len(rows)} lookups: expected "
                        f"error <= {bound:.1e} of the largest element, found {error:.1e}"
                    )
    return ""


def check_bag_backward(kernel: _core.Kernel) -> str:
    """One step of each optimizer on rows that repeat within and across bags, against FP64."""
    g = torch.Generator().manual_seed(12)
    values, offsets, weights = _bags(g)
    pooling = ["sum", "mean", "mean", "sum"]
    rows = [torch.randn(_ROWS, dim, generator=g) for dim in DIMS]
    states = [torch.rand(_ROWS, generator=g) for _ in DIMS]
    grad = torch.randn(_BATCH, sum(DIMS), generator=g)
    for optimizer in ("sgd", "row_wise_adagrad"):
        for w in (None, weights):
            new_rows, new_states = [r.clone() for r in rows], [s.clone() for s in states]
            tables = TableSet(new_rows, None, pooling, None, new_states)
            bag_backward(tables, values, offsets, w, grad, optimizer, lr=0.1, eps=1e-6, kernel=kernel)
            expected = _stepped(rows, states, pooling, values, offsets, w, grad, optimizer, lr=0.1, eps=1e-6)
            pairs = zip([*new_rows, *new_states], expected, strict=True)
            error = max(relative_to_largest(y, ref) for y, ref in pairs)
            if not error <= FP32_TOLERANCE:
                return (
                    f"bag_backward {optimizer}, dims {DIMS}, {'weighted, ' if w is not None else ''}batch {_BATCH}: "
                    f"expected error <= {FP32_TOLERANCE:.1e} of the largest element, found {error:.1e}"
                )
    return ""


def _bags(g: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """values [V], offsets [T * B + 1], weights [V] with empty bags and one very long bag."""
    lengths = torch.randint(0, 5, (len(DIMS) * _BATCH,), generator=g)
    lengths[7] = 300
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    count = int(offsets[-1])
    return torch.randint(0, _ROWS, (count,), generator=g), offsets, torch.randn(count, generator=g)


_FORMATS = (
    *((name, "separate") for name in ("fp32", "fp16", "bf16", "e4m3", "int8", "int4")),
    *((name, "in_row") for name in ("e4m3", "int8", "int4")),
    ("e4m3", "power_of_two"),
)


def _tables(
    format: str, place: str, pooling: str | list[str], g: torch.Generator
) -> tuple[TableSet, list[torch.Tensor]]:
    """Tables of a format, scales at a place, and their values in FP64."""
    rows: list[torch.Tensor] = []
    scales: list[torch.Tensor | None] = []
    decoded = []
    int4_dims = [dim if format == "int4" else None for dim in DIMS]
    for dim, int4_dim in zip(DIMS, int4_dims, strict=True):
        codes, scale = encode_rows(torch.randn(_ROWS, dim, generator=g), format, place)
        decoded.append(decode_rows(codes, scale, int4_dim, torch.float64))
        if place == "in_row":
            apart, (codes, scale) = (
                (codes, scale),
                rows_in(torch.zeros(_ROWS, row_bytes(format, dim), dtype=torch.uint8), format, dim),
            )
            codes.copy_(apart[0])
            scale.copy_(apart[1])  # type: ignore[arg-type]
        rows.append(codes)
        scales.append(scale)
    return TableSet(rows, scales, pooling, int4_dims=int4_dims), decoded


def _stepped(
    rows: list[torch.Tensor], states: list[torch.Tensor], pooling: list[str], values: torch.Tensor,
    offsets: torch.Tensor,
    weights: torch.Tensor | None, grad: torch.Tensor, optimizer: str, lr: float, eps: float,
) -> list[torch.Tensor]:  # fmt: skip
    """Rows, then states, after one step in FP64."""
    new_rows, new_states, column = [], [], 0
    for t, (table, state) in enumerate(zip(rows, states, strict=True)):
        dim = table.shape[1]
        span, bag, factor = coefficients(pooling[t], t, _BATCH, offsets, weights)
        g = torch.zeros(_ROWS, dim, dtype=torch.float64)
        g.index_add_(0, values[span], grad[:, column : column + dim].double()[bag] * factor[:, None])
        column += dim
        s, step = state.double(), torch.full((_ROWS,), lr, dtype=torch.float64)
        if optimizer == "row_wise_adagrad":
            s = s + g.square().mean(1)
            step = lr / (s.sqrt() + eps)
        new_rows.append(table.double() - step[:, None] * g)
        new_states.append(s)
    return [*new_rows, *new_states]
