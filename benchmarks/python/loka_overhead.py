"""What a Probe at its default period adds to the training of four rankers.

Whole steps, in turns: alone, and under a Probe that looks at every step. Between looks a Probe has no hooks; the figure
is (alone + a period's share of a look) / alone. A look every hundred steps is colder than these, which follow another.
"""

from __future__ import annotations

import gc
import inspect
from collections.abc import Callable

import harness
import torch
from harness import Entry, median_interval
from loka_speed_models import SIZES, Events, ranker, twin
from loka_training import octavo_step

from octavo import loka

PERIOD = inspect.signature(loka.Probe).parameters["every"].default
ALONE, LOOKS = "alone", "under a Probe that looks at every step"
BATCHES = {"smoke": (16,), "quick": (512,), "full": (256, 1024)}


def watched(step: Callable[[int], torch.Tensor], probe: loka.Probe) -> Callable[[int], torch.Tensor]:
    """The step, and the Probe's."""

    def both(i: int) -> torch.Tensor:
        loss = step(i)
        probe.step()
        return loss

    return both


def contest(run: harness.Run, kind: str, batch: int) -> None:
    """One model at one batch."""
    events = Events(SIZES[run.effort.name])
    model = ranker(kind, events)
    batches = events.batches(batch, 4)
    entries = [Entry(ALONE, octavo_step(twin(model), batches), items=batch)]
    own = twin(model)
    entries.append(Entry(LOOKS, watched(octavo_step(own, batches), loka.Probe(own, every=1)), items=batch))
    run.contest("loka_overhead", {"model": kind, "batch": batch}, entries, [])


def body(run: harness.Run) -> None:
    """Every model at every batch."""
    for kind in SIZES[run.effort.name].kinds:
        for batch in BATCHES[run.effort.name]:
            contest(run, kind, batch)
            gc.collect()
    shares = []
    for done in run.contests:
        alone, looks = (done.samples[name] for name in (ALONE, LOOKS))
        shares.append(1 + (looks - alone) / PERIOD / alone)
        run.measured("loka_overhead_" + "_".join(map(str, done.shape.values())), median_interval(shares[-1:]))
    run.measured("loka_overhead", median_interval(shares), 1.01, at_most=True, period=PERIOD)


if __name__ == "__main__":
    harness.main("loka_overhead", body)
