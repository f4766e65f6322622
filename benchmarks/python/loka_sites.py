"""Trained models, what their layers really see on events that they never trained on, and how far Probe's predictions
are from it: what ``loka_prediction``, ``loka_faults`` and the tests of LoKA share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from octavo import loka, models
from octavo.config import build_config
from octavo.data import Batch, EventLog
from octavo.loka.candidates import own_candidate
from octavo.loka.sites import ProbedSite
from octavo.ops import errors

BATCH = 256
ROWS, GROUPS = 256, 8  # of held-out rows: as many a group as a draw has
CLIP = 1.0  # gradient norm
RESAMPLES = 2000
# Errors by direction: columns of a gradient are no signal, and no norm follows one.
ERRORS = {"forward": ("signal_rel", "post_norm"), "grad_input": ("rel_l1",), "grad_weight": ("rel_l1",)}


@dataclass(frozen=True)
class Compared:
    """One error of one class at one site: predicted, measured on real operands, and the N(0, 1) benchmark's."""

    site: str
    direction: str
    numerics: str
    error: str
    predicted: float
    measured: float
    normal: float


def ranker(log: EventLog, kind: str, **values: Any) -> models.Ranker:
    """A small model for ``log``."""
    settings = {"kind": kind, "embedding_dim": 16, "table_init": 0.1, **values}
    return models.build(log.schema, build_config({"model": settings}).model).train()


def loss_of(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Mean log loss over each head's known labels, summed over heads."""
    losses = []
    for task, z in model(batch).items():
        known = ~batch.labels[task].isnan()
        losses.append(functional.binary_cross_entropy_with_logits(z[known], batch.labels[task][known]))
    return torch.stack(losses).sum()


def trained(
    model: torch.nn.Module, batches: Iterable[Batch], watched_from: int, every: int = 4, **options: Any
) -> loka.Probe:
    """A Probe, closed, that watched what came of training ``model`` from the batch ``watched_from`` on."""
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    probe = None
    for step, batch in enumerate(batches):
        if step == watched_from:
            probe = loka.Probe(model, every, **options)
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        if probe is not None:
            probe.step()
    assert probe is not None, "too few batches"
    probe.close()
    return probe


def real_operands(model: torch.nn.Module, batch: Batch, seed: int = 0) -> dict[str, loka.Operands]:
    """Each site's operands on ``batch``: rows of x [M, K] and of the gradient of x W^T + bias [M, N], shuffled alike,
    at most ``ROWS * GROUPS`` of them. A site that ``batch`` does not reach is left out."""
    watcher = loka.Probe(model, every=1, most_rows=1 << 40)
    seen: dict[str, tuple[list[torch.Tensor], list[torch.Tensor]]] = {path: ([], []) for path in watcher.sites}
    for path, site in watcher.sites.items():
        site.input.observe, site.gradient.observe = (rows.append for rows in seen[path])  # type: ignore[method-assign]
    loss_of(model, batch).backward()
    model.zero_grad()
    watcher.close()
    found = {}
    for path, (inputs, gradients) in seen.items():
        if not inputs:
            continue
        x, grad = torch.cat(inputs).float(), torch.cat(gradients[::-1]).float()  # backward meets calls in reverse
        picks = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[: ROWS * GROUPS]
        site = watcher.sites[path]
        found[path] = loka.Operands(x[picks], grad[picks], site.weight, site.bias)
    return found


def groups_of(operands: loka.Operands) -> Iterator[loka.Operands]:
    """Its rows as draws have them, ``ROWS`` at a time."""
    for x, grad in zip(operands.x.split(ROWS), operands.grad.split(ROWS), strict=True):
        yield loka.Operands(x, grad, operands.weight, operands.bias)


def error_of(name: str, y: torch.Tensor, exact: torch.Tensor, site: ProbedSite) -> float:
    """One of octavo's errors, by the name it has in reports."""
    if name == "post_norm":
        return errors.post_norm_error(y, exact, site.cpu_norm)
    return {"signal_rel": errors.signal_relative, "rel_l1": errors.relative_l1}[name](y, exact)


def measured(
    candidate: loka.Candidate, operands: loka.Operands, site: ProbedSite, names: Sequence[str]
) -> dict[str, list[float]]:
    """Errors of ``candidate`` on real operands, one of each group."""
    found: dict[str, list[float]] = {name: [] for name in names}
    for group in groups_of(operands):
        exact, y = group.exact(candidate.direction), candidate.run(group)
        for name in names:
            found[name].append(error_of(name, y, exact, site))
    return found


def meant(site: ProbedSite, direction: str) -> tuple[str, ...]:
    """The errors that are compared there: a norm over one or two columns leaves nothing but signs."""
    return tuple(name for name in ERRORS[direction] if name != "post_norm" or site.n > 2)


def compared(
    probe: loka.Probe, operands: Mapping[str, loka.Operands], draws: int, seed: int = 0,
    candidates: Sequence[str | loka.Candidate] | None = None,
) -> list[Compared]:  # fmt: skip
    """Every class at every site and direction that both know."""
    learned, normal = (
        probe.evaluate(candidates, draws, inputs=inputs, measure_costs=False, seed=seed)
        for inputs in ("learned", "standard_normal")
    )
    found = []
    for path, real in operands.items():
        site = probe.sites[path]
        for direction in loka.DIRECTIONS:
            names = meant(site, direction)
            for here, blind in zip(learned.at(path, direction), normal.at(path, direction), strict=True):
                candidate = own_candidate(here.numerics, direction)
                assert candidate is not None
                for name, values in measured(candidate, real, site, names).items():
                    figures = here.errors[name].value, float(np.mean(values)), blind.errors[name].value
                    found.append(Compared(path, direction, here.numerics, name, *figures))
    return found


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Rank correlation; equal values share their mean rank. nan where one side is constant."""
    ranks = [_ranks(np.asarray(values)) for values in (a, b)]
    centred = [rank - rank.mean() for rank in ranks]
    scale = math.sqrt(float((centred[0] ** 2).sum() * (centred[1] ** 2).sum()))
    return float(centred[0] @ centred[1]) / scale if scale > 0 else math.nan


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def log_ratio(a: Sequence[float], b: Sequence[float]) -> float:
    """Median |ln(a / b)|."""
    return float(np.median(np.abs(np.log(np.asarray(a) / np.asarray(b)))))
