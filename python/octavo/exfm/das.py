"""DAS, the data augmentation service: students' logs in, every example's soft labels out, each asked for once."""

from __future__ import annotations

import fcntl
import os
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from octavo import models
from octavo._files import locked, read_signed, write_signed
from octavo.config import AnyModelConfig
from octavo.data import Batch, DataError, EventLog, Schema
from octavo.exfm.shared_set import Segment, SharedSet
from octavo.exfm.teacher import Teacher, TeacherError, answer, load_snapshot, write_snapshot
from octavo.ops.dispatch import Plan
from octavo.store import Lineage, RecordLog, Records, Version
from octavo.store import codec as codec_of
from octavo.training import CheckpointError
from octavo.training.checkpoint import discard

FORMAT = 2
_DEFAULTS = {"rows": 1 << 14, "skew_ms": 3_600_000, "codec": "fp32"}
_PARTS_IN_MEMORY = 16


@dataclass(frozen=True)
class Progress:
    """How far a teacher is: ``parts`` of ``of``, ``events`` examples in them, ``silent`` of which it said nothing."""

    teacher: str
    versions: int
    parts: int
    of: int
    events: int
    silent: int


class DAS:
    """The service's directory ``path``: the shared data set, teachers' snapshots with their lineage, their records.

    Everything in it is whole or absent, so any step may be killed and run again; several processes may ingest, publish,
    annotate and read at once. ``id``: its own, wherever it is moved to. ``schema``: what teachers read. Raises
    :class:`DataError` for a damaged directory.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        content = read_signed(self.path / "das.json", FORMAT, DataError)
        if content is None:
            raise DataError(f"{self.path}: is no data augmentation service; DAS.create makes one")
        self.schema = Schema.from_json(content["schema"], where=str(self.path / "das.json"))
        self.id: str = content["id"]
        self.rows: int = content["rows"]
        self.skew_ms: int = content["skew_ms"]
        self.codec: str = content["codec"]
        self.shared = SharedSet(self.path / "shared", self.schema)

    @classmethod
    def create(
        cls, path: str | Path, schema: Schema, rows: int | None = None, skew_ms: int | None = None,
        codec: str | None = None,
    ) -> DAS:  # fmt: skip
        """The service in ``path``, made where there is none.

        ``rows``: examples of a part, which is what a worker takes at a time. ``skew_ms``: how far apart copies of an
        example in two logs may be. ``codec``: of embeddings. None: what the service has, of a new one 16,384, an hour,
        ``fp32``. Raises :class:`DataError` where a service has another schema, or another of these.
        """
        path = Path(path)
        wanted = {"rows": rows, "skew_ms": skew_ms, "codec": codec}
        given = {name: value for name, value in wanted.items() if value is not None}
        settings: dict[str, Any] = {**_DEFAULTS, **given}
        if settings["rows"] < 1 or settings["skew_ms"] < 0:
            raise ValueError(
                f"rows, skew_ms: expected at least 1 and 0, found {settings['rows']}, {settings['skew_ms']}"
            )
        codec_of(settings["codec"])
        path.mkdir(parents=True, exist_ok=True)
        with locked(path / "create.lock"):
            if not (path / "das.json").exists():
                (path / "shared").mkdir(exist_ok=True)
                content = {"id": uuid.uuid4().hex, "schema": schema.to_json(), **settings}
                write_signed(path / "das.json", FORMAT, content)
        found = cls(path)
        if found.schema.fingerprint != schema.fingerprint:
            raise DataError(f"{path}: its teachers read another schema; take another path")
        for name, value in given.items():
            if getattr(found, name) != value:
                raise DataError(
                    f"{path}: has {name}={getattr(found, name)}, not {value}; leave {name} out, or take another path"
                )
        return found

    def ingest(self, logs: Mapping[str, EventLog]) -> Segment | None:
        """Add the examples of students' logs, by student, that are not there yet; None: none of the logs is new."""
        with locked(self.path / "ingest.lock"):
            return self.shared.ingest(logs, self.skew_ms)

    def publish(
        self, teacher: str, model: models.Ranker, config: AnyModelConfig, trained_until: int, delay_ms: int = 0,
        embeddings: bool = False, plan: Plan | None = None, run: str = "",
    ) -> Version:  # fmt: skip
        """A snapshot of ``model``, which may speak of events later than ``delay_ms`` after ``trained_until`` (ms).

        ``embeddings``: whether it gives them. ``plan``: a LoKA plan it runs under. ``run``: whose version it is.
        Annotation that goes on meanwhile takes the version up with its next part. The same content with the same times
        again, as after a kill, is the version that is there; with other times it is another. Raises
        :class:`octavo.store.LineageError` for a snapshot older than the newest.
        """
        if delay_ms < 0:
            raise ValueError(f"delay_ms: expected 0 or more, found {delay_ms}")
        if "/" in teacher or teacher.startswith(".") or not teacher:
            raise ValueError(f"teacher: found the name {teacher!r}; a directory is named after it")
        folder = self._teacher(teacher)
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / "publish.lock"):
            lineage = self.lineage(teacher)
            number = len(lineage) + 1
            dim = model.embed_dim if embeddings else None
            path, sha256 = write_snapshot(folder / "snapshots", number, model, config, self.schema, embeddings, plan)
            try:
                load_snapshot(path, sha256)
            except (CheckpointError, ValueError) as error:
                raise TeacherError(f"model, config: the snapshot cannot be read back ({error}); give its own") from None
            version = lineage.publish(
                str(path.relative_to(folder)), sha256, trained_until, trained_until + delay_ms,
                self.schema.fingerprint, model.tasks, dim, run,
            )  # fmt: skip
            if version.number != number:
                discard(path)
            return version

    def lineage(self, teacher: str) -> Lineage:
        """The versions of a teacher."""
        return Lineage(self._teacher(teacher) / "lineage.json")

    def annotate(
        self, teacher: str, load: Callable[[Version], Teacher] | None = None, parts: int | None = None
    ) -> Iterator[int]:
        """Ask ``teacher`` about every example that nobody has asked it about, a part at a time; yields the examples of
        each part done.

        Each event is answered by the newest version that was available at its time, and its record says which and how
        old. Parts that another process is at work on are left to it. ``load``: makes a teacher of a version (default:
        the published snapshot). ``parts``: stop after so many. Raises :class:`TeacherError` for a teacher without
        versions, or with answers that are none; parts already done stay.
        """
        lineage = self.lineage(teacher)
        if not len(lineage):
            raise TeacherError(f"{self.path}: teacher {teacher!r} has no published version; publish one first")
        ask = _Asked(self._teacher(teacher), lineage, load)
        self.shared.reload()
        done = 0
        for segment, records in self._record_logs(teacher, lineage):
            log = self.shared.log(segment).with_labels() if segment.events else None  # teachers see no outcome
            for part in range(-(-segment.events // self.rows)):
                if done == parts:
                    return
                with _claimed(records, part) as is_mine:
                    if not is_mine or log is None:
                        continue
                    begin = part * self.rows
                    batch = log.read(begin, min(begin + self.rows, segment.events))
                    lineage.reload()
                    if not records.write(part, ask(batch)):
                        continue
                done += 1
                yield len(batch)

    def progress(self, teacher: str) -> Progress:
        """How far the annotation of the shared data set is."""
        lineage = self.lineage(teacher)
        self.shared.reload()
        done = events = silent = 0
        for _, records in self._record_logs(teacher, lineage) if len(lineage) else ():
            for part in records.parts():
                version = records.versions(part)
                done, events, silent = done + 1, events + len(version), silent + int((version == 0).sum())
        of = sum(-(-segment.events // self.rows) for segment in self.shared.segments)
        return Progress(teacher, len(lineage), done, of, events, silent)

    def soft_labels(self, teacher: str) -> Callable[[Batch], Records]:
        """A function from a batch to the records of its events; unknown where the example is not in the shared data
        set, or has not been annotated."""
        return _SoftLabels(self, teacher)

    def _record_logs(self, teacher: str, lineage: Lineage) -> Iterator[tuple[Segment, RecordLog]]:
        newest = lineage.versions[-1]
        for segment in self.shared.segments:
            path = self._teacher(teacher) / "records" / segment.name
            yield segment, RecordLog.create(path, newest.tasks, newest.dim, self.codec)

    def _teacher(self, name: str) -> Path:
        return self.path / "teachers" / name


class _Asked:
    """A batch's records by the versions that may speak of it; the last two that spoke stay in memory."""

    def __init__(self, folder: Path, lineage: Lineage, load: Callable[[Version], Teacher] | None) -> None:
        self._lineage = lineage
        self._load = load or (lambda version: load_snapshot(folder / version.path, version.sha256))
        self._teachers: OrderedDict[int, Teacher] = OrderedDict()

    def __call__(self, batch: Batch) -> Records:
        number, age = self._lineage.spoken_by(batch.time)
        newest = self._lineage.versions[-1]
        ends = (torch.nonzero(number[1:] != number[:-1]).flatten() + 1).tolist()  # versions follow in event time
        found = []
        for begin, end in zip([0, *ends], [*ends, len(batch)], strict=True):
            rows, version = batch.rows(begin, end), int(number[begin])
            if version == 0:
                found.append(Records.unknown(rows.id, newest.tasks, newest.dim))
            else:
                teacher = self._teacher(version)
                found.append(answer(teacher, rows, newest.tasks, newest.dim, version, age[begin:end]))
        return Records.joined(found)

    def _teacher(self, version: int) -> Teacher:
        if version not in self._teachers:
            self._teachers[version] = self._load(self._lineage[version])
            while len(self._teachers) > 2:
                self._teachers.popitem(last=False)
        self._teachers.move_to_end(version)
        return self._teachers[version]


class _SoftLabels:
    """Records by example id; the parts last read stay in memory."""

    def __init__(self, das: DAS, teacher: str) -> None:
        self._das, self._teacher = das, teacher
        lineage = das.lineage(teacher)
        if not len(lineage):
            raise TeacherError(f"{das.path}: teacher {teacher!r} has no published version; publish one first")
        self._tasks, self._dim = lineage.versions[-1].tasks, lineage.versions[-1].dim
        self._lineage = lineage
        das.shared.reload()
        self._parts: OrderedDict[tuple[int, int], Records | None] = OrderedDict()

    def __call__(self, batch: Batch) -> Records:
        if len(batch) == 0:
            return Records.unknown(batch.id, self._tasks, self._dim)
        where, place = self._das.shared.places(batch.id)
        part = place // self._das.rows
        runs, inverse = np.unique(np.stack([where, np.where(where < 0, 0, part)]), axis=1, return_inverse=True)
        found, order = [], []
        for number, (segment, at) in enumerate(runs.T.tolist()):
            rows = torch.from_numpy(np.flatnonzero(inverse.ravel() == number))
            records = None if segment < 0 else self._part(segment, at)
            if records is None:
                found.append(Records.unknown(batch.id[rows], self._tasks, self._dim))
            else:
                found.append(records.rows(torch.from_numpy(place)[rows] - at * self._das.rows))
            order.append(rows)
        joined = Records.joined(found).rows(torch.argsort(torch.cat(order)))
        early = self._starts(joined.version) >= batch.time
        if not early.any():
            return joined
        both = Records.joined([joined, Records.unknown(batch.id, self._tasks, self._dim)])
        return both.rows(torch.arange(len(batch)) + early * len(batch))

    def _starts(self, version: torch.Tensor) -> torch.Tensor:
        """From when on the versions [n] may speak: a copy of an example may have another time than the one asked of."""
        if len(version) and int(version.max()) > len(self._lineage):
            self._lineage.reload()
        starts = [torch.iinfo(torch.int64).min, *(known.available_from for known in self._lineage.versions)]
        return torch.tensor(starts)[version]

    def _part(self, segment: int, part: int) -> Records | None:
        key = (segment, part)
        if self._parts.get(key) is None:
            folder = self._das._teacher(self._teacher) / "records" / self._das.shared.segments[segment].name
            log = RecordLog.create(folder, self._tasks, self._dim, self._das.codec)
            self._parts[key] = log.read(part) if log.has(part) else None
            while len(self._parts) > _PARTS_IN_MEMORY:
                self._parts.popitem(last=False)
        self._parts.move_to_end(key)
        return self._parts[key]


@contextmanager
def _claimed(records: RecordLog, part: int) -> Iterator[bool]:
    """Whether this process is the one that writes ``part``: it is not there, and nobody is at work on it."""
    if records.has(part):
        yield False
        return
    path = records.path / f".claim-{part:08d}"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield not records.has(part)
        if records.has(part):
            path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)
