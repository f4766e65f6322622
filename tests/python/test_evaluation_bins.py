"""Calibration bins and the Wilson interval."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.evaluation import calibration_bins, wilson_interval


def test_wilson_by_hand() -> None:
    """Both ends solve |rate - p| = z sqrt(p (1 - p) / n)."""
    low, high = wilson_interval(8, 10)
    assert (low, high) == (pytest.approx(0.4901625, abs=1e-7), pytest.approx(0.9433178, abs=1e-7))
    for end in (low, high):
        assert abs(0.8 - end) == pytest.approx(1.959963984540054 * math.sqrt(end * (1 - end) / 10))
    assert wilson_interval(0, 10) == (0.0, pytest.approx(0.2775328, abs=1e-7))
    assert wilson_interval(10, 10) == (pytest.approx(0.7224672, abs=1e-7), 1.0)
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_wilson_covers() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for positives in rng.binomial(60, 0.07, 4000):
        low, high = wilson_interval(float(positives), 60)
        hits += low <= 0.07 <= high
    assert 0.92 < hits / 4000 < 0.98


def test_bins_by_hand() -> None:
    found = calibration_bins([0.9, 0.1, 0.2, 0.8], [1, 0, 1, 1], bins=2)
    assert [(b.predicted, b.observed, b.events) for b in found] == [
        (pytest.approx(0.15), 0.5, 2), (pytest.approx(0.85), 1.0, 2)
    ]  # fmt: skip
    assert [(b.low, b.high) for b in found] == [wilson_interval(1, 2), wilson_interval(2, 2)]
    same = calibration_bins([math.log(p / (1 - p)) for p in (0.9, 0.1, 0.2, 0.8)], [1, 0, 1, 1], bins=2, logits=True)
    assert [b.predicted for b in same] == [pytest.approx(0.15), pytest.approx(0.85)]


@given(st.lists(st.tuples(st.integers(0, 10), st.sampled_from([0.0, 1.0, math.nan])), max_size=50), st.integers(1, 12))
def test_bins_partition_the_known_events_and_never_split_ties(events: list[tuple[int, float]], bins: int) -> None:
    p = np.array([score / 10 for score, _ in events])
    y = np.array([label for _, label in events])
    known = ~np.isnan(y)
    found = calibration_bins(p, y, bins)
    assert len(found) <= bins
    assert sum(b.events for b in found) == known.sum()
    assert sum(b.events * b.predicted for b in found) == pytest.approx(p[known].sum())
    assert sum(b.events * b.observed for b in found) == pytest.approx(y[known].sum())
    means = [b.predicted for b in found]
    assert means == sorted(means)
    assert all(b.low <= b.observed <= b.high for b in found)
    edges = np.sort(p[known])
    at = 0
    for b in found[:-1]:
        at += b.events
        assert edges[at - 1] < edges[at]


def test_distinct_predictions_fill_bins_evenly() -> None:
    found = calibration_bins(np.linspace(0, 1, 103), np.arange(103) % 2, bins=10)
    assert sorted(b.events for b in found) == [10] * 7 + [11] * 3


def test_refuses_no_bins() -> None:
    with pytest.raises(ValueError, match="bins: expected at least 1, found 0"):
        calibration_bins([0.5], [1], bins=0)
