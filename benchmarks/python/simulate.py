"""How fast AdsWorld plays: impressions a second, in memory and written as a log, against a trainer's examples a second.

The trainer is octavo's DLRM with its default widths at batch 2048, reading the log that the world wrote. Every call
takes the next impressions of one endless world (or the next of the log), so that setting up is not timed.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import harness
import pyarrow as pa
from harness import Entry, where

from octavo.config import build_config
from octavo.data import AdsWorld, EventLog
from octavo.training import Trainer

PRESET, BATCH = "reference", 2048
STEPS = {"smoke": 1, "quick": 64, "full": 64}  # batches a call: many of the world's ticks
LOG = {"smoke": 4 * BATCH, "quick": 512 * BATCH, "full": 512 * BATCH}  # impressions of the trainer's log
ENDLESS = 1 << 40


def chunks(world: AdsWorld, events: int) -> Iterator[pa.Table]:
    """The world's impressions, ``events`` to a table, without end."""
    return world.tables(events=ENDLESS, rows=events)


def written(world: AdsWorld, events: int, folder: Path) -> Callable[[int], object]:
    """The next ``events`` impressions as a log on disk."""
    tables, numbers = chunks(world, events), itertools.count()
    return lambda i: EventLog.write(folder / f"log-{next(numbers)}", world.schema, [next(tables)])


def trained(log: EventLog, steps: int, folder: Path) -> Callable[[int], object]:
    """``steps`` more batches of a pass over ``log``, which starts again when it is over."""
    config = build_config({"training": {"batch_size": BATCH, "checkpoint_every": 0}, "plan": {}}, [], source="simulate")

    def passes() -> Iterator[int]:
        for number in itertools.count():
            yield from Trainer(config, log, folder / f"run-{number}").run()

    positions = passes()

    def call(_: int) -> None:
        for _ in range(steps):
            next(positions)

    return call


def body(run: harness.Run) -> None:
    """One contest, then the figures."""
    world, steps = AdsWorld(PRESET, seed=0), STEPS[run.effort.name]
    events = steps * BATCH
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        log = world.write(folder / "log", events=LOG[run.effort.name])
        played = chunks(world, events)
        ours = [
            Entry("AdsWorld, tables", lambda i: next(played), facts={"route": "tables"}, items=events),
            Entry("AdsWorld, written as a log", written(world, events, folder), facts={"route": "log"}, items=events),
        ]
        peers = [Entry("octavo Trainer, DLRM", trained(log, steps, folder), items=events)]
        run.contest("simulate", {"preset": PRESET, "impressions": events}, ours, peers)
    run.finding("simulate_vs_trainer", where(route="tables"), where(), ["octavo Trainer, DLRM"], bar=5.0)
    run.finding("simulate_written_vs_trainer", where(route="log"), where(), ["octavo Trainer, DLRM"])


if __name__ == "__main__":
    harness.main("simulate", body)
