"""An embedding table in a checkpoint: files of row ranges, whole or only what was touched, and their merging."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from octavo.nn.dynamic import SHARED, DynamicRows
from octavo.nn.table_memory import put_rows


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used: names the file, what was found, what to do."""


@dataclass(frozen=True)
class TableState:
    """One embedding table: ``rows`` [R, D] and the optimizer's ``slots``, each with R as its first dimension.

    ``dynamic``: which rows hold which ids; row 0 is then the one of ids that have none. ``touched`` [R] uint8: not 0
    for every row that may differ from the checkpoint before; None: nobody knows.
    """

    rows: torch.Tensor
    slots: Mapping[str, torch.Tensor] = field(default_factory=dict)
    dynamic: DynamicRows | None = None
    touched: torch.Tensor | None = None


@dataclass(frozen=True)
class TableRows:
    """Rows of a checkpoint's table: ``places`` [n], ascending, are their numbers. Of a dynamic table also ``ids``,
    ``last_seen`` and ``scores`` [n]; what these say of place 0 means nothing."""

    places: torch.Tensor
    rows: torch.Tensor
    slots: Mapping[str, torch.Tensor]
    ids: torch.Tensor | None = None
    last_seen: torch.Tensor | None = None
    scores: torch.Tensor | None = None


_ID_COLUMNS = ("ids", "last_seen", "scores")
Write = Callable[[str, Mapping[str, torch.Tensor]], None]  # file name, tensors


