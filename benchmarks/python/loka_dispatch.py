"""What choosing a class for every layer brings over one class everywhere, and whether the requirement holds.

Four trained models (``loka_speed_models``), each at every batch it serves: octavo under the plan, twice (A/A), and with
each class in all layers, FP32 included; the same tables for all. The plan is not to be slower than the best
single class by more than the A/A spread of its contest. The requirement is measured, not predicted: every layer's
error on held-out events against FP64, group by group of rows, the upper end of the mean's interval as a share of the
limit. A single class meets it when all of its layers do. Where every class meets it nothing could have been violated:
a tenth of it besides, met by some classes at some layers, shows whether what is admitted holds (no speed is at stake).
"""

from __future__ import annotations

import gc
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import harness
import numpy as np
import torch
from harness import Contest, Interval, median_interval
from loka_inference import octavo_entry
from loka_speed_models import (
    REQUIREMENT,
    SERVED_ROWS,
    SIZES,
    Study,
    classes_of,
    quality_facts,
    served_logits,
    twin,
)

from octavo import loka
from octavo.loka.intervals import estimates
from octavo.ops import dispatch
from octavo.ops.dispatch import Plan
from octavo.ops.dispatch.plan import LOW_PRECISION, Site

ROWS, MOST_GROUPS = 256, 16
TENTH = 0.1
PLAN, AGAIN = "octavo plan", "octavo plan again"
CLASSES = (*LOW_PRECISION, "fp32")


@dataclass(frozen=True)
class Measured:
    """An error of one class at one site on held-out rows, as a share of the limit: its mean, the upper end."""

    share: float
    upper: float


def measured(study: Study) -> dict[tuple[str, str], Measured]:
    """Every site in every class on the held-out events."""
    limit = REQUIREMENT.demands()["max_post_norm"]
    found: dict[tuple[str, str], Measured] = {}
    for site in dispatch.sites(study.model, study.held_out):
        for name in LOW_PRECISION:
            values = [dispatch.site_errors(group, name)["post_norm"] for group in groups_of(site)]
            estimate = estimates(torch.tensor(values, dtype=torch.float64)[:, None])[0]
            found[site.path, name] = Measured(estimate.value / limit, estimate.high / limit)
    return found


