"""The examples of all students, once each: segments in event time, and where each example lies."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from octavo._files import read_signed, sync_directory, write_array, write_signed
from octavo.data import DataError, EventLog, Schema
from octavo.exfm.merging import Merged, check_skew, merged

FORMAT = 1
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Segment:
    """What one :meth:`SharedSet.ingest` added: ``events`` new examples, from students' logs by their fingerprints;
    ``known``: events of these logs that earlier segments hold already."""

    name: str
    events: int
    sources: Mapping[str, str]
    known: int = 0
    duplicates: int = 0
    skewed: int = 0
    conflicts: int = 0


class SharedSet:
    """The shared data set in ``path``: a log for each segment, and an index from an example's id to its place."""

    def __init__(self, path: Path, schema: Schema) -> None:
        self.path, self.schema = path, schema
        self.segments: tuple[Segment, ...] = ()
        self._indexes: dict[str, tuple[Ids, Ids]] = {}
        self.reload()

    def reload(self) -> None:
        """Take up segments that others added. Raises :class:`DataError` for a damaged list of segments."""
        content = read_signed(self.path / "segments.json", FORMAT, DataError) or {"segments": []}
        self.segments = tuple(Segment(**entry) for entry in content["segments"])

    def log(self, segment: Segment) -> EventLog:
        """The segment's examples, in event time."""
        return EventLog(self.path / segment.name)

    def ingest(self, logs: Mapping[str, EventLog], skew_ms: int) -> Segment | None:
        """Add what is new in these logs, by student. None: these very logs were added before.

        Of several callers one at a time (the caller holds a lock). A kill leaves the whole segment or none of it.
        """
        self.reload()
        seen = {(student, mark) for segment in self.segments for student, mark in segment.sources.items()}
        fresh = {student: log for student, log in logs.items() if (student, log.fingerprint) not in seen}
        if not fresh:
            return None
        name = f"{len(self.segments):05d}"
        for left in self.path.glob(f"{name}*"):  # of a killed ingestion
            shutil.rmtree(left)
        found, counts = Merged(), {"new": 0, "known": 0}
        names = self.schema.columns()
        tables = self._new(skew_ms, merged(fresh, names, self.schema.id, self.schema.time, skew_ms, found), counts)
        first = next(tables, None)
        if first is not None:
            log = EventLog.write(self.path / name, self.schema, _after(first, tables))
            self._write_index(name, log)
        segment = Segment(
            name, counts["new"], {student: log.fingerprint for student, log in fresh.items()}, counts["known"],
            found.duplicates, found.skewed, found.conflicts,
        )  # fmt: skip
        entries = [asdict(entry) for entry in (*self.segments, segment)]
        write_signed(self.path / "segments.json", FORMAT, {"segments": entries})
        self.segments = (*self.segments, segment)
        return segment

    def places(self, ids: torch.Tensor) -> tuple[Ids, Ids]:
        """For each id [n] int64 the number of its segment, -1 = in none, and its position there."""
        wanted = ids.numpy()
        where, place = np.full(len(wanted), -1, np.int64), np.zeros(len(wanted), np.int64)
        for number, segment in enumerate(self.segments):
            if not segment.events:
                continue
            known, positions = self._index(segment.name)
            at = np.searchsorted(known, wanted).clip(max=len(known) - 1)
            here = known[at] == wanted
            where[here], place[here] = number, positions[at[here]]
        return where, place

    def _new(self, skew_ms: int, tables: Iterator[pa.Table], counts: dict[str, int]) -> Iterator[pa.Table]:
        """What no segment holds yet; what one holds must be of the same time there."""
        for table in tables:
            ids = torch.from_numpy(table[self.schema.id].to_numpy().astype(np.int64))
            where, place = self.places(ids)
            new = where < 0
            times = table[self.schema.time].to_numpy().astype(np.int64)
            for number in np.unique(where[~new]).tolist():
                known = np.flatnonzero(where == number)
                held = self._load(self.segments[number].name, "times")[place[known]]
                check_skew(ids.numpy()[known], held, times[known], skew_ms)
            counts["known"] += int((~new).sum())
            counts["new"] += int(new.sum())
            if new.any():
                yield table if new.all() else table.filter(pa.array(new))

    def _write_index(self, name: str, log: EventLog) -> None:
        columns = [(batch.id.numpy(), batch.time.numpy()) for batch in log.batches(1 << 16)]
        ids, times = (np.concatenate(column) for column in zip(*columns, strict=True))
        order = np.argsort(ids, kind="stable")
        folder = self.path / f"{name}-index"
        folder.mkdir()
        write_array(folder / "ids.npy", ids[order])
        write_array(folder / "places.npy", order.astype(np.int64))
        write_array(folder / "times.npy", times)  # by place
        sync_directory(folder)  # the list of segments, which names it, syncs the directory above

    def _index(self, name: str) -> tuple[Ids, Ids]:
        if name not in self._indexes:
            self._indexes[name] = self._load(name, "ids"), self._load(name, "places")
        return self._indexes[name]

    def _load(self, name: str, what: str) -> Ids:
        file = self.path / f"{name}-index" / f"{what}.npy"
        try:
            found: Ids = np.load(file, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise DataError(f"{file}: cannot be read ({error}); restore it") from None
        return found


def _after(first: pa.Table, rest: Iterator[pa.Table]) -> Iterator[pa.Table]:
    yield first
    yield from rest
