"""Reading an event log: a directory of parquet files and ``log.json``, in event time, from any position."""

from __future__ import annotations

import copy
import dataclasses
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from octavo.data.batch import Batch
from octavo.data.downsampling import logit_shift
from octavo.data.encoding import encode_table
from octavo.data.errors import DataError, one_line
from octavo.data.log_index import LogFile, LogFiles, read_index
from octavo.data.log_writer import write_log
from octavo.data.schema import Label, Schema


class _Part(NamedTuple):
    """Some rows of a row group, the first of which is its row ``first``."""

    table: pa.Table
    place: str
    first: int

    def rows(self, begin: int, count: int) -> _Part:
        return _Part(self.table.slice(begin, count), self.place, self.first + begin)

    @property
    def where(self) -> str:
        return f"{self.place} rows from {self.first}" if self.first else self.place


class EventLog:
    """Events sorted by time. Opening reads ``log.json`` and file sizes; a file is verified (SHA-256) when first read.

    A position is the number of events before it: ``batches(size, start=position)`` goes on exactly where a pass that
    stopped at ``position`` would have. Memory is one row group and one batch. ``fingerprint`` changes with any event.
    ``path``: a directory, or its URI in any pyarrow file system (``s3://``, ``gs://``, ``hdfs://``, ...).

    Raises :class:`DataError` that names the file which is missing, truncated, corrupt or edited.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path) if "://" in str(path) else Path(path)
        self._at = LogFiles(path)
        content = read_index(self._at)
        self.schema = Schema.from_json(content["schema"], where=self._at.where("log.json"))
        self.files = tuple(LogFile(**entry) for entry in content["files"])
        self.fingerprint: str = content["sha256"]
        self.observed_until: int | None = content.get("observed_until")
        self.negatives: float = content.get("negatives", 1.0)
        self._verified: set[str] = set()
        self._limit: int | None = None
        for file in self.files:
            self._check_size(file)
        self._starts = [0]
        for file in self.files:
            self._starts.append(self._starts[-1] + file.rows)

    @classmethod
    def write(
        cls,
        path: str | Path,
        schema: Schema,
        tables: Iterable[pa.Table | str | Path],
        rows_per_file: int = 1 << 20,
        rows_per_group: int = 1 << 14,
        observed_until: int | None = None,
        negatives: float = 1.0,
        seed: int = 0,
        duplicates: Literal["error", "keep"] = "error",
    ) -> EventLog:
        """Write raw events, already sorted by time, as a log: tables, or paths of parquet files (read by row group).

        Columns that the schema does not name are kept. Every event is encoded once, so what is written can be read.
        An id that is there twice is an error, found exactly in 8 bytes of memory an event, none where events are
        numbered one after the other; ``duplicates="keep"`` does not look.
        ``observed_until`` (ms): when the outcomes were collected; labels of windows still open then are not known.
        None: after the last window had closed. ``negatives``: the share that is kept of events whose outcome is 0, by
        (id, ``seed``); models of such a log are trained and scored with the shift of its logits, so that what they
        predict is the truth (:mod:`octavo.data.downsampling`). The directory appears whole or not at all. Raises
        :class:`DataError` that names the table or file for events the schema does not take, unsorted time, unreadable
        parquet, and for a path that exists or is a URI.
        """
        write_log(
            path, schema, tables, rows_per_file, rows_per_group, observed_until, negatives=negatives, seed=seed,
            duplicates=duplicates,
        )  # fmt: skip
        return cls(path)

    def __len__(self) -> int:
        return self._starts[-1] if self._limit is None else self._limit

    def head(self, events: int) -> EventLog:
        """The same log without what follows its first ``events`` events."""
        if not 0 <= events <= len(self):
            raise ValueError(f"events: expected 0 to {len(self)}, found {events}")
        short = copy.copy(self)
        short._limit = events
        return short

    @property
    def column_names(self) -> list[str]:
        """Every column of the files, those outside the schema included."""
        with self._open(self.files[0], []) as parquet:
            return list(parquet.schema_arrow.names)

    def __repr__(self) -> str:
        return f"EventLog({str(self.path)!r}: {len(self)} events, {len(self.files)} files, tasks {self.schema.tasks})"

    def with_labels(self, *labels: Label) -> EventLog:
        """The same log with other tasks or windows, of columns that it has. Raises :class:`DataError` for others."""
        other = copy.copy(self)
        other.schema = dataclasses.replace(self.schema, labels=labels)
        absent = [name for name in other.schema.columns() if name not in self.column_names]
        if absent:
            raise DataError(f"{self.path}: column {absent[0]!r} is missing; it has {', '.join(self.column_names)}")
        return other

    def batches(
        self, batch_size: int, start: int = 0, stop: int | None = None, as_of: int | None = None
    ) -> Iterator[Batch]:
        """Batches of ``batch_size`` events over positions ``start`` to ``stop`` (exclusive), the rest in the last.

        ``as_of`` (ms): labels and delays as they were known then, nan where they were not; None = at
        ``observed_until``: open windows are not known, outcomes without a window are as the log has them. Raises
        :class:`DataError` for a time after ``observed_until``, and for events after ``as_of``.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, found {batch_size}")
        begin, end = self._span(start, stop)
        self._expect_observed(as_of)
        return self._batches(batch_size, begin, end, as_of)

    def read(self, start: int = 0, stop: int | None = None, as_of: int | None = None) -> Batch:
        """Positions ``start`` to ``stop`` (exclusive) as one batch; ``as_of`` as for :meth:`batches`."""
        self._expect_observed(as_of)
        parts = [*self._parts(self.schema.columns(), *self._span(start, stop))]
        return self._encoded(parts, as_of) if parts else self.encode(self.columns(self.schema.columns(), 0, 0), as_of)

    def as_sampled(self, logits: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Logits of the truth, by head, as logits of this log's events, of whose negatives a share is kept."""
        if self.negatives == 1:
            return logits
        return {head: z + logit_shift(self.negatives) for head, z in logits.items()}

    def encode(self, table: pa.Table, as_of: int | None = None) -> Batch:
        """Events of this log, raw, as one batch; ``as_of`` as for :meth:`batches`."""
        self._expect_observed(as_of)
        return encode_table(self.schema, table, str(self.path), as_of, self.observed_until)

    def columns(self, names: Sequence[str], start: int = 0, stop: int | None = None) -> pa.Table:
        """Raw columns, those outside the schema included (a demo log keeps the true probability in ``_p_true``)."""
        begin, end = self._span(start, stop)
        parts = [part.table for part in self._parts(names, begin, end)]
        if parts:
            return pa.concat_tables(parts)
        with self._open(self.files[0], names) as parquet:
            return parquet.schema_arrow.empty_table().select(list(names))

    def _expect_observed(self, as_of: int | None) -> None:
        if as_of is not None and self.observed_until is not None and as_of > self.observed_until:
            raise DataError(
                f"{self.path}: as_of={as_of}: the log was collected at {self.observed_until} ms and knows nothing later"
            )

    def _batches(self, batch_size: int, begin: int, end: int, as_of: int | None) -> Iterator[Batch]:
        waiting: list[_Part] = []
        held = 0
        for part in self._parts(self.schema.columns(), begin, end):
            held += len(part.table)
            if held < batch_size:
                waiting.append(part)
                continue
            rest = held % batch_size  # all of it in this part
            cut = len(part.table) - rest
            encoded = self._encoded([*waiting, part.rows(0, cut)], as_of)
            for first in range(0, held - rest, batch_size):
                yield encoded.rows(first, first + batch_size)
            waiting, held = [part.rows(cut, rest)] if rest else [], rest
        if held:
            yield self._encoded(waiting, as_of)

    def _encoded(self, parts: Sequence[_Part], as_of: int | None) -> Batch:
        """The parts as one batch; errors name the part they are in."""
        joined = pa.concat_tables(part.table for part in parts)
        try:
            return encode_table(self.schema, joined, str(self.path), as_of, self.observed_until)
        except DataError:
            for part in parts:
                encode_table(self.schema, part.table, part.where, as_of, self.observed_until)
            raise

    def _span(self, start: int, stop: int | None) -> tuple[int, int]:
        end = len(self) if stop is None else stop
        if not 0 <= start <= end <= len(self):
            raise ValueError(f"start, stop: expected 0 <= start <= stop <= {len(self)} events, found {start}, {stop}")
        return start, end

    def _parts(self, names: Sequence[str], begin: int, end: int) -> Iterator[_Part]:
        """Row groups, cut to the positions ``begin`` to ``end``."""
        for number in range(bisect_right(self._starts, begin) - 1, len(self.files)):
            position = self._starts[number]
            if position >= end:
                return
            with self._open(self.files[number], names) as parquet:
                for group in range(parquet.metadata.num_row_groups):
                    rows = parquet.metadata.row_group(group).num_rows
                    low, high = max(begin - position, 0), min(end - position, rows)
                    if low < high:
                        place = f"{self._at.where(self.files[number].name)} row group {group}"
                        table = parquet.read_row_group(group, columns=list(names))
                        yield _Part(table, place, 0).rows(low, high - low)
                    position += rows

    def _open(self, file: LogFile, names: Sequence[str]) -> pq.ParquetFile:
        path = self._at.where(file.name)
        self._check_size(file)
        if file.name not in self._verified:
            if self._at.sha256(file.name) != file.sha256:
                raise DataError(f"{path}: corrupt: its sha256 is not the one in log.json; write the log again")
            self._verified.add(file.name)
        try:
            parquet = self._at.parquet(file.name)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path}: not a readable parquet file ({one_line(error)}); write the log again") from None
        found = parquet.schema_arrow.names
        absent = [name for name in names if name not in found]
        if absent:
            parquet.close()
            raise DataError(f"{path}: column {absent[0]!r} is missing; it has {', '.join(found)}")
        return parquet

    def _check_size(self, file: LogFile) -> None:
        path, size = self._at.where(file.name), self._at.size(file.name)
        if size is None:
            raise DataError(f"{path}: missing from the log; write the log again")
        if size != file.bytes:
            raise DataError(f"{path}: truncated or changed: {size} bytes, {file.bytes} were written; write it again")
