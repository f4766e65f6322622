"""What the tests of ExFM's service share: a log, two students' parts of it, a small teacher."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from training_support import small_config

from octavo import models
from octavo.data import EventLog
from octavo.data.demo import DEMO_SCHEMA
from octavo.exfm import DAS

ROWS = 200  # of a part
HOUR = 3_600_000
CONFIG = small_config(model__table_init=1.0).model


def part_of(world: EventLog, path: Path, keep: Any, change: Callable[[pa.Table], pa.Table] | None = None) -> EventLog:
    """The world's events that ``keep`` [n] names, as a student's log."""
    table = world.columns(world.column_names).filter(pa.array(keep))
    return EventLog.write(path, world.schema, [table if change is None else change(table)])


def two_students(world: EventLog, folder: Path) -> dict[str, EventLog]:
    """Two students whose logs share a third of the examples; together they have all."""
    at = np.arange(len(world)) % 3
    return {"feed": part_of(world, folder / "feed", at != 0), "search": part_of(world, folder / "search", at != 1)}


def model(seed: int = 0) -> models.Ranker:
    """A small teacher of the demo log."""
    return models.build(DEMO_SCHEMA, small_config(model__seed=seed, model__table_init=1.0).model).eval()


def service(
    path: Path, world: EventLog, students: dict[str, EventLog], versions: tuple[float, ...] = (0.0, 0.4)
) -> DAS:
    """A service with these logs, and snapshots of a teacher published at these shares of the log's time."""
    das = DAS.create(path, world.schema, rows=ROWS)
    das.ingest(students)
    publish_at(das, world, versions)
    return das


def publish_at(das: DAS, world: EventLog, versions: tuple[float, ...]) -> None:
    """Snapshots that had seen these shares of the world's time, and speak an hour later."""
    times = world.read().time
    for number, share in enumerate(versions):
        until = int(times[0] + share * (times[-1] - times[0]))
        das.publish("fm", model(number), CONFIG, until, delay_ms=HOUR)
