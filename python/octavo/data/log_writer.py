"""Writing an event log: a temporary directory, every file flushed, then one rename."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from octavo._files import (
    NoSpaceError,
    content_hash,
    file_hash,
    sync_directory,
    temporary_directory,
    write_atomically,
)
from octavo.data.downsampling import sampled
from octavo.data.encoding import encode_table
from octavo.data.errors import DataError, one_line
from octavo.data.log_index import FORMAT, LogFile
from octavo.data.schema import Schema
from octavo.data.seen_ids import SeenIds


def write_log(
    path: str | Path,
    schema: Schema,
    tables: Iterable[pa.Table | str | Path],
    rows_per_file: int,
    rows_per_group: int,
    observed_until: int | None,
    proved: bool = False,
    negatives: float = 1.0,
    seed: int = 0,
    duplicates: str = "error",
) -> None:
    """See :meth:`octavo.data.EventLog.write`. ``proved``: whoever gives the tables has encoded and sorted them."""
    if rows_per_file < 1 or rows_per_group < 1:
        raise ValueError(f"rows_per_file, rows_per_group: expected at least 1, found {rows_per_file}, {rows_per_group}")
    if duplicates not in ("error", "keep"):
        raise ValueError(f"duplicates: expected error or keep, found {duplicates!r}; octavo.data.convert can drop them")
    path = local_path(path)
    if path.exists():
        raise DataError(f"{path}: exists; remove it or choose another path")
    path.parent.mkdir(parents=True, exist_ok=True)
    checked = tables if proved else _proved(schema, tables, None if duplicates == "keep" else SeenIds())
    if negatives != 1:
        checked = sampled(schema, checked, negatives, seed)
    with temporary_directory(path) as temporary:
        files = [
            _write_file(temporary / f"events-{number:05d}.parquet", schema, table, rows_per_group)
            for number, table in enumerate(regroup(checked, rows_per_file))
        ]
        if not files:
            raise DataError(f"{path}: no events to write; a log holds at least one")
        content: dict[str, Any] = {
            "format": FORMAT,
            "fingerprint": schema.fingerprint,
            "schema": schema.to_json(),
            "events": sum(file.rows for file in files),
            "files": [asdict(file) for file in files],
        }
        if observed_until is not None:
            if observed_until < files[-1].last_time:
                raise DataError(
                    f"observed_until: {observed_until} ms is before the last event ({files[-1].last_time} ms)"
                )
            content["observed_until"] = observed_until
        if negatives != 1:
            content |= {"negatives": negatives, "negatives_seed": seed}
        with _written(temporary / "log.json"):
            write_atomically(temporary / "log.json", json.dumps({**content, "sha256": content_hash(content)}, indent=1))
            sync_directory(temporary)
        try:
            temporary.rename(path)
        except OSError as error:
            raise DataError(
                f"{path}: cannot be put in place ({error.strerror}); did another process write it?"
            ) from None
        sync_directory(path.parent)


def local_path(path: str | Path) -> Path:
    """Where a log can be put in place by a rename. Raises :class:`DataError` for a URI."""
    if "://" in str(path):
        raise DataError(f"{path}: a URI, but logs are written on this machine: write it to a path and copy it there")
    return Path(path)


def _proved(schema: Schema, tables: Iterable[pa.Table | str | Path], seen: SeenIds | None) -> Iterator[pa.Table]:
    """The tables again, each encoded once to prove that it can be, all with the same columns, in event time, and with
    ids that were not ``seen``."""
    last: int | None = None
    kinds: pa.Schema | None = None
    for table, where in _named(tables):
        if len(table) == 0:
            continue
        ids = encode_table(schema, table, where).id.numpy()
        last = _check_sorted(table.column(schema.time), last, where)
        kinds = table.schema.remove_metadata() if kinds is None else kinds
        if not table.schema.remove_metadata().equals(kinds):
            differs = next(iter(set(table.schema.remove_metadata()) ^ set(kinds)), None)
            what = "their order" if differs is None else f"column {differs.name!r}"
            raise DataError(f"{where}: {what} differs from the first table's; give all the same names and types")
        if seen is not None and (known := seen.add(ids)).any():
            at = int(known.argmax())
            raise DataError(
                f"{where}: column {schema.id!r}: id {ids[at]} at row {at} came before; make ids distinct, drop the "
                "events with octavo.data.convert(duplicates='drop'), or write duplicates='keep'"
            )
        yield table


def _named(tables: Iterable[pa.Table | str | Path]) -> Iterator[tuple[pa.Table, str]]:
    for number, entry in enumerate(tables):
        if isinstance(entry, pa.Table):
            yield entry, f"table {number}"
            continue
        try:
            with pq.ParquetFile(entry, page_checksum_verification=True) as parquet:
                for group in range(parquet.metadata.num_row_groups):
                    yield parquet.read_row_group(group), f"{entry} row group {group}"
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{entry}: not a readable parquet file ({one_line(error)}); export it again") from None


def regroup(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The same events in tables of ``rows``, the rest in the last."""
    waiting: list[pa.Table] = []
    held = 0
    for table in tables:
        waiting.append(table)
        held += len(table)
        while held >= rows:
            joined = pa.concat_tables(waiting)
            yield joined.slice(0, rows)
            waiting, held = [joined.slice(rows)], held - rows
    if held:
        yield pa.concat_tables(waiting)


def _check_sorted(time: pa.ChunkedArray, last: int | None, where: str) -> int:
    """The last of ``time`` (ms, no nulls); DataError where it falls below ``last`` or its neighbour."""
    values = time.to_numpy()
    if last is not None and values[0] < last:
        raise DataError(f"{where}: time falls from {last} to {values[0]} ms; sort the events by time")
    falls = values[1:] < values[:-1]
    if falls.any():
        at = int(falls.argmax())
        raise DataError(f"{where}: time falls from {values[at]} to {values[at + 1]} ms; sort the events by time")
    return int(values[-1])


def _write_file(path: Path, schema: Schema, table: pa.Table, rows_per_group: int) -> LogFile:
    with _written(path):
        pq.write_table(table, path, row_group_size=rows_per_group, compression="zstd")
        with path.open("rb") as file:
            os.fsync(file.fileno())
    time = table.column(schema.time)
    first, last = int(time[0].as_py()), int(time[-1].as_py())
    return LogFile(path.name, len(table), path.stat().st_size, file_hash(path), first, last)


@contextmanager
def _written(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        says = str(error) if isinstance(error, NoSpaceError) else f"{path}: cannot be written ({one_line(error)})"
        raise DataError(f"{says}; nothing of the log is left behind") from None