def groups_of(site: Site) -> list[Site]:
    """The site with groups of its rows at random, as a draw of Probe's has them."""
    order = torch.randperm(len(site.x), generator=torch.Generator().manual_seed(0))
    picked = order[: ROWS * MOST_GROUPS].split(min(ROWS, max(1, len(order) // 4)))
    return [Site(site.path, site.weight, site.bias, site.norm, site.activation, site.x[rows]) for rows in picked]


def share_of(plan: Plan, errors: Mapping[tuple[str, str], Measured]) -> tuple[str, Measured]:
    """The planned site that comes nearest to the limit."""
    planned = {e.site: errors[e.site, e.numerics] for e in plan if e.numerics != "fp32"}
    site = max(planned, key=lambda path: planned[path].upper, default="none")
    return site, planned.get(site, Measured(0.0, 0.0))


def contest(
    run: harness.Run, study: Study, events: int, errors: Mapping[tuple[str, str], Measured]
) -> tuple[Plan, Contest, list[str]]:
    """One model at one batch; the single classes that meet the requirement."""
    batches = study.events.batches(events, max(4, min(64, 16_384 // events)))
    plan = study.plan(batches[0])
    reference = served_logits(study.model.eval(), study.held_out)
    base = study.with_rows(SERVED_ROWS)
    plans = {PLAN: plan, AGAIN: plan, **{n: dispatch.uniform_plan(study.model, batches[0], n) for n in CLASSES}}
    meeting = [n for n in CLASSES if n == "fp32" or all(m.upper <= 1 for (_, c), m in errors.items() if c == n)]
    entries = []
    for name, chosen in plans.items():
        model = loka.install(twin(base), chosen, training=False)
        model.embeddings = base.embeddings  # one copy of the tables for all
        facts: dict[str, Any] = quality_facts(served_logits(model, study.held_out), reference, study.held_out)
        facts |= {"classes": classes_of(chosen)}
        if name in CLASSES:
            facts["meets"] = name in meeting
        else:
            site, worst = share_of(plan, errors)
            facts |= {"nearest_site": site, "share_of_limit": worst.share, "share_of_limit_upper": worst.upper}
        entries.append(octavo_entry(name, model, batches, facts))
    shape = {"model": study.kind, "batch": events, "tables": len(study.size.rows), "dim": study.size.dim}
    return plan, run.contest("loka_dispatch", shape, entries, []), meeting


def ratios(found: Contest, among: list[str]) -> np.ndarray:
    """The best of these classes over the plan, round by round; A and A again are both the plan."""
    by_name = {entry.name: entry for entry in found.ours}
    best = found.best([by_name[name] for name in among])
    assert best is not None
    return found.ratios(by_name[PLAN], best)


def spread(found: Contest) -> float:
    """How far the plan's two entries may lie apart: the further end of the interval of their ratio, from 1."""
    by_name = {entry.name: entry for entry in found.ours}
    interval = median_interval([found.ratios(by_name[PLAN], by_name[AGAIN])])
    return max(abs(np.log(interval.low)), abs(np.log(interval.high)))


def admitted(study: Study, errors: Mapping[tuple[str, str], Measured], share: float) -> list[Measured]:
    """Every class at every site that the report admits to this share of the limit; errors as shares of it."""
    limit = share * REQUIREMENT.demands()["max_post_norm"]
    found = []
    for finding in study.report().findings:
        predicted = finding.errors.get("post_norm")
        if predicted is not None and predicted.high <= limit:
            seen = errors[finding.site, finding.numerics]
            found.append(Measured(seen.share / share, seen.upper / share))
    return found


def requirement(run: harness.Run, name: str, shares: list[Measured], of: int, bar: float | None = None) -> None:
    """The nearest to the limit; how many were looked at, out of how many, and how many lie beyond it."""
    if not shares:
        return
    worst = max(shares, key=lambda each: math.inf if math.isnan(each.upper) else each.upper)
    violated = sum(not each.upper <= 1 for each in shares)
    run.measured(name, Interval(worst.upper, worst.share, worst.upper), bar, at_most=True,
                 admitted=len(shares), of=of, violated=violated)  # fmt: skip


def figures(run: harness.Run, found: list[tuple[Contest, list[str]]]) -> None:
    """Geometric means, and the contest where the plan is furthest behind in relation to its spread."""
    meeting = [ratios(contest, names) for contest, names in found]
    every = [ratios(contest, list(CLASSES)) for contest, _ in found]
    run.measured("loka_dispatch_vs_best_single_that_meets", median_interval(meeting), contests=len(found))
    run.measured("loka_dispatch_vs_best_single", median_interval(every), contests=len(found))
    allowed = [
        (median_interval([values]), spread(contest), contest.shape)
        for values, (contest, _) in zip(meeting, found, strict=True)
    ]
    interval, room, shape = min(allowed, key=lambda each: np.log(each[0].figure) + each[1])
    widened = Interval(*(float(end * np.exp(room)) for end in (interval.figure, interval.low, interval.high)))
    run.measured("loka_dispatch_worst_with_spread", widened, 1.0, spread=float(room), worst=dict(shape))
    rooms = [room for _, room, _ in allowed]
    run.measured("loka_dispatch_spread", Interval(float(np.median(rooms)), min(rooms), max(rooms)))


@torch.no_grad()
def body(run: harness.Run) -> None:
    """Every model at every batch, then the figures."""
    size = SIZES[run.effort.name]
    found, strict, possible = [], [], 0
    planned: dict[tuple[str, str, str], Measured] = {}  # a layer in a class counts once, whatever the batches
    for kind in size.kinds:
        with torch.enable_grad():
            study = Study(kind, size)
        errors = measured(study)
        for events in size.batches:
            plan, timed, meeting = contest(run, study, events, errors)
            found.append((timed.without_calls(), meeting))
            planned |= {(kind, e.site, e.numerics): errors[e.site, e.numerics] for e in plan if e.numerics != "fp32"}
        strict += admitted(study, errors, TENTH)
        possible += len(errors)
        del study, timed
        gc.collect()
    figures(run, found)
    requirement(run, "loka_dispatch_requirement", list(planned.values()), possible, bar=1.0)
    requirement(run, "loka_dispatch_requirement_tenth", strict, possible)


if __name__ == "__main__":
    harness.main("loka_dispatch", body)
