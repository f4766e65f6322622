"""Peak memory of a streaming pass: a child process trains a DLRM on a simulated log of 50 million impressions, and its
resident memory beyond what it held when the model stood ready is read as it goes.

The log is written once by AdsWorld (preset ``reference``), also in a child whose peak is reported.
"""

from __future__ import annotations

import multiprocessing
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import harness
from harness import Interval

EVENTS = {"smoke": 20_000, "quick": 1_000_000, "full": 50_000_000}
PRESET, BATCH = "reference", 4096
LIMIT_GIB, SAMPLES = 2.0, 20


def resident_gib() -> float:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / 2**30


def peak_gib() -> float:
    """The most that this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def simulated(path: str, events: int, answer: Any) -> None:
    """Child: write the log."""
    from octavo.data import AdsWorld

    world, before, start = AdsWorld(PRESET, seed=0), resident_gib(), time.perf_counter()
    world.write(path, events=events)
    answer.put({"peak_gib": peak_gib() - before, "seconds": time.perf_counter() - start})


def trained(path: str, events: int, folder: str, answer: Any) -> None:
    """Child: one pass; resident memory beyond the model's at ``SAMPLES`` positions, and the peak."""
    from octavo.config import build_config
    from octavo.data import EventLog
    from octavo.training import Trainer

    training = {"batch_size": BATCH, "holdout": 0.0, "checkpoint_every": 0, "window": max(1, events // 100)}
    trainer = Trainer(build_config({"training": training}, [], source="memory"), EventLog(path), folder)
    before, start, held = resident_gib(), time.perf_counter(), []
    for position in trainer.run():
        if position >= (len(held) + 1) * events // SAMPLES:
            held.append(resident_gib() - before)
    seconds = time.perf_counter() - start
    answer.put({"held_gib": held, "peak_gib": peak_gib() - before, "model_gib": before, "seconds": seconds})


def in_child(work: Any, *arguments: Any) -> dict[str, Any]:
    """What ``work`` answers from a process of its own."""
    context = multiprocessing.get_context("spawn")
    answer = context.SimpleQueue()
    child = context.Process(target=work, args=(*arguments, answer))
    child.start()
    child.join()
    if child.exitcode != 0:
        raise RuntimeError(f"{work.__name__}: the child ended with {child.exitcode}")
    found: dict[str, Any] = answer.get()
    return found


def body(run: harness.Run) -> None:
    """Write, train, report."""
    events = EVENTS[run.effort.name]
    with tempfile.TemporaryDirectory() as folder:
        log = f"{folder}/log"
        wrote = in_child(simulated, log, events)
        found = in_child(trained, log, events, f"{folder}/run")
    facts = {"events": events, "events_per_s": round(events / found["seconds"]), "process_gib": found["model_gib"]}
    peak = found["peak_gib"]
    run.measured("memory_peak_gib", Interval(peak, peak, peak), LIMIT_GIB, at_most=True, **facts)
    # Flat: what the second half of the pass added to the first's.
    half = len(found["held_gib"]) // 2
    growth = max(found["held_gib"][half:]) - max(found["held_gib"][:half])
    run.measured("memory_growth_gib", Interval(growth, growth, growth), 0.1, at_most=True, held_gib=found["held_gib"])
    written = wrote["peak_gib"]
    run.measured("memory_simulate_peak_gib", Interval(written, written, written), seconds=wrote["seconds"])


if __name__ == "__main__":
    harness.main("memory", body)
