"""Any ranking metric, of one model or as the difference of two, with a two-level bootstrap interval."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from octavo.evaluation.inputs import Floats, as_array, known_events
from octavo.evaluation.metrics import entropy_of, event_losses, probabilities
from octavo.evaluation.paired import Interval, expanded_tail, is_many, per_world
from octavo.evaluation.ranking import Ranking

Metric = Literal["ne", "log_loss", "auc", "gauc", "calibration"]
Statistic = Callable[[Floats], float]  # how often each cluster counts [C] -> the metric
_METRICS = ("ne", "log_loss", "auc", "gauc", "calibration")


def paired(
    metric: Metric,
    a: Any,
    b: Any,
    labels: Any,
    clusters: Any,
    *,
    weight: Any = None,
    group: Any = None,
    logits: bool = True,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """``metric`` of model A minus that of model B over the same events, with its 95% interval.

    ``a``, ``b``, ``labels``, ``weight`` [n] as :mod:`octavo.evaluation.metrics` has them; ``clusters`` [n] integers:
    what is resampled whole (users; days where users do not repeat); ``group`` [n]: GAUC's groups, ``clusters`` when
    left out. The metric is computed anew in every resample (AUC: on all its events), both models on the same draw.

    Several seeds: pass lists (one entry per seed, each world its own events); the estimate is the mean over seeds, and
    the bootstrap draws seeds, then clusters within each drawn seed. Percentile interval widened for few units at the
    top level [Hesterberg 2015]; nan with fewer than two.
    """
    return _bootstrap(metric, a, b, labels, clusters, weight, group, logits, resamples, seed)


def interval(
    metric: Metric,
    predictions: Any,
    labels: Any,
    clusters: Any,
    *,
    weight: Any = None,
    group: Any = None,
    logits: bool = True,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """``metric`` of one model with its 95% interval; arguments as :func:`paired` has them."""
    return _bootstrap(metric, predictions, None, labels, clusters, weight, group, logits, resamples, seed)


def _bootstrap(
    metric: str, a: Any, b: Any, labels: Any, clusters: Any, weight: Any, group: Any, logits: bool, resamples: int,
    seed: int,
) -> Interval:  # fmt: skip
    if metric not in _METRICS:
        raise ValueError(f"metric: expected one of {', '.join(_METRICS)}, found {metric!r}")
    if resamples < 100:
        raise ValueError(f"resamples: expected at least 100 for a 95% interval, found {resamples}")
    if is_many(a):
        named = {"b": b, "labels": labels, "clusters": clusters, "weight": weight, "group": group}
        others = [per_world(value, len(a), name) for name, value in named.items()]
        worlds = [
            _world(metric, a, b, labels, clusters, weight, group, logits)
            for a, b, labels, clusters, weight, group in zip(a, *others, strict=True)
        ]
    else:
        worlds = [_world(metric, a, b, labels, clusters, weight, group, logits)]
    estimate = float(np.mean([statistic(np.ones(count)) for count, statistic in worlds]))
    units = len(worlds) if len(worlds) > 1 else worlds[0][0]
    if units < 2 or math.isnan(estimate):
        return Interval(estimate, math.nan, math.nan)
    rng = np.random.default_rng(seed)
    drawn = np.empty(resamples)
    for number in range(resamples):
        picks = rng.integers(0, len(worlds), len(worlds)) if len(worlds) > 1 else [0]
        values = []
        for pick in picks:
            count, statistic = worlds[pick]
            values.append(statistic(np.bincount(rng.integers(0, count, count), minlength=count).astype(np.float64)))
        drawn[number] = np.mean(values)
    tail = expanded_tail(units)
    defined = drawn[~np.isnan(drawn)]
    low, high = np.quantile(defined, [tail, 1 - tail]) if len(defined) else (math.nan, math.nan)
    return Interval(estimate, float(low), float(high))


def _world(
    metric: str, a: Any, b: Any, labels: Any, clusters: Any, weight: Any, group: Any, logits: bool
) -> tuple[int, Statistic]:
    """How many clusters there are, and the metric (or the difference) as a function of how often each counts."""
    ids = as_array(clusters, "clusters")
    groups = ids if group is None else as_array(group, "group")
    events = len(as_array(labels, "labels"))
    for argument, column in (("clusters", ids), ("group", groups)):
        if len(column) != events:
            raise ValueError(f"{argument}: expected one per label ({events}), found {len(column)}")
    parts = []
    count = 0
    for predictions in (a, b) if b is not None else (a,):
        scores, truth, loads, known = known_events(
            predictions, labels, weight, logits or metric in ("auc", "gauc"), binary=metric in ("auc", "gauc")
        )
        names, number = np.unique(ids[known], return_inverse=True)
        count = len(names)
        if metric in ("auc", "gauc"):
            parts.append(_ranked(scores, truth, loads, number, groups[known] if metric == "gauc" else None))
        else:
            parts.append(_summed(metric, scores, truth, loads, number, count, logits))
    first, *rest = parts
    if not rest:
        return count, first
    second = rest[0]
    return count, lambda times: first(times) - second(times)


def _ranked(scores: Floats, truth: Floats, loads: Floats, number: Any, groups: Any) -> Statistic:
    if groups is None:
        ranking = Ranking(scores, truth, np.zeros(len(scores), np.int64))
        return lambda times: ranking.auc(loads * times[number])
    inside = groups != -1  # events of no user
    ranking = Ranking(scores[inside], truth[inside], groups[inside])
    return lambda times: ranking.auc((loads * times[number])[inside])


def _summed(
    metric: str, scores: Floats, truth: Floats, loads: Floats, number: Any, count: int, logits: bool
) -> Statistic:
    """From sums per cluster: of weights, labels, losses and predictions."""
    columns = (loads, loads * truth, loads * event_losses(scores, truth, logits), loads * probabilities(scores, logits))
    totals = np.stack([np.bincount(number, column, minlength=count) for column in columns], axis=1)

    def statistic(times: Floats) -> float:
        weight, positive, loss, predicted = (times @ totals).tolist()
        if metric == "calibration":
            return predicted / positive if positive > 0 else math.nan
        if weight == 0:
            return math.nan
        if metric == "log_loss":
            return loss / weight
        entropy = entropy_of(positive / weight)
        return loss / weight / entropy if entropy > 0 else math.nan

    return statistic
