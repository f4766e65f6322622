"""What the tests of embedding bags share: jagged input, and pooling in FP64."""

from __future__ import annotations

import torch

from octavo.ops.table_formats import encode_rows


def bags(
    tables: int, batch: int, rows: int, seed: int, longest: int = 5
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """values [V], offsets [tables * batch + 1], weights [V]; some bags are empty."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, longest + 1, (tables * batch,), generator=g)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    count = int(offsets[-1])
    return torch.randint(0, max(rows, 1), (count,), generator=g), offsets, torch.randn(count, generator=g)


def table(rows: int, dim: int, dtype: str, seed: int) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Codes, scales and values in FP64 of a table in a row format."""
    x = torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed))
    codes, scale = encode_rows(x, dtype)
    if scale is None:
        return codes, None, codes.double()
    wide = scale.double()
    exact = codes.double() * (wide[:, None] if scale.dim() == 1 else wide[:, :1])
    return codes, scale, exact if scale.dim() == 1 else exact + wide[:, 1:]


def coefficients(
    pooling: str, t: int, batch: int, offsets: torch.Tensor, weights: torch.Tensor | None
) -> tuple[slice, torch.Tensor, torch.Tensor]:
    """Span of table t's values; the bag and the coefficient of each of them."""
    own = offsets[t * batch : (t + 1) * batch + 1]
    span, lengths = slice(int(own[0]), int(own[-1])), own.diff()
    bag = torch.repeat_interleave(torch.arange(batch), lengths)
    factor = torch.ones(len(bag), dtype=torch.float64) if weights is None else weights[span].double()
    return span, bag, factor / lengths[bag] if pooling == "mean" else factor


def pooled(
    tables: list[torch.Tensor],
    pooling: list[str],
    values: torch.Tensor,
    offsets: torch.Tensor,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """[B, sum of dims] in FP64."""
    batch = (len(offsets) - 1) // len(tables)
    parts = []
    for t, rows in enumerate(tables):
        span, bag, factor = coefficients(pooling[t], t, batch, offsets, weights)
        out = torch.zeros(batch, rows.shape[1], dtype=torch.float64)
        parts.append(out.index_add_(0, bag, rows.double()[values[span]] * factor[:, None]))
    return torch.cat(parts, 1)
