"""Tables whose ids are not known beforehand: which row an id has, and what a new row starts as."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from octavo import _core


@dataclass(frozen=True)
class Dynamic:
    """The ids of a :class:`Table` are any 64-bit integers; at most ``rows`` of them have a row at once.

    ``admit_after``: sightings in training after which an id gets a row, 1..255. ``max_age``: an id last seen longer ago
    may lose its row (in units of ``EmbeddingBags.now``); None = none is too old.

    When all rows are taken, a new id makes room: those too old go, then those of least (score, last seen, id)
    until a sixteenth of the rows is free; ids of the same batch never do. A batch that holds an id adds one to its
    score, from at least the highest score that room was made from to at most 32 above it: an id is worth what it was
    lately.
    """

    admit_after: int = 1
    max_age: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.admit_after <= 255:
            raise ValueError(f"admit_after: expected 1..255 sightings, found {self.admit_after}")
        if self.max_age is not None and self.max_age < 1:
            raise ValueError(f"max_age: expected 1 or more, or None, found {self.max_age}")


SHARED = 0  # the row of every id that has none: starts at zero, trains like any other


class DynamicRows:
    """Which row each id of one table has: 1..``max_rows``. Ids without one read row 0, which they share.

    No two ids ever share another row. Which row an id gets depends on the calls alone, not on threads; a row starts
    with values that are a function of (``seed``, id), its optimizer state at zero.
    """

    def __init__(self, max_rows: int, dim: int, dynamic: Dynamic) -> None:
        self.max_rows, self.dim, self.dynamic = max_rows, dim, dynamic
        self.seed, self.half_width, self.clock = 0, 0.0, 0
        self.map = _core.IdMap(max_rows, dynamic.admit_after, dynamic.max_age or 0)

    def __len__(self) -> int:
        return len(self.map)

    @property
    def nbytes(self) -> int:
        """Of memory besides the rows, however many ids there are."""
        return self.map.nbytes

    def find(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows [V] of ``ids`` [V] int64; changes nothing."""
        ids = _vector(ids)
        rows = torch.empty_like(ids)
        self.map.lookup(ids.data_ptr(), len(ids), rows.data_ptr())
        return rows.add_(1)

    def admit(self, ids: torch.Tensor, now: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rows [V] of ``ids`` [V] seen in training at ``now``; which rows are new, and their ids."""
        ids = _vector(ids)
        rows = torch.empty_like(ids)
        self.clock = max(self.clock, now)
        count = self.map.lookup_or_insert(ids.data_ptr(), len(ids), now, rows.data_ptr())
        fresh, new_ids = torch.empty((2, count), dtype=torch.int64).unbind()
        if count:
            self.map.fresh(fresh.data_ptr(), new_ids.data_ptr())
        return rows.add_(1), fresh.add_(1), new_ids

    def draw(self, ids: torch.Tensor) -> torch.Tensor:
        """What the rows of ``ids`` [n] start as: [n, dim] float32."""
        values = torch.empty(len(ids), self.dim)
        _core.draw_rows(ids.data_ptr(), len(ids), self.dim, self.seed, self.half_width, values.data_ptr())
        return values

    def erase(self, ids: torch.Tensor) -> int:
        """Take these ids' rows away; returns how many had one."""
        ids = _vector(ids)
        return self.map.erase(ids.data_ptr(), len(ids))

    def evict(self, now: int) -> int:
        """Take the rows of ids last seen more than ``max_age`` before ``now`` away; returns how many there were."""
        return self.map.evict(now)

    def entries(self, start: int = 1, stop: int | None = None) -> dict[str, torch.Tensor]:
        """``places`` (rows in [start, stop) that hold an id, ascending), their ``ids``, ``last_seen``, ``scores``."""
        stop = self.max_rows + 1 if stop is None else stop
        count = self.map.entries(start - 1, stop - 1, 0, 0, 0, 0)
        columns = torch.empty((4, count), dtype=torch.int64).unbind()
        self.map.entries(start - 1, stop - 1, *(column.data_ptr() for column in columns))
        columns[0].add_(1)
        return dict(zip(("places", "ids", "last_seen", "scores"), columns, strict=True))

    def freed(self) -> torch.Tensor:
        """Rows that held an id at the last :meth:`mark_saved` and hold none now."""
        return _from_bytes(self.map.freed()).add_(1)

    def erased(self) -> torch.Tensor:
        """Ids that had a row at the last :meth:`mark_saved` and have none now, sorted."""
        lost = _from_bytes(self.map.erased()).unique()
        return lost[self.find(lost) == SHARED]

    def mark_saved(self) -> None:
        self.map.mark_saved()

    def settings(self) -> dict[str, Any]:
        """What a checkpoint holds besides :meth:`entries` and :meth:`sightings`: plain numbers."""
        return {
            "seed": self.seed,
            "half_width": self.half_width,
            "clock": self.clock,
            "floor": self.map.floor,
            "since_halving": self.map.since_halving,
        }

    def sightings(self) -> torch.Tensor:
        """How often ids without a row were seen: counters [n] uint8 of a count-min sketch; empty for admit_after=1."""
        counters = self.map.sightings()
        return torch.frombuffer(bytearray(counters), dtype=torch.uint8) if counters else torch.empty(0).byte()

    def restore(
        self, entries: dict[str, torch.Tensor], settings: dict[str, Any], sightings: torch.Tensor | None = None
    ) -> bool:
        """Become what :meth:`entries`, :meth:`settings` and :meth:`sightings` told. Returns whether sightings were
        taken over: those of a table of another size cannot be, and start at zero.

        Raises ValueError for a row outside this table, an id or a row twice.
        """
        places, ids, last_seen, scores = (entries[key].cpu().contiguous() for key in _ENTRIES)
        rows = places - 1
        self.map.restore(
            len(rows), rows.data_ptr(), ids.data_ptr(), last_seen.data_ptr(), scores.data_ptr(), settings["floor"]
        )
        self.seed, self.half_width = settings["seed"], settings["half_width"]
        self.clock = settings["clock"]
        if sightings is None:
            return False
        return self.map.restore_sightings(sightings.cpu().numpy().tobytes(), settings["since_halving"])

    def forget(self, seed: int, half_width: float) -> None:
        """Back to no ids; new rows are drawn by these from now on."""
        self.map = _core.IdMap(self.max_rows, self.dynamic.admit_after, self.dynamic.max_age or 0)
        self.seed, self.half_width, self.clock = seed, half_width, 0

    def __getstate__(self) -> dict[str, Any]:
        rest = {name: value for name, value in self.__dict__.items() if name != "map"}
        return {**rest, "saved": (self.entries(), self.settings(), self.sightings())}

    def __setstate__(self, state: dict[str, Any]) -> None:
        saved = state.pop("saved")
        self.__dict__.update(state)
        self.map = _core.IdMap(self.max_rows, self.dynamic.admit_after, self.dynamic.max_age or 0)
        self.restore(*saved)


_ENTRIES = ("places", "ids", "last_seen", "scores")


class IdRows(torch.nn.Module):
    """The :class:`DynamicRows` of a module's dynamic tables by name; in its state dict as extra state."""

    def __init__(self, tables: Iterable[tuple[str, DynamicRows]]) -> None:
        super().__init__()
        self.by_name = dict(tables)

    @property
    def removed(self) -> int:
        """Ids that lost their row so far: while it stays, a row stays its id's."""
        return sum(rows.map.removed for rows in self.by_name.values())

    def get_extra_state(self) -> dict[str, Any]:
        return {
            name: {**rows.entries(), "settings": rows.settings(), "sightings": rows.sightings()}
            for name, rows in self.by_name.items()
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        if state.keys() != self.by_name.keys():
            found, wanted = ", ".join(state) or "none", ", ".join(self.by_name)
            raise ValueError(f"dynamic tables: the state dict has {found}; this module has {wanted}")
        for name, saved in state.items():
            self.by_name[name].restore(saved, saved["settings"], saved["sightings"])


def _vector(ids: torch.Tensor) -> torch.Tensor:
    if ids.dtype != torch.int64 or ids.dim() != 1 or not ids.is_cpu:
        raise TypeError(f"ids: expected int64 [V] on the CPU, found {ids.dtype} {list(ids.shape)} on {ids.device}")
    return ids.contiguous()


def _from_bytes(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.int64) if data else torch.empty(0, dtype=torch.int64)
