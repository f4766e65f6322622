"""The difference between two models over the same events, with an interval that respects clusters and seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from octavo.evaluation.inputs import Floats, as_array
from octavo.ops.intervals import Z, expansion

_DRAWS_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95% bootstrap interval."""

    estimate: float
    low: float
    high: float


def paired_difference(
    a: Any,
    b: Any,
    clusters: Any,
    labels: Any = None,
    *,
    weight: Any = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Mean loss of model A minus mean loss of model B: negative = A is better.

    ``a``, ``b`` [n]: both models' per-event losses over the same events (:func:`octavo.evaluation.log_loss`), nan where
    the label is not known (in both); ``clusters`` [n] integers: what is resampled whole (users; days where users do not
    repeat; events without one share -1 and so are one cluster). With ``labels`` [n] the result is the difference in NE:
    divided by the entropy of the mean label, which is recomputed in every resample. ``weight`` [n] or None.

    Several seeds: pass lists (one entry per seed, each world its own events); the estimate is the mean over seeds and
    the bootstrap has two levels, seeds and then clusters within each drawn seed.

    The interval is percentile, widened to the t quantile of the fewest units at the top level [Hesterberg 2015,
    expanded percentile]; nan with fewer than two units.
    """
    if resamples < 100:
        raise ValueError(f"resamples: expected at least 100 for a 95% interval, found {resamples}")
    if is_many(a):
        worlds = len(a)
        columns = [
            per_world(value, worlds, name)
            for value, name in ((b, "b"), (clusters, "clusters"), (labels, "labels"), (weight, "weight"))
        ]
        totals = [_cluster_totals(*world) for world in zip(a, *columns, strict=True)]
    else:
        totals = [_cluster_totals(a, b, clusters, labels, weight)]
    normalise = labels is not None
    estimate = float(np.mean([_difference(total.sum(axis=0, keepdims=True), normalise)[0] for total in totals]))
    units = len(totals) if len(totals) > 1 else len(totals[0])
    if units < 2 or math.isnan(estimate):
        return Interval(estimate, math.nan, math.nan)
    rng = np.random.default_rng(seed)
    if len(totals) == 1:
        drawn = _resample(totals[0], resamples, normalise, rng)
    else:
        drawn = np.zeros(resamples)
        picks = rng.integers(0, len(totals), (resamples, len(totals)))
        for number, total in enumerate(totals):
            times = (picks == number).sum(axis=1)
            values = _resample(total, int(times.sum()), normalise, rng)
            drawn += np.bincount(np.repeat(np.arange(resamples), times), values, minlength=resamples)
        drawn /= len(totals)
    tail = expanded_tail(units)
    low, high = np.nanquantile(drawn, [tail, 1 - tail])
    return Interval(estimate, float(low), float(high))


def _cluster_totals(a: Any, b: Any, clusters: Any, labels: Any, weight: Any) -> Floats:
    """[clusters, 3]: sums of weighted loss difference, weight and weighted label."""
    loss_a, loss_b = as_array(a, "a").astype(np.float64), as_array(b, "b").astype(np.float64)
    group = as_array(clusters, "clusters")
    truth = np.zeros(len(loss_a)) if labels is None else as_array(labels, "labels").astype(np.float64)
    loads = np.ones(len(loss_a)) if weight is None else as_array(weight, "weight").astype(np.float64)
    for argument, array in (("b", loss_b), ("clusters", group), ("labels", truth), ("weight", loads)):
        if len(array) != len(loss_a):
            raise ValueError(f"{argument}: expected one per event of a ({len(loss_a)}), found {len(array)}")
    unknown = np.isnan(loss_a)
    if (unknown != np.isnan(loss_b)).any():
        at = int((unknown != np.isnan(loss_b)).argmax())
        raise ValueError(f"a, b: event {at} is nan in one model only; both must score the same events")
    kept = ~unknown
    if not (np.isfinite(loss_a[kept]).all() and np.isfinite(loss_b[kept]).all()):
        raise ValueError("a, b: a loss is infinite; a logit of the wrong sign is infinite")
    _, number = np.unique(group[kept], return_inverse=True)
    load = loads[kept]
    parts = (load * (loss_a - loss_b)[kept], load, load * truth[kept])
    return np.stack([np.bincount(number, part) for part in parts], axis=1)


def _resample(totals: Floats, resamples: int, normalise: bool, rng: np.random.Generator) -> Floats:
    """[resamples]: the difference over as many clusters drawn with replacement."""
    found = np.empty(resamples)
    step = max(1, _DRAWS_AT_ONCE // len(totals))
    for begin in range(0, resamples, step):
        end = min(begin + step, resamples)
        picks = rng.integers(0, len(totals), (end - begin, len(totals)))
        found[begin:end] = _difference(totals[picks].sum(axis=1), normalise)
    return found


def _difference(totals: Floats, normalise: bool) -> Floats:
    """[r] from [r, 3]; nan where there is no weight or no entropy."""
    loss, weight, positive = totals.T
    with np.errstate(divide="ignore", invalid="ignore"):
        mean: Floats = loss / weight
        if not normalise:
            return mean
        rate = positive / weight
        entropy = -rate * np.log(rate) - (1 - rate) * np.log1p(-rate)
        return np.where((rate > 0) & (rate < 1), mean / entropy, math.nan)


def expanded_tail(units: int) -> float:
    """The tail (2.5% for many units) at which percentiles of a bootstrap over few units cover 95%."""
    return NormalDist().cdf(-Z * expansion(units))


def is_many(a: Any) -> bool:
    """Whether there is one entry per seed."""
    return isinstance(a, Sequence) and len(a) > 0 and not isinstance(a[0], (int, float))


def per_world(value: Any, worlds: int, argument: str) -> Sequence[Any]:
    """One entry per seed: Nones where there is no value."""
    if value is None:
        return [None] * worlds
    if not isinstance(value, Sequence) or len(value) != worlds:
        raise ValueError(f"{argument}: expected one entry per seed ({worlds}), found {len(value)}")
    return value
