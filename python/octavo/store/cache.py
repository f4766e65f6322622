"""What a cache of records does for whoever serves from it."""

from __future__ import annotations

from typing import Protocol

import torch

from octavo.store.record import Records


class RecordCache(Protocol):
    """Records by (user, item), for so long as they are fresh; back ends in a process or on a server.

    An answer never mixes versions: what was put with another version than the newest is absent.
    """

    def put(self, user: torch.Tensor, item: torch.Tensor, records: Records, now_ms: int) -> None:
        """Keep ``records`` for the pairs (user, item) [n] int64, replacing what is there."""

    def get(self, user: torch.Tensor, item: torch.Tensor, now_ms: int) -> tuple[Records, torch.Tensor]:
        """Records of n pairs, and which are fresh [n] bool; the others are unknown (:meth:`Records.unknown`)."""
