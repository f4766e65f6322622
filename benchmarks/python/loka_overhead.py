"""What a Probe and a safety valve add to the training of four rankers at their default periods.

Whole steps in FP32, in BF16 and under a plan of INT8, in turns: alone, and with one that looks at every step. Between
looks there is next to nothing; the figure is (alone + a period's share of a look) / alone. A look every hundred steps
is colder than these, which follow another.
"""

from __future__ import annotations

import gc
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import harness
import torch
from harness import Entry, median_interval
from loka_speed_models import SIZES, Events, ranker, twin
from loka_training import octavo_step

from octavo import loka, models
from octavo.data import Batch
from octavo.ops import dispatch
from octavo.ops.dispatch import Plan
from octavo.training.numerics import run_all_in

PERIOD = inspect.signature(loka.Probe).parameters["every"].default
VALVE_PERIOD = inspect.signature(loka.SafetyValve).parameters["every"].default // 4  # as it watches rows
BATCHES = {"smoke": (16,), "quick": (512,), "full": (256, 1024)}
GRADIENTS = {"forward": "int8_dynamic", "grad_input": "int8_dynamic", "grad_weight": "bf16"}
GATE = 1.01
_NEVER = 1e30  # as a limit


def watched(step: Callable[[int], torch.Tensor], *watchers: Any) -> Callable[[int], torch.Tensor]:
    """The step, and theirs."""

    def both(i: int) -> torch.Tensor:
        loss = step(i)
        for watcher in watchers:
            watcher.step()
        return loss

    return both


def eight_bits(model: models.Ranker, batch: Batch) -> Plan:
    """INT8 in every layer, as plans of this CPU have it nearly everywhere."""
    forward = dispatch.uniform_plan(model, batch, "int8_dynamic")
    return Plan(tuple(replace(e, direction=d, numerics=c, kernels={}) for d, c in GRADIENTS.items() for e in forward))


def contest(run: harness.Run, kind: str, batch: int, base: str) -> None:
    """One model at one batch, alone and with what is measured on this base."""
    events = Events(SIZES[run.effort.name])
    model = ranker(kind, events)
    batches = events.batches(batch, 4)

    def trained() -> models.Ranker:
        own = twin(model)
        if base == "bf16":
            run_all_in(own, "bf16")
        elif base == "int8":
            loka.install(own, eight_bits(own, batches[0]), training=True)
        return own

    own = trained()
    if base == "int8":
        rows = loka.RecentRows(own, every=1)
        valve = loka.SafetyValve(own, rows, _NEVER, every=4)  # what closes a site makes its steps FP32's
        looks = watched(octavo_step(own, batches), rows, valve)
    else:
        looks = watched(octavo_step(own, batches), loka.Probe(own, every=1))
    entries = [Entry("alone", octavo_step(trained(), batches), items=batch), Entry("looks", looks, items=batch)]
    run.contest("loka_overhead", {"model": kind, "batch": batch, "base": base}, entries, [])


def body(run: harness.Run) -> None:
    """Every model at every batch on every base."""
    for kind in SIZES[run.effort.name].kinds:
        for batch in BATCHES[run.effort.name]:
            for base in ("fp32", "bf16", "int8"):
                contest(run, kind, batch, base)
                gc.collect()
    for base, name in (("fp32", "loka_overhead"), ("bf16", "loka_overhead_bf16"), ("int8", "loka_overhead_valve")):
        period, shares = VALVE_PERIOD if base == "int8" else PERIOD, []
        for done in run.contests:
            if done.shape["base"] != base:
                continue
            alone, looks = (done.samples[entry] for entry in ("alone", "looks"))
            shares.append(1 + (looks - alone) / period / alone)
            run.measured(f"{name}_{done.shape['model']}_{done.shape['batch']}", median_interval(shares[-1:]))
        run.measured(name, median_interval(shares), None if base == "int8" else GATE, at_most=True, period=period)


if __name__ == "__main__":
    harness.main("loka_overhead", body)
