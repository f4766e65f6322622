"""Figures of paired runs: NE of an arm minus NE of FP32 on the same events, in % of the latter, with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import harness
import numpy as np
from harness import Interval
from loka_quality_runs import Found

from octavo.evaluation import log_loss, ne, paired_difference
from octavo.ops.dispatch import Plan

MARGIN = 0.05  # % of NE
RESAMPLES = {"smoke": 100, "quick": 200, "full": 1000}


def trained(
    run: harness.Run,
    op: str,
    shape: Mapping[str, Any],
    seeds: Sequence[Found],
    arms: Sequence[str],
    base: str = "fp32",
    classes: Mapping[str, Plan] | None = None,
) -> dict[tuple[str, str], Interval]:
    """A row for every task and arm of paired training runs: 90% t interval over seeds, beside it 95% over seeds and
    users. Returns the figures by (task, arm). ``base``: the FP32 arm to compare with; ``classes``: the plans of arms
    that have one."""
    found: dict[tuple[str, str], Interval] = {}
    for number, task in enumerate(seeds[0]["tasks"].tolist()):
        whole = [ne(one[base][number], one["labels"][number], logits=True) for one in seeds]
        for arm in arms:
            each = by_seed(seeds, arm, number, base)
            figure = over_seeds(each)
            wide = over_clusters(seeds, arm, number, RESAMPLES[run.effort.name], base)
            facts: dict[str, Any] = {
                "interval": "90% t over seeds", "seeds": [round(value, 5) for value in each],
                "over_seeds_and_users_95": [round(wide.low, 5), round(wide.high, 5)],
                "fp32_ne": [round(value, 5) for value in whole],
            }  # fmt: skip
            if classes is not None and arm in classes:
                facts["classes"] = plan_facts(classes[arm])
            size = {"task": task, "rows": seeds[0]["labels"].shape[1], "seeds": len(seeds)}
            run.row(op, {**shape, **size}, arm, figure, facts)
            found[task, arm] = figure
    return found


def bar(run: harness.Run, name: str, figure: Interval, is_gate: bool, plan: Plan | None = None) -> None:
    """A gate on the whole interval, or a finding; a plan that leaves all in FP32 is said to."""
    said = verdict(figure)
    idle = plan is not None and not is_low(plan)
    if idle:
        said = "nothing was measured: the plan is FP32 throughout on this machine"
    run.measured(name, figure, MARGIN if is_gate else None, inside=True, verdict=said)
    if idle:
        run.bars[-1]["holds"] = None


def verdict(figure: Interval) -> str:
    """Where an interval lies to the margin."""
    if figure.low > -MARGIN and figure.high < MARGIN:
        return "inside the margin"
    return "outside" if figure.low >= MARGIN or figure.high <= -MARGIN else "not resolved"


def by_seed(seeds: Sequence[Found], arm: str, task: int, base: str = "fp32") -> list[float]:
    """A figure per seed."""
    found = []
    for one in seeds:
        first, second = (ne(one[name][task], one["labels"][task], logits=True) for name in (arm, base))
        found.append(100 * (first - second) / second)
    return found


def over_seeds(figures: Sequence[float], level: float = 0.9) -> Interval:
    """Mean with its t interval; nan with one seed."""
    from scipy.special import stdtrit

    mean = float(np.mean(figures))
    if len(figures) < 2:
        return Interval(mean, math.nan, math.nan)
    half = float(stdtrit(len(figures) - 1, (1 + level) / 2)) * float(np.std(figures, ddof=1)) / math.sqrt(len(figures))
    return Interval(mean, mean - half, mean + half)


def over_clusters(seeds: Sequence[Found], arm: str, task: int, resamples: int, base: str = "fp32") -> Interval:
    """95% bootstrap: seeds, each a world of its own, then users within each."""
    a, b = ([log_loss(one[name][task], one["labels"][task], logits=True) for one in seeds] for name in (arm, base))
    users, labels = [one["user"] for one in seeds], [one["labels"][task] for one in seeds]
    if len(seeds) == 1:
        return _in_percent(paired_difference(a[0], b[0], users[0], labels[0], resamples=resamples), seeds, task, base)
    return _in_percent(paired_difference(a, b, users, labels, resamples=resamples), seeds, task, base)


def over_users(seeds: Sequence[Found], arm: str, task: int, resamples: int, base: str = "fp32") -> Interval:
    """95% bootstrap over the users of one log that all seeds trained on; losses are means over seeds."""
    labels = seeds[0]["labels"][task]
    a, b = (np.mean([log_loss(one[n][task], labels, logits=True) for one in seeds], axis=0) for n in (arm, base))
    return _in_percent(paired_difference(a, b, seeds[0]["user"], labels, resamples=resamples), seeds, task, base)


def _in_percent(found: Any, seeds: Sequence[Found], task: int, base: str) -> Interval:
    whole = float(np.mean([ne(one[base][task], one["labels"][task], logits=True) for one in seeds])) / 100
    return Interval(found.estimate / whole, found.low / whole, found.high / whole)


def is_low(plan: Plan) -> bool:
    """Whether anything runs in low precision."""
    return any(entry.numerics != "fp32" for entry in plan)


def plan_facts(plan: Plan) -> dict[str, dict[str, str]]:
    """By direction: each class's number of sites and share of the weights' elements."""
    found: dict[str, dict[str, str]] = {}
    for direction in dict.fromkeys(entry.direction for entry in plan):
        entries = plan.of_direction(direction)
        total = sum(entry.n * entry.k for entry in entries)
        for entry in entries:
            own = [other for other in entries if other.numerics == entry.numerics]
            share = sum(other.n * other.k for other in own) / total
            found.setdefault(direction, {})[entry.numerics] = f"{len(own)} sites, {share:.0%} of weights"
    return found
