"""What the tests of embedding bags share: jagged input, and pooling in FP64."""

from __future__ import annotations

import torch

from octavo.ops.embedding import TableSet
from octavo.ops.table_formats import decode_rows, encode_rows, row_bytes, rows_in


def bags(
    tables: int, batch: int, rows: int, seed: int, longest: int = 5
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """values [V], offsets [tables * batch + 1], weights [V]; some bags are empty."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, longest + 1, (tables * batch,), generator=g)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    count = int(offsets[-1])
    return torch.randint(0, max(rows, 1), (count,), generator=g), offsets, torch.randn(count, generator=g)


def table(
    rows: int, dim: int, dtype: str, seed: int, place: str = "separate"
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Codes, scales and values in FP64 of a table in a row format, its scales at a place."""
    x = torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed))
    codes, scale = encode_rows(x, dtype, place)
    if dtype == "int4":
        pairs = torch.stack([codes % 16, codes // 16], dim=2).flatten(1)
        exact = pairs[:, :dim].double()
    else:
        exact = codes.double()
    if scale is None:
        return codes, None, exact
    wide = scale.float().double()
    exact = exact * wide[:, None] if scale.dim() == 1 else exact * wide[:, :1] + wide[:, 1:]
    if place == "in_row":
        inside = rows_in(torch.full((rows, row_bytes(dtype, dim)), 255, dtype=torch.uint8), dtype, dim)
        return inside[0].copy_(codes), inside[1].copy_(scale), exact
    return codes, scale, exact


FORMATS = (
    *((name, "separate") for name in ("fp32", "fp16", "bf16", "e4m3", "int8", "int4")),
    *((name, "in_row") for name in ("e4m3", "int8", "int4")),
    ("e4m3", "power_of_two"),
)


def table_set(made: list, dims: list[int], dtype: str, pooling: str | list[str] = "sum", **more) -> TableSet:
    """The tables that ``table`` made, of one format."""
    int4_dims = [dim if dtype == "int4" else None for dim in dims]
    return TableSet([m[0] for m in made], [m[1] for m in made], pooling, int4_dims=int4_dims, **more)


def decoded(codes: torch.Tensor, scale: torch.Tensor | None, dtype: str, dim: int) -> torch.Tensor:
    """Values of rows in a format."""
    return decode_rows(codes, scale, dim if dtype == "int4" else None)
