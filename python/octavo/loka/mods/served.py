"""octavo's tables behind the signatures of ``torch.nn.Embedding`` and ``EmbeddingBag``, frozen, for serving."""

from __future__ import annotations

from typing import Any

import torch

from octavo import nn
from octavo.ops.table_formats import decode_rows

_CHUNK = 1 << 16  # rows encoded at a time


class _Served:
    """What both adapters share: one frozen table named ``weight`` made of FP32 rows [rows, dim]."""

    tables: list[nn.Table]

    def __init__(self, weight: torch.Tensor, dtype: str, pooling: str = "sum") -> None:
        super().__init__([nn.Table("weight", *weight.shape, dtype, pooling)])  # type: ignore[call-arg]
        values = weight.detach()
        for begin in range(0, len(values), _CHUNK):
            self._encode(self.tables[0], begin, values[begin : begin + _CHUNK])  # type: ignore[attr-defined]

    def reset_parameters(self, half_width: float | None = None, generator: Any = None) -> None:
        """Nothing: the rows are those of the table that this one replaces."""

    def decoded(self) -> torch.Tensor:
        """The rows as FP32 [rows, dim]."""
        return decoded_rows(self, self.tables[0])  # type: ignore[arg-type]


class ServedEmbedding(_Served, nn.EmbeddingCollection):
    """``torch.nn.Embedding`` over rows of eight bits: input [...] int64 or int32 -> [..., dim] float32.

    Raises IndexError for an index outside the table.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        values = input.reshape(-1).long()
        offsets = torch.arange(2, device=values.device) * values.numel()
        rows = super().forward(values, offsets)["weight"]
        torch._check(rows.shape[0] == values.numel())  # else a graph does not know it
        return rows.view(*input.shape, rows.shape[1])


class ServedEmbeddingBag(_Served, nn.EmbeddingBags):
    """``torch.nn.EmbeddingBag`` over rows of eight bits, mode sum or mean: input [B, L], or [V] with ``offsets`` [B],
    [B + 1] with ``include_last_offset``, and for sum ``per_sample_weights`` of input's shape -> [B, dim] float32.

    Raises IndexError for an index outside the table.
    """

    def __init__(self, weight: torch.Tensor, dtype: str, mode: str, include_last_offset: bool) -> None:
        super().__init__(weight, dtype, mode)
        self.mode, self.include_last_offset = mode, include_last_offset

    def forward(  # type: ignore[override]
        self,
        input: torch.Tensor,
        offsets: torch.Tensor | None = None,
        per_sample_weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if per_sample_weights is not None and (self.mode != "sum" or per_sample_weights.shape != input.shape):
            raise ValueError(
                f"per_sample_weights: expected mode 'sum' and input's shape {list(input.shape)}, found mode "
                f"{self.mode!r} and shape {list(per_sample_weights.shape)}"
            )
        values = input.reshape(-1).long()
        if input.dim() == 2:
            if offsets is not None:
                raise ValueError("offsets: an input of two dimensions has bags of its rows; leave offsets out")
            bags = torch.arange(input.shape[0] + 1, device=input.device) * input.shape[1]
        elif input.dim() != 1 or offsets is None:
            raise ValueError(f"input: expected [B, L], or [V] with offsets, found shape {list(input.shape)}")
        elif self.include_last_offset:
            bags = offsets.long()
        else:
            bags = torch.cat([offsets.long(), offsets.new_full((1,), values.numel(), dtype=torch.int64)])
        weights = None if per_sample_weights is None else per_sample_weights.reshape(-1)
        return super().forward(values, bags, weights)


def decoded_rows(module: nn.EmbeddingBags, table: nn.Table) -> torch.Tensor:
    """The rows of ``table`` as FP32 [stored rows, dim]."""
    rows, scale = module.rows.get(table.name), module.scale.get(table.name)
    assert rows is not None
    dim = table.dim if table.dtype == "int4" else None
    found = torch.empty(len(rows), table.dim, device=rows.device)
    for begin in range(0, len(rows), _CHUNK):
        part = slice(begin, begin + _CHUNK)
        found[part] = decode_rows(rows[part], None if scale is None else scale[part], dim)
    return found
