"""Reading an event log: a directory of parquet files and ``log.json``, in event time, from any position."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from octavo.data.batch import Batch
from octavo.data.encoding import encode_table
from octavo.data.errors import DataError, one_line
from octavo.data.log_index import LogFile, check_sorted, read_index
from octavo.data.log_writer import write_log
from octavo.data.schema import Schema


class EventLog:
    """Events sorted by time. Opening reads ``log.json`` and file sizes; batches are decoded as they are asked for.

    A position is the number of events before it: ``batches(size, start=position)`` goes on exactly where a pass that
    stopped at ``position`` would have. Memory is one row group and one batch.

    Raises :class:`DataError` that names the file: missing, truncated, corrupt, of another schema, or not sorted.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        content = read_index(self.path)
        self.schema = Schema.from_json(content["schema"], where=f"{self.path / 'log.json'}")
        if self.schema.fingerprint != content["fingerprint"]:
            raise DataError(f"{self.path / 'log.json'}: the schema does not match its fingerprint; write the log again")
        self.files = tuple(LogFile(**entry) for entry in content["files"])
        self.fingerprint: str = content["sha256"]
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
        tables: Iterable[pa.Table],
        rows_per_file: int = 1 << 20,
        rows_per_group: int = 1 << 14,
    ) -> EventLog:
        """Write tables of raw events, already sorted by time, as a log; columns the schema does not name are kept.

        Every event is encoded once, so that what is written can be read. The directory appears whole or not at all.
        Raises :class:`DataError` for events the schema does not take, unsorted time, or a path that exists.
        """
        write_log(Path(path), schema, tables, rows_per_file, rows_per_group)
        return cls(path)

    def __len__(self) -> int:
        return self._starts[-1]

    def __repr__(self) -> str:
        return f"EventLog({str(self.path)!r}: {len(self)} events, {len(self.files)} files, tasks {self.schema.tasks})"

    def batches(self, batch_size: int, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        """Batches of ``batch_size`` events over positions ``start`` to ``stop`` (exclusive); the last may be smaller."""
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, found {batch_size}")
        begin, end = self._span(start, stop)
        return self._batches(batch_size, begin, end)

    def _batches(self, batch_size: int, begin: int, end: int) -> Iterator[Batch]:
        waiting: list[tuple[pa.Table, str]] = []
        held = 0
        for table, where in self._tables(self.schema.columns(), begin, end):
            waiting.append((table, where))
            held += len(table)
            while held >= batch_size:
                yield self._encode(_take(waiting, batch_size))
                held -= batch_size
        if held:
            yield self._encode(_take(waiting, held))

    def read(self, start: int = 0, stop: int | None = None) -> Batch:
        """Positions ``start`` to ``stop`` (exclusive) as one batch."""
        begin, end = self._span(start, stop)
        return self._encode(list(self._tables(self.schema.columns(), begin, end)))

    def columns(self, names: Sequence[str], start: int = 0, stop: int | None = None) -> pa.Table:
        """Raw columns, those outside the schema included (a demo log keeps the true probability in ``_p_true``)."""
        begin, end = self._span(start, stop)
        parts = [table for table, _ in self._tables(list(names), begin, end)]
        if parts:
            return pa.concat_tables(parts)
        with self._open(self.files[0], names) as parquet:
            return parquet.schema_arrow.empty_table().select(list(names))

    def _span(self, start: int, stop: int | None) -> tuple[int, int]:
        end = len(self) if stop is None else stop
        if not 0 <= start <= end <= len(self):
            raise ValueError(f"start, stop: expected 0 <= start <= stop <= {len(self)} events, found {start}, {stop}")
        return start, end

    def _encode(self, parts: list[tuple[pa.Table, str]]) -> Batch:
        if not parts:
            return encode_table(self.schema, self.columns(self.schema.columns(), 0, 0), str(self.path))
        return encode_table(self.schema, pa.concat_tables([part for part, _ in parts]), parts[0][1])

    def _tables(self, names: list[str], begin: int, end: int) -> Iterator[tuple[pa.Table, str]]:
        """Row groups, cut to the positions ``begin`` to ``end``, with the path errors are to name."""
        last: int | None = None
        first_file = bisect_right(self._starts, begin) - 1
        for number in range(first_file, len(self.files)):
            position = self._starts[number]
            if position >= end:
                return
            where = str(self.path / self.files[number].name)
            with self._open(self.files[number], names) as parquet:
                for group in range(parquet.metadata.num_row_groups):
                    rows = parquet.metadata.row_group(group).num_rows
                    if position + rows > begin and position < end:
                        table = self._read_group(parquet, self.files[number], group, names)
                        last = check_sorted(table.column(self.schema.time), last, where)
                        low, high = max(begin - position, 0), min(end - position, rows)
                        yield table.select(names).slice(low, high - low), where
                    position += rows

    def _open(self, file: LogFile, names: Sequence[str]) -> pq.ParquetFile:
        path = self.path / file.name
        self._check_size(file)
        try:
            parquet = pq.ParquetFile(path, page_checksum_verification=True)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path}: not a readable parquet file ({one_line(error)}); write the log again") from None
        found = parquet.schema_arrow.names
        absent = [name for name in names if name not in found]
        if absent:
            parquet.close()
            raise DataError(f"{path}: column {absent[0]!r} is missing; it has {', '.join(found)}")
        if parquet.metadata.num_rows != file.rows:
            parquet.close()
            raise DataError(
                f"{path}: {parquet.metadata.num_rows} events, log.json says {file.rows}; write the log again"
            )
        return parquet

    def _read_group(self, parquet: pq.ParquetFile, file: LogFile, group: int, names: list[str]) -> pa.Table:
        wanted = list(dict.fromkeys([*names, self.schema.time]))
        try:
            return parquet.read_row_group(group, columns=wanted)
        except (pa.ArrowException, OSError) as error:
            path = self.path / file.name
            raise DataError(f"{path}: row group {group} is corrupt ({one_line(error)}); write the log again") from None

    def _check_size(self, file: LogFile) -> None:
        path = self.path / file.name
        try:
            size = path.stat().st_size
        except OSError:
            raise DataError(f"{path}: missing from the log; write the log again") from None
        if size != file.bytes:
            raise DataError(
                f"{path}: truncated or changed: {size} bytes, {file.bytes} were written; write the log again"
            )


def _take(waiting: list[tuple[pa.Table, str]], rows: int) -> list[tuple[pa.Table, str]]:
    """Remove the first ``rows`` rows from ``waiting``."""
    taken: list[tuple[pa.Table, str]] = []
    while rows:
        table, where = waiting[0]
        if len(table) <= rows:
            taken.append(waiting.pop(0))
            rows -= len(table)
        else:
            taken.append((table.slice(0, rows), where))
            waiting[0] = (table.slice(rows), where)
            rows = 0
    return taken