def write_table(write: Write, stem: str, name: str, state: TableState, range_bytes: int, whole: bool) -> dict[str, Any]:
    """Write the table's files; returns its entry in the manifest. ``whole``: all rows, else the touched ones."""
    count = state.rows.shape[0]
    touched = None if whole else state.touched
    per_file = max(1, range_bytes // max(1, state.rows[:1].nbytes)) if count else 1
    ranges = []
    for start in range(0, count, per_file):
        stop = min(count, start + per_file)
        tensors = _range(state, start, stop, touched)
        if len(tensors["ids"]):
            file = f"{stem}.rows-{start}-{stop}.safetensors"
            write(file, tensors)
            ranges.append({"file": file, "start": start, "stop": stop})
    entry: dict[str, Any] = {"name": name, "shape": [count, *state.rows.shape[1:]], "slots": sorted(state.slots)}
    entry |= {"whole": touched is None, "range_rows": per_file, "ranges": ranges}
    if state.dynamic is not None:
        ids = {"sightings": state.dynamic.sightings()}
        if touched is not None:
            ids |= {"freed": state.dynamic.freed(), "erased": state.dynamic.erased()}
        write(f"{stem}.ids.safetensors", ids)
        entry["dynamic"] = {"live": len(state.dynamic), "file": f"{stem}.ids.safetensors", **state.dynamic.settings()}
    return entry


def _range(state: TableState, start: int, stop: int, touched: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """What the file of rows [start, stop) holds."""
    if state.dynamic is None:
        ids = torch.arange(start, stop) if touched is None else touched[start:stop].nonzero()[:, 0] + start
        tensors = {"ids": ids}
        places = ids
    else:
        tensors = state.dynamic.entries(max(start, 1), stop)
        if start == SHARED:
            tensors = {key: torch.cat([column.new_zeros(1), column]) for key, column in tensors.items()}
        if touched is not None:
            kept = touched[tensors["places"]] != 0
            tensors = {key: column[kept] for key, column in tensors.items()}
        places = tensors["places"]
    tensors["rows"] = _taken(state.rows, places, start, stop)
    return tensors | {f"slots.{slot}": _taken(values, places, start, stop) for slot, values in state.slots.items()}


def _taken(values: torch.Tensor, places: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    if len(places) == stop - start:
        return values[start:stop]
    if values.element_size() == 1:  # torch does not index every such type
        return values.view(torch.uint8)[places].view(values.dtype)
    return values[places]


class TableReader:
    """One table of a checkpoint and of those it is a difference to. ``layers``: (folder, entry), newest first."""

    def __init__(self, where: str, layers: list[tuple[Path, Mapping[str, Any]]]) -> None:
        self.where = where  # for errors
        whole = next(i for i, (_, entry) in enumerate(layers) if entry["whole"])
        self.layers = layers[: whole + 1]
        self.entry = layers[0][1]
        self.count = int(self.entry["shape"][0])

    def read(self, start: int, stop: int, values: bool = True) -> TableRows:
        """Rows [start, stop) that exist; ``values=False``: only their places and ids."""
        start, stop = max(start, 0), max(min(stop, self.count), max(start, 0))
        decided = torch.zeros(stop - start, dtype=torch.bool)
        parts = []
        for folder, entry in self.layers:
            for file in entry["ranges"]:
                if file["start"] < stop and start < file["stop"]:
                    parts.append(self._part(folder / file["file"], start, stop, decided, values))
            if "dynamic" in entry and not entry["whole"]:
                freed = _load(folder / entry["dynamic"]["file"], ["freed"])["freed"]
                decided[freed[(freed >= start) & (freed < stop)] - start] = True
        merged = self._joined(parts, values)
        slots = {slot: merged[f"slots.{slot}"] for slot in self.entry["slots"]} if values else {}
        columns = {key: merged[key] for key in _ID_COLUMNS} if "dynamic" in self.entry else {}
        return TableRows(merged["places"], merged.get("rows", torch.empty(0)), slots, **columns)

    def _keys(self, values: bool) -> list[str]:
        keys = [*_ID_COLUMNS] if "dynamic" in self.entry else []
        return keys + (["rows", *(f"slots.{slot}" for slot in self.entry["slots"])] if values else [])

    def _part(self, path: Path, start: int, stop: int, decided: torch.Tensor, values: bool) -> dict[str, torch.Tensor]:
        """The file's rows that no newer layer has decided."""
        name = "places" if "dynamic" in self.entry else "ids"
        places = _load(path, [name])[name]
        first, last = torch.searchsorted(places, torch.tensor([start, stop])).tolist()
        places = places[first:last]
        fresh = ~decided[places - start]
        decided[places - start] = True
        loaded = _load(path, self._keys(values), slice(first, last))
        every = bool(fresh.all())
        chosen = fresh.nonzero()[:, 0]
        part = {key: tensor if every else _taken(tensor, chosen, 0, -1) for key, tensor in loaded.items()}
        return part | {"places": places[fresh]}

    def _joined(self, parts: list[dict[str, torch.Tensor]], values: bool) -> dict[str, torch.Tensor]:
        if not parts:
            if values and self.layers[-1][1]["ranges"]:  # an empty range still has the columns' types
                folder, entry = self.layers[-1]
                empty = _load(folder / entry["ranges"][0]["file"], self._keys(True), slice(0, 0))
                return empty | {"places": torch.empty(0, dtype=torch.int64)}
            shape = [0, *self.entry["shape"][1:]]
            none = {key: torch.empty(0, dtype=torch.int64) for key in ("places", *_ID_COLUMNS)}
            return none | {"rows": torch.empty(shape)} | {f"slots.{s}": torch.empty(0) for s in self.entry["slots"]}
        if len(parts) == 1:
            return parts[0]
        order = torch.cat([part["places"] for part in parts]).argsort()
        return {key: _taken(_cat([part[key] for part in parts]), order, 0, -1) for key in parts[0]}

    def restore(self, into: TableState) -> None:
        """Make ``into`` this table; a dynamic one may have another number of rows."""
        self._refuse(into)
        with torch.no_grad():
            if into.dynamic is None:
                for part in self._parts():
                    self._put(into, part.places, part)
                return
            ids = [self.read(start, start + self.entry["range_rows"], values=False) for start in self._starts()]
            columns = {key: torch.cat([getattr(part, key) for part in ids]) for key in ("places", *_ID_COLUMNS)}
            own = columns["places"] != SHARED
            columns = {key: column[own] for key, column in columns.items()}
            moved = self._moved(columns["places"], into.rows.shape[0])
            for part in self._parts():
                self._put(into, moved[part.places], part)
            settings = self.entry["dynamic"]
            sightings = _load(self.layers[0][0] / settings["file"], ["sightings"])["sightings"]
            into.dynamic.restore({**columns, "places": moved[columns["places"]]}, settings, sightings)

    def _starts(self) -> range:
        return range(0, self.count, self.entry["range_rows"])

    def _parts(self) -> Iterator[TableRows]:
        for start in self._starts():
            yield self.read(start, start + self.entry["range_rows"])

    def _moved(self, places: torch.Tensor, room: int) -> torch.Tensor:
        """New place of every place: its own where the table has it, else the lowest free one."""
        moved = torch.arange(self.count)
        outside = places[places >= room]
        free = torch.ones(room, dtype=torch.bool)
        free[SHARED] = False
        free[places[places < room]] = False
        moved[outside] = free.nonzero()[: len(outside), 0]
        return moved

    def _put(self, into: TableState, places: torch.Tensor, part: TableRows) -> None:
        rows = part.rows
        if rows.dtype != into.rows.dtype:
            if 1 in (rows.element_size(), into.rows.element_size()):
                raise CheckpointError(f"{self.where} holds {rows.dtype}, the model's is {into.rows.dtype}")
            rows = rows.to(into.rows.dtype)
        put_rows(into.rows, places, rows)
        for slot, values in into.slots.items():
            put_rows(values, places, part.slots[slot])

    def _refuse(self, into: TableState) -> None:
        saved, own = self.entry.get("dynamic"), into.dynamic
        if (saved is None) != (own is None):
            kinds = ("fixed", "dynamic") if saved is None else ("dynamic", "fixed")
            raise CheckpointError(f"{self.where} is {kinds[0]}, the model's is {kinds[1]}")
        shape, wanted = list(self.entry["shape"]), list(into.rows.shape)
        same = shape == wanted if saved is None else shape[1:] == wanted[1:]
        if not same or self.entry["slots"] != sorted(into.slots):
            found = f"{shape} with slots {self.entry['slots']}"
            raise CheckpointError(f"{self.where} is {found}, the model's is {wanted} with slots {sorted(into.slots)}")
        if saved is not None and own is not None and saved["live"] > own.max_rows:
            raise CheckpointError(
                f"{self.where} holds {saved['live']} ids, the model's has room for {own.max_rows}; give it more rows"
            )


def _load(path: Path, keys: list[str], part: slice | None = None) -> dict[str, torch.Tensor]:
    with safe_open(path, "pt") as file:
        if part is None:
            return {key: file.get_tensor(key) for key in keys}
        return {key: file.get_slice(key)[part] for key in keys}


def _cat(parts: list[torch.Tensor]) -> torch.Tensor:
    if parts[0].element_size() == 1:
        return torch.cat([part.view(torch.uint8) for part in parts]).view(parts[0].dtype)
    return torch.cat(parts)
