"""The candidate sets as one parquet file, written while the log's events pass by."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from octavo._files import space_expected
from octavo.data.adsworld.simulation import Simulation, Tick
from octavo.data.errors import DataError

_KEY = b"octavo.adsworld"


def expect_free(target: Path, origin: str) -> None:
    """Raises :class:`DataError` where there is a file, unless it is of ``origin`` and so holds the same sets: what a
    writer left that was killed before its log was whole."""
    if not target.exists():
        return
    try:
        found = (pq.read_schema(target).metadata or {}).get(_KEY)
    except (pa.ArrowException, OSError):
        found = None
    if found != origin.encode():
        raise DataError(f"{target}: exists; remove it or choose another path")


def noted(
    ticks: Iterator[Tick], simulation: Simulation, target: Path, schema: pa.Schema, origin: str
) -> Generator[Tick, None, None]:
    """The ticks again, their candidate sets written on the way; after the last one ``target`` is there, whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.tmp-{os.getpid()}")
    try:
        with space_expected(target):
            with pq.ParquetWriter(partial, schema.with_metadata({_KEY: origin})) as writer:
                for tick in ticks:
                    writer.write_table(simulation.candidates(tick))
                    yield tick
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
