"""Rows of ids on a device (kernels: ``*.find_rows``). A CPU asks the tables' ``IdMap`` itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from octavo import _core
from octavo.ops import kernels
from octavo.ops.embedding import check_indices


def find_rows(
    maps: Sequence[torch.Tensor | None],
    values: torch.Tensor,
    offsets: torch.Tensor,
    kernel: _core.Kernel | None = None,
) -> torch.Tensor:
    """Rows [V] int64 of the ids ``values`` [V] of T tables, without waiting for the device.

    Args:
        maps: a table's copy of its IdMap's slots, int64 [slots, 2] (id, row from 0, -1: empty) on the device of
            ``values``; None: its values are rows already, and are returned.
        values, offsets: as of :func:`octavo.ops.embedding_bags`. The row of an id is one more than its slot says, that
            of an id without one 0; of a value that no bag holds -1. Offsets that decrease give rows of any table.
        kernel: runs that one instead of the preferred one.

    Raises TypeError or ValueError naming the argument.
    """
    batch = check_indices(len(maps), values, offsets, None, values.device)
    for slots in maps:
        if slots is not None and slots.device != values.device:
            raise ValueError(f"values: is on {values.device}, the maps are on {slots.device}; move it with .to()")
    if kernel is None:
        kernel = kernels.serving(_core.Op.find_rows, (values.device.type,))
    rows = torch.empty_like(values)
    _core.find_rows(
        kernel, [(0, 0) if slots is None else (slots.data_ptr(), len(slots)) for slots in maps], batch,
        values.data_ptr(), len(values), offsets.data_ptr(), rows.data_ptr(), kernels.stream_of(values),
    )  # fmt: skip
    return rows
