"""Examples annotated a second: the data augmentation service against its teacher's bare inference, and two processes
against one.

The log is AdsWorld's ``reference``; the teacher a DCN-V2 that was published. ``raw``: the model on batches that lie
encoded in memory, of the size that suits it best. ``das``: from the shared log's files to records on the disk: reading,
encoding, claiming, the lineage, inference, writing. Processes have one thread each, are started beforehand and hold
nothing of the log; every pass annotates all of it anew.
"""

from __future__ import annotations

import multiprocessing
import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import harness
import torch
from harness import Entry, where

from octavo import models
from octavo.config import build_config
from octavo.data import AdsWorld, EventLog
from octavo.exfm import DAS, RankerTeacher

EVENTS = {"smoke": 4_000, "quick": 65_536, "full": 400_000}
PART = {"smoke": 500, "quick": 1 << 14, "full": 1 << 14}
BATCHES = (1024, 4096, 16_384)
TEACHER = {"kind": "dcnv2", "embedding_dim": 32, "cross_layers": 3, "deep": [512, 256], "norm": None}


def service(log: EventLog, path: Path, part: int) -> DAS:
    """A service that holds the log, with one version of the teacher that may speak of all of it."""
    das = DAS.create(path, log.schema, rows=part)
    das.ingest({"student": log})
    config = build_config({"model": TEACHER}).model
    das.publish("fm", models.build(log.schema, config), config, int(log.read(0, 1).time) - 1)
    return das


def raw(das: DAS, size: int) -> Entry:
    """The teacher alone, on batches in memory."""
    log = das.shared.log(das.shared.segments[0])
    teacher = RankerTeacher(models.build(log.schema, build_config({"model": TEACHER}).model))
    batches = list(log.batches(size))

    def call(_: Any) -> None:
        for batch in batches:
            teacher(batch)

    return Entry(f"raw, batches of {size}", call, group="raw", items=len(log))


def forget(das: DAS) -> Callable[[int], None]:
    """Before a pass: no records."""
    return lambda _: shutil.rmtree(das.path / "teachers" / "fm" / "records", ignore_errors=True)


def annotating(das: DAS) -> Entry:
    """The service, in this process."""

    def call(_: Any) -> None:
        for _ in das.annotate("fm"):
            pass

    return Entry("das", call, prepare=forget(das), group="das", items=das.shared.segments[0].events)


def worker(path: str, orders: Any) -> None:
    """Annotate whenever told to."""
    torch.set_num_threads(1)
    das = DAS(path)
    while orders.recv():
        for _ in das.annotate("fm"):
            pass
        orders.send(True)


def processes(das: DAS, count: int, stack: ExitStack) -> Entry:
    """The service in ``count`` processes that wait for a word."""
    context = multiprocessing.get_context("spawn")
    pipes = []
    for _ in range(count):
        here, there = context.Pipe()
        process = context.Process(target=worker, args=(str(das.path), there), daemon=True)
        process.start()
        stack.callback(process.join)
        stack.callback(here.send, False)
        pipes.append(here)

    def call(_: Any) -> None:
        for pipe in pipes:
            pipe.send(True)
        for pipe in pipes:
            pipe.recv()

    name = f"das, {count} processes"
    return Entry(name, call, prepare=forget(das), group=f"{count}", items=das.shared.segments[0].events)


def body(run: harness.Run) -> None:
    """Two contests: against the bare teacher on one thread, and two processes against one."""
    torch.set_num_threads(1)
    events = EVENTS[run.effort.name]
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        log = AdsWorld("reference", 0).write(Path(temporary) / "log", events=events)
        das = service(log, Path(temporary) / "das", PART[run.effort.name])
        shape = {"preset": "reference", "events": events, "part": das.rows}
        run.contest("das_throughput", {**shape, "against": "raw"}, [annotating(das)], [raw(das, n) for n in BATCHES])
        run.contest(
            "das_throughput", {**shape, "against": "1 process"}, [processes(das, 2, stack)], [processes(das, 1, stack)]
        )
    run.finding(
        "das_vs_raw_inference", where(group="das"), where(group="raw"), [], 0.9, lambda s: s["against"] == "raw"
    )
    run.finding(
        "das_two_processes_vs_one", where(group="2"), where(group="1"), [], 1.7, lambda s: s["against"] == "1 process"
    )


if __name__ == "__main__":
    harness.main("das_throughput", body)
