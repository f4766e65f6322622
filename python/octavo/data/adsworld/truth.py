"""What the world knows and models must not: for tests and for the floor that no model can pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.data.adsworld.model import Advertising

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class BayesOptimum:
    """The expected base rate, NE and AUC of predicting the true probabilities, over the outcomes they give."""

    base_rate: float
    ne: float
    auc: float


def bayes_optimum(p: Any) -> BayesOptimum:
    """``p`` [n]: true probabilities of the events. What the best model can expect on them.

    NE = mean entropy of p / entropy of mean p. AUC = expected right pairs (ties count half) / expected pairs, over
    pairs of two different events. nan where the labels cannot be of both kinds. Raises ValueError outside 0..1.
    """
    p = np.asarray(p, np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError("p: expected probabilities in 0..1, one per event")
    if len(p) == 0:
        return BayesOptimum(np.nan, np.nan, np.nan)
    rate = float(p.mean())
    whole = float(_entropy(np.array([rate]))[0])
    ne = float(_entropy(p).mean()) / whole if whole > 0 else np.nan
    group = np.unique(p, return_inverse=True)[1]
    positive = np.bincount(group, p)
    negative = np.bincount(group, 1 - p)
    itself = float((p * (1 - p)).sum())  # an event is no pair with itself, and would be a tie
    pairs = float(positive.sum() * negative.sum()) - itself
    below = np.cumsum(negative) - negative
    right = float((positive * (below + 0.5 * negative)).sum()) - 0.5 * itself
    return BayesOptimum(rate, ne, right / pairs if pairs > 0 else np.nan)


class Truth:
    """The delay laws of a world's advertisers. Delays are seconds from click to conversion, given a conversion within
    the window; ``advertiser`` [n] or a number, ``time`` the impression's in ms since 1970 (None: before any shift)."""

    def __init__(self, advertising: Advertising, intercepts: Floats) -> None:
        self._advertising = advertising
        self.intercepts = intercepts  # [2, domains] of click and conversion

    @property
    def law(self) -> npt.NDArray[np.int64]:
        """[advertisers] index into ``config.conversions.laws``."""
        return self._advertising.law

    @property
    def scale(self) -> Floats:
        """[advertisers] factor of the law's times."""
        return self._advertising.scale

    def delay_cdf(self, advertiser: Any, seconds: Any, time: Any = None) -> Floats:
        """P(delay <= seconds | conversion), broadcast over the arguments."""
        return self._over(self._advertising.cdf, advertiser, seconds, time)

    def delay_quantile(self, advertiser: Any, q: Any, time: Any = None) -> Floats:
        """Seconds within which a share ``q`` of the conversions come. Raises ValueError for q outside 0..1."""
        if not ((np.asarray(q) >= 0) & (np.asarray(q) <= 1)).all():
            raise ValueError(f"q: expected shares in 0..1, found {q}")
        return self._over(self._advertising.quantile, advertiser, q, time)

    def p_conversion_within(self, p_conversion: Any, advertiser: Any, seconds: Any, time: Any = None) -> Floats:
        """P(conversion at most ``seconds`` after the click | click), from the log's ``_p_conversion``."""
        found: Floats = np.asarray(p_conversion, np.float64) * self.delay_cdf(advertiser, seconds, time)
        return found

    def _over(self, function: Any, advertiser: Any, value: Any, time: Any) -> Floats:
        ids, values = np.broadcast_arrays(np.asarray(advertiser, np.int64), np.asarray(value, np.float64))
        count = len(self._advertising.law)
        if not ((ids >= 0) & (ids < count)).all():
            raise ValueError(f"advertiser: expected 0..{count - 1}, found {ids.min()}..{ids.max()}")
        when = None if time is None else np.broadcast_to(np.asarray(time, np.int64), ids.shape).ravel()
        found: Floats = function(ids.ravel(), values.ravel(), when).reshape(ids.shape)
        return found


def _entropy(p: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        bits = -(p * np.log(p) + (1 - p) * np.log1p(-p))
    return np.where((p > 0) & (p < 1), bits, 0.0)
