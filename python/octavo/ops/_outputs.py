"""Memory of large outputs, used again once the last tensor on it has gone.

Fresh pages cost more than the lookups of short bags do: 2 MiB from an allocator that maps and unmaps take 500 page
faults a call.
"""

from __future__ import annotations

import weakref

import numpy as np
import torch

_LEAST, _KEPT = 1 << 20, 64 << 20  # bytes: smaller outputs come from torch; this much is kept for later
_free: dict[int, list[np.ndarray]] = {}  # floats -> blocks nobody uses
_lent: dict[int, _Lent] = {}
_LINE = 16  # floats


class _Lent(weakref.ref):  # type: ignore[type-arg]
    """Calls :func:`_take_back` when the array that a tensor's storage holds is gone."""

    __slots__ = ("block",)
    block: np.ndarray


def empty(rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
    """As ``torch.empty((rows, columns), dtype=dtype)``; large float32 ones start on a cache line and do not resize."""
    floats = rows * columns
    if dtype is not torch.float32 or not _LEAST <= 4 * floats <= _KEPT:
        return torch.empty((rows, columns), dtype=dtype)
    try:
        block = _free[floats].pop()
    except (KeyError, IndexError):
        wide = np.empty(floats + _LINE, dtype=np.float32)
        block = wide[-(wide.ctypes.data // 4) % _LINE :][:floats]
    array = block.reshape(rows, columns)
    lent = _Lent(array, _take_back)
    lent.block = block
    _lent[id(lent)] = lent
    return torch.from_numpy(array)


def _take_back(lent: _Lent) -> None:
    del _lent[id(lent)]
    block = lent.block
    kept = sum(floats * len(blocks) for floats, blocks in list(_free.items()))
    if 4 * (kept + block.size) > _KEPT:
        _free.clear()
    _free.setdefault(block.size, []).append(block)
