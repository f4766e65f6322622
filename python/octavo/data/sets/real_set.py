"""A real data set: source files below the data root, and how they become an event log in a cache."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from octavo.data.errors import DataError, one_line
from octavo.data.event_log import EventLog
from octavo.data.history import Ints
from octavo.data.roots import data_root
from octavo.data.schema import Schema


@dataclass(frozen=True)
class RealSet:
    """One set. ``files``: parquet file below ``folder`` -> the columns it must have; ``build`` takes them as tables, in
    this order, and returns the log's raw columns sorted by time. ``origin``: where a stranger gets it. ``version`` is
    part of the cache's key: raise it when ``build`` changes what it writes.
    """

    folder: str
    title: str
    origin: str
    files: Mapping[str, tuple[str, ...]]
    schema: Schema
    build: Callable[..., pa.Table]
    version: int = 1

    def open(self, root: str | Path | None = None, cache: str | Path | None = None) -> EventLog:
        """The set's log from ``root`` (default: :func:`octavo.data.data_root`).

        It is built once into ``cache`` (default: ``octavo`` in the XDG cache), whole or not at all, under a name that
        follows from the source files, the schema and ``version``; after that it is only opened. Raises
        :class:`DataError` that names a file which is absent, damaged or without its columns.
        """
        source = (data_root() if root is None else Path(root)) / self.folder
        digest = hashlib.sha256(f"{self.version} {self.schema.fingerprint}".encode())
        for name in self.files:
            try:
                digest.update((source / name).read_bytes())
            except OSError as error:
                raise DataError(
                    f"{source / name}: cannot be read ({error.strerror}); {self.title} comes from {self.origin}"
                ) from None
        home = _cache_home() if cache is None else Path(cache)
        path = home / f"{self.folder}-{digest.hexdigest()[:16]}"
        if path.exists():
            try:
                return EventLog(path)
            except DataError:
                shutil.rmtree(path)  # a damaged cache is built again
        table = self.build(*(_read(source / name, columns) for name, columns in self.files.items()))
        try:
            return EventLog.write(path, self.schema, [table])
        except DataError:
            if not path.exists():
                raise
            return EventLog(path)  # another process was first
        except OSError as error:
            raise DataError(
                f"{home}: cannot be written ({error.strerror}); give cache=... or set XDG_CACHE_HOME"
            ) from None


def ints(table: pa.Table, column: str) -> Ints:
    """A column of integers, dates (days) or time stamps (their unit) as int64."""
    values = table.column(column).combine_chunks()
    if pa.types.is_date32(values.type):
        values = values.cast(pa.int32())
    if pa.types.is_timestamp(values.type):
        values = values.cast(pa.int64())
    return np.array(values, np.int64)


def text(table: pa.Table, column: str) -> pa.Array:
    """A column of words."""
    return table.column(column).combine_chunks().cast(pa.string())


def _cache_home() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "octavo"


def _read(path: Path, columns: tuple[str, ...]) -> pa.Table:
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable parquet file ({one_line(error)}); fetch it again") from None
    absent = [name for name in columns if name not in table.column_names]
    if absent:
        raise DataError(f"{path}: column {absent[0]!r} is missing; it has {', '.join(table.column_names)}")
    return table
