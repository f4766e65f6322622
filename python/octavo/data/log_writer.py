"""Writing an event log: a temporary directory, every file flushed, then one rename."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from octavo.data.encoding import encode_table
from octavo.data.errors import DataError
from octavo.data.log_index import FORMAT, LogFile, check_sorted, index_hash
from octavo.data.schema import Schema


def write_log(path: Path, schema: Schema, tables: Iterable[pa.Table], rows_per_file: int, rows_per_group: int) -> None:
    """See :meth:`octavo.data.EventLog.write`."""
    if rows_per_file < 1 or rows_per_group < 1:
        raise ValueError(f"rows_per_file, rows_per_group: expected at least 1, found {rows_per_file}, {rows_per_group}")
    if path.exists():
        raise DataError(f"{path}: exists; remove it or choose another path")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        files = [
            _write_file(temporary / f"events-{number:05d}.parquet", schema, table, rows_per_group)
            for number, table in enumerate(_checked(schema, tables, rows_per_file))
        ]
        if not files:
            raise DataError(f"{path}: no events to write; a log holds at least one")
        content = {
            "format": FORMAT,
            "fingerprint": schema.fingerprint,
            "schema": schema.to_json(),
            "events": sum(file.rows for file in files),
            "files": [asdict(file) for file in files],
        }
        with (temporary / "log.json").open("w", encoding="utf-8") as index:
            json.dump({**content, "sha256": index_hash(content)}, index, indent=1)
            index.flush()
            os.fsync(index.fileno())
        _sync(temporary)
        try:
            temporary.rename(path)
        except OSError as error:
            raise DataError(f"{path}: cannot be put in place ({error.strerror}); another process wrote it?") from None
        _sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _checked(schema: Schema, tables: Iterable[pa.Table], rows_per_file: int) -> Iterator[pa.Table]:
    """The events again, encoded once to prove them, in tables of ``rows_per_file``."""
    last: int | None = None
    kinds: pa.Schema | None = None
    waiting: list[pa.Table] = []
    held = 0
    for number, table in enumerate(tables):
        where = f"table {number}"
        encode_table(schema, table, where)
        last = check_sorted(table.column(schema.time), last, where)
        kinds = table.schema if kinds is None else kinds
        if not table.schema.equals(kinds):
            raise DataError(f"{where}: its columns differ from table 0's; give every table the same names and types")
        waiting.append(table)
        held += len(table)
        while held >= rows_per_file:
            joined = pa.concat_tables(waiting)
            yield joined.slice(0, rows_per_file)
            waiting, held = [joined.slice(rows_per_file)], held - rows_per_file
    if held:
        yield pa.concat_tables(waiting)


def _write_file(path: Path, schema: Schema, table: pa.Table, rows_per_group: int) -> LogFile:
    pq.write_table(table, path, row_group_size=rows_per_group, compression="zstd", write_page_checksum=True)
    with path.open("rb") as file:
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    time = table.column(schema.time)
    first, last = int(time[0].as_py()), int(time[-1].as_py())
    return LogFile(path.name, len(table), path.stat().st_size, digest, first, last)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
