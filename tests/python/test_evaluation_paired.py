"""Paired differences: values by hand, coverage on placebo worlds, and what clusters and seeds are for."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("scipy")

from octavo.evaluation import Interval, log_loss, ne, paired_difference


def test_estimate_by_hand() -> None:
    a, b, w = np.array([1.0, 2.0, 3.0, 4.0]), np.array([2.0, 2.0, 2.0, 2.0]), np.array([1.0, 1.0, 1.0, 5.0])
    user = np.array([1, 1, 2, 3])
    assert paired_difference(a, b, user).estimate == 0.5
    assert paired_difference(a, b, user, weight=w).estimate == pytest.approx((-1 + 0 + 1 + 10) / 8)
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert paired_difference(a, b, user, [1, 0, 0, 0]).estimate == pytest.approx(0.5 / entropy)


def test_with_labels_it_is_the_difference_in_ne() -> None:
    rng = np.random.default_rng(0)
    x, y, user = rng.normal(size=4000), rng.integers(0, 2, 4000).astype(float), rng.integers(0, 200, 4000)
    y[::7] = math.nan
    one, two = x, x * 0.5 + 0.1
    found = paired_difference(log_loss(one, y, logits=True), log_loss(two, y, logits=True), user, y)
    assert found.estimate == pytest.approx(ne(one, y, logits=True) - ne(two, y, logits=True), rel=1e-10)
    assert found.low < found.estimate < found.high


def test_same_model_differs_by_nothing() -> None:
    a = torch.rand(100, generator=torch.Generator().manual_seed(0))
    assert paired_difference(a, a, torch.arange(100) // 5) == Interval(0.0, 0.0, 0.0)


def test_deterministic_in_the_seed_and_blind_to_order_and_names() -> None:
    rng = np.random.default_rng(1)
    a, b, user = rng.random(300), rng.random(300), np.repeat(np.arange(30), 10)
    first = paired_difference(a, b, user, seed=4)
    assert paired_difference(a, b, user, seed=4) == first
    assert paired_difference(a, b, user, seed=5) != first
    assert paired_difference(a, b, user * 7 + 100, seed=4) == first
    swapped = paired_difference(b, a, user, seed=4)
    assert (swapped.estimate, swapped.low, swapped.high) == pytest.approx((-first.estimate, -first.high, -first.low))


def world(rng: np.random.Generator, clusters: int, effect: float = 0.0, shift: float = 0.0) -> tuple[Any, Any, Any]:
    """Losses whose difference has mean ``effect`` + ``shift`` and is correlated within clusters of uneven size."""
    sizes = rng.integers(2, 30, clusters)
    user = np.repeat(np.arange(clusters), sizes)
    common = rng.normal(0, 0.1, clusters)[user]
    b = rng.random(len(user))
    return b + effect + shift + common + rng.normal(0, 0.1, len(user)), b, user


def coverage(worlds: int, clusters: int, by_row: bool = False, effect: float = 0.0) -> float:
    rng = np.random.default_rng(clusters)
    hits = 0
    for number in range(worlds):
        a, b, user = world(rng, clusters, effect)
        found = paired_difference(a, b, np.arange(len(a)) if by_row else user, resamples=300, seed=number)
        hits += found.low <= effect <= found.high
    return hits / worlds


def test_placebo_intervals_cover_zero_as_often_as_they_say() -> None:
    """A/A: 95% nominal; 400 worlds leave a standard error of 1.1 points."""
    assert 0.915 <= coverage(400, clusters=60) <= 0.985


def test_intervals_cover_a_true_effect() -> None:
    assert 0.915 <= coverage(400, clusters=60, effect=0.3) <= 0.985


def test_few_clusters_still_cover() -> None:
    assert coverage(400, clusters=7) >= 0.915


def test_control_resampling_rows_would_cover_far_too_rarely() -> None:
    assert coverage(150, clusters=60, by_row=True) < 0.75


def test_two_levels_cover_when_seeds_differ_and_one_level_would_not() -> None:
    rng = np.random.default_rng(9)
    both, pooled, worlds = 0, 0, 200
    for number in range(worlds):
        parts = [world(rng, 30, shift=rng.normal(0, 0.1)) for _ in range(6)]
        a, b, user = (list(column) for column in zip(*parts))
        found = paired_difference(a, b, user, resamples=300, seed=number)
        both += found.low <= 0 <= found.high
        names = np.concatenate([group + 1000 * n for n, group in enumerate(user)])
        flat = paired_difference(np.concatenate(a), np.concatenate(b), names, resamples=300, seed=number)
        pooled += flat.low <= 0 <= flat.high
    assert both / worlds >= 0.93
    assert pooled / worlds < 0.75


def test_two_levels_by_hand() -> None:
    """The mean over seeds, each seed's NE against its own entropy."""
    a, b = [[1.0, 3.0], [2.0, 2.0, 5.0]], [[1.0, 1.0], [1.0, 1.0, 1.0]]
    user, y = [[1, 2], [1, 2, 3]], [[0, 1], [0, 0, 1]]
    third = -(math.log(1 / 3) / 3 + math.log(2 / 3) * 2 / 3)
    found = paired_difference([np.array(v) for v in a], [np.array(v) for v in b], user, [np.array(v) for v in y])
    assert found.estimate == pytest.approx((1 / math.log(2) + 2 / third) / 2)
    constant = paired_difference([np.full(4, 2.0)] * 3, [np.full(4, 1.5)] * 3, [np.arange(4)] * 3)
    assert (constant.estimate, constant.low, constant.high) == (0.5, 0.5, 0.5)


def test_one_cluster_or_no_events_have_no_interval() -> None:
    one = paired_difference([1.0, 2.0], [0.0, 0.0], [3, 3])
    assert one.estimate == 1.5
    assert math.isnan(one.low)
    assert math.isnan(one.high)
    none = paired_difference([math.nan, math.nan], [math.nan, math.nan], [1, 2])
    assert math.isnan(none.estimate)
    assert math.isnan(none.low)
    flat = paired_difference([1.0, 2.0], [0.0, 0.0], [1, 2], labels=[1, 1])
    assert math.isnan(flat.estimate)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: paired_difference([1.0], [1.0, 2.0], [1]), r"b: expected one per event of a \(1\), found 2"),
        (lambda: paired_difference([1.0], [1.0], [1, 2]), r"clusters: expected one per event of a \(1\), found 2"),
        (lambda: paired_difference([1.0], [1.0], [1], [1, 0]), r"labels: expected one per event of a \(1\), found 2"),
        (lambda: paired_difference([1.0, math.nan], [1.0, 2.0], [1, 2]), "a, b: event 1 is nan in one model only"),
        (lambda: paired_difference([1.0, math.inf], [1.0, 2.0], [1, 2]), "a, b: a loss is infinite"),
        (lambda: paired_difference([1.0], [1.0], [1], resamples=10), "resamples: expected at least 100"),
        (
            lambda: paired_difference([[1.0], [1.0]], [[1.0]], [[1], [1]]),
            r"b: expected one entry per seed \(2\), found 1",
        ),
    ],
)
def test_refuses(call: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        call()
