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
