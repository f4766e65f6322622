"""Tensors [B, R, C] as the compiled core reads them."""

from __future__ import annotations

import torch

from octavo.ops._types import DTYPES


def dense(t: torch.Tensor) -> torch.Tensor:
    """``t`` [B, R, C], copied unless its rows or its columns are neighbours and its numbers are what memory holds."""
    t = t.resolve_neg()
    near = t.shape[2] <= 1 or t.stride(2) == 1 or t.shape[1] <= 1 or t.stride(1) == 1
    return t if near else t.clone(memory_format=torch.contiguous_format)  # also of no numbers


def batch_view(t: torch.Tensor) -> tuple[int, int, int, int, int, int, int]:
    """A dense ``t``'s address, rows, columns, strides and type."""
    _, rows, columns = t.shape
    across, down, along = t.stride()
    return t.data_ptr(), rows, columns, across, down, 1 if columns <= 1 else along, DTYPES[t.dtype]
