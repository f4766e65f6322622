"""The ids of dynamic tables on a device: lookups that admit nothing find their rows there, without the host."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from octavo.nn.dynamic import DynamicRows, IdRows
from octavo.nn.table_memory import sent
from octavo.ops.find_rows import find_rows


class DeviceIds:
    """Copies of the slots of ``ids``' maps on ``device``, 24 bytes a row, for the tables ``names``.

    The host's maps decide which id has which row; :meth:`refresh` brings what changed there, in the order of the
    current stream and without waiting for it. The copies stay where they are, so that CUDA graphs may read them.
    """

    def __init__(self, ids: IdRows, names: Sequence[str], device: torch.device) -> None:
        _expect_no_capture(device)
        self.ids, self.device = ids, device
        self._tables = [ids.by_name.get(name) for name in names]
        self._slots = [None if table is None else _room(table, device) for table in self._tables]
        self._copy(every=True)

    def refresh(self) -> None:
        """Bring what changed since the last time. Raises RuntimeError under capture of a CUDA graph if anything did."""
        if any(table is not None and table.map.copy_is_old for table in self._tables):
            _expect_no_capture(self.device)
            self._copy()

    def find(self, values: torch.Tensor, offsets: torch.Tensor, tables: slice = slice(None)) -> torch.Tensor:
        """Rows [V] of the ids ``values`` [V] of ``tables``, on the device; values of fixed tables as they are."""
        return find_rows(self._slots[tables], values, offsets)

    def _copy(self, every: bool = False) -> None:
        for table, slots in zip(self._tables, self._slots, strict=True):
            if table is None or slots is None:
                continue
            map = table.map  # another one since the table forgot its ids
            changed = None if every else map.changed_slots()
            if changed is None:
                copy = torch.empty(slots.shape, dtype=torch.int64, pin_memory=self.device.type == "cuda")
                map.copy_slots(copy.data_ptr())
                slots.copy_(copy, non_blocking=True)
            elif changed:
                places = torch.frombuffer(bytearray(changed), dtype=torch.int64).unique()
                some = torch.empty((len(places), 2), dtype=torch.int64)
                map.copy_slots(places.data_ptr(), len(places), some.data_ptr())
                slots.index_copy_(0, sent(places, self.device), sent(some, self.device))
            map.mark_copied()


def _room(table: DynamicRows, device: torch.device) -> torch.Tensor:
    with torch.inference_mode(False):  # or nothing could be copied into it but in inference mode
        return torch.empty((table.map.num_slots, 2), dtype=torch.int64, device=device)


def _expect_no_capture(device: torch.device) -> None:
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "dynamic tables: the device has not their ids of now, and a CUDA graph would copy these at every replay; "
            "call refresh_ids() before the capture"
        )
