"""What the tests of windows share: laws with scipy's names, and conversions drawn from them."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats

HOUR, DAY = 3_600_000, 86_400_000

# methods.md 5d, in days.
LAWS: dict[str, Any] = {
    "exponential mean 1": stats.expon(scale=1.0),
    "exponential mean 3": stats.expon(scale=3.0),
    "weibull .5, 5": stats.weibull_min(0.5, scale=5.0),
    "weibull 1.5, 3": stats.weibull_min(1.5, scale=3.0),
    "lognormal 1.5, 3": stats.lognorm(1.5, scale=3.0),
}


def drawn(
    laws: list[Any], sizes: list[int], days: float, seed: int = 0, until: float | None = None, others: float = 0.0
) -> dict[str, Any]:
    """Conversions: ``sizes[g]`` outcomes of group g with anchors over ``days``; those after ``until`` (days) are null;
    ``others``: anchors without outcome for each with one. Columns advertiser, anchor, converted (float ms)."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(len(sizes)), sizes)
    anchor = np.floor(rng.random(len(group)) * days * DAY).astype(np.int64)
    delay = np.concatenate([law.rvs(size, random_state=rng) for law, size in zip(laws, sizes, strict=True)])
    converted = anchor + np.floor(delay * DAY)
    more = round(others * len(group))
    group = np.concatenate([group, rng.integers(0, len(sizes), more)])
    anchor = np.concatenate([anchor, np.floor(rng.random(more) * days * DAY).astype(np.int64)])
    converted = np.concatenate([converted, np.full(more, np.nan)])
    end = (days if until is None else until) * DAY
    order = rng.permutation(len(group))
    converted = np.where(converted <= end, converted, np.nan)
    return {"advertiser": group[order], "anchor": anchor[order], "converted": converted[order]}


def true_alpha(law: Any, window: float, short: float = 1.0, long: float = 7.0) -> float:
    """(F(T) - F(T_s)) / (F(T_l) - F(T_s)), windows in days."""
    return float((law.cdf(window) - law.cdf(short)) / (law.cdf(long) - law.cdf(short)))
