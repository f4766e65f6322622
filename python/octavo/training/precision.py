"""After training: a plan from a requirement, and what each numerics costs in quality and brings in speed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import astuple

import numpy as np
import torch

from octavo import nn
from octavo.config import PlanConfig
from octavo.data import Batch, EventLog
from octavo.evaluation import log_loss, paired_difference, quality
from octavo.ops import dispatch
from octavo.report import NumericsRow, PlanRow, SpeedRow
from octavo.training.slices import Predictions, predict
from octavo.training.torch_peer import torch_twin

PLANNED, REFERENCE = "planned", "FP32"


def make_plan(model: torch.nn.Module, log: EventLog, train_end: int, config: PlanConfig) -> dispatch.Plan:
    """A plan chosen on the last training events, before the held-out ones."""
    batch = log.read(max(0, train_end - config.calibration_events), train_end)
    return dispatch.plan(model, batch, dispatch.Requirement(min_sqnr_db=config.min_sqnr_db))


def variants(
    model: torch.nn.Module, plan: dispatch.Plan, batch: Batch, config: PlanConfig
) -> dict[str, torch.nn.Module]:
    """The model as trained, by the plan, and uniformly in each class to compare."""
    found = {REFERENCE: model.eval(), PLANNED: nn.convert(model, plan)}
    for name in config.compare:
        found[name] = nn.convert(model, dispatch.uniform_plan(model, batch, name))
    return found


def compare_quality(
    models: Mapping[str, torch.nn.Module], log: EventLog, start: int, config: PlanConfig
) -> tuple[list[NumericsRow], Predictions]:
    """Held-out quality of each variant and its NE minus FP32's, paired by event, clusters = users, or days."""
    rows = []
    reference = predict(models[REFERENCE], log, start, len(log))
    for name, model in models.items():
        found = reference if name == REFERENCE else predict(model, log, start, len(log))
        for task, z in found.logits.items():
            labels = found.labels[task]
            difference = None
            if name != REFERENCE:
                difference = paired_difference(
                    log_loss(z, labels, logits=True),
                    log_loss(reference.logits[task], labels, logits=True),
                    found.clusters,
                    labels,
                    weight=found.weight,
                    resamples=config.bootstrap,
                )
                if any(map(math.isnan, astuple(difference))):  # one class, or one user
                    difference = None
            rows.append(NumericsRow(name, task, quality(z, labels, found.weight, logits=True), difference))
    return rows, reference


def compare_speed(
    models: Mapping[str, torch.nn.Module], log: EventLog, start: int, config: PlanConfig
) -> list[SpeedRow]:
    """Whole-model forward time, interleaved round by round, against the same model in torch FP32 and BF16."""
    contestants = {
        "torch FP32": torch_twin(models[REFERENCE], torch.float32),
        "torch BF16": torch_twin(models[REFERENCE], torch.bfloat16),
        **models,
    }
    rows = []
    for size in config.batch_sizes:
        if start + size > len(log):
            continue
        batch = log.read(start, start + size)
        times = _interleaved({name: _call(model, batch) for name, model in contestants.items()}, config.rounds)
        base = times["torch FP32"]
        for name, us in times.items():
            p10, p50, p90 = np.quantile(us, [0.1, 0.5, 0.9])
            r10, r50, r90 = np.quantile(base / us, [0.1, 0.5, 0.9])
            rows.append(SpeedRow(name, size, p10, p50, p90, r50, r10, r90))
    return rows


def plan_rows(plan: dispatch.Plan) -> list[PlanRow]:
    """The plan as the report shows it."""
    rows = []
    for e in plan:
        names = set(e.kernels.values())
        kernels = {"any M": names.pop()} if len(names) == 1 else {f"M <= {m}": name for m, name in e.kernels.items()}
        rows.append(PlanRow(e.site, e.n, e.k, e.epilogue, e.numerics, kernels, e.predicted_sqnr_db))
    return rows


def _call(model: torch.nn.Module, batch: Batch) -> Callable[[], None]:
    def call() -> None:
        with torch.inference_mode():
            model(batch)

    return call


def _interleaved(calls: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, np.ndarray]:
    """us of every call in every round; the order rotates, and each sample follows an untimed call of its own."""
    for call in calls.values():
        for _ in range(3):
            call()
    names = list(calls)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            calls[name]()
            start = time.perf_counter()
            calls[name]()
            times[name].append((time.perf_counter() - start) * 1e6)
    return {name: np.array(us) for name, us in times.items()}
