"""Intervals of every ranking metric: estimates are the metric's own, draws are whole clusters, seeds come first."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("scipy")

from octavo.evaluation import auc, calibration, gauc, interval, log_loss, ne, paired, paired_difference

METRICS = ("ne", "log_loss", "auc", "gauc", "calibration")


def events(seed: int, users: int = 40, each: int = 25) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(users), each)
    x = rng.normal(size=len(user)) - 0.5
    y = (rng.random(len(user)) < 1 / (1 + np.exp(-x))).astype(float)
    y[rng.random(len(user)) < 0.1] = math.nan
    a, b = x + rng.normal(0, 0.3, len(user)), x + rng.normal(0, 0.9, len(user))
    return {"a": a, "b": b, "labels": y, "clusters": user, "weight": rng.random(len(user)) + 0.5}


def value(metric: str, x: np.ndarray, e: dict[str, np.ndarray]) -> float:
    y, w = e["labels"], e["weight"]
    if metric == "log_loss":
        losses = log_loss(x, y, logits=True)
        known = ~np.isnan(losses)
        return float(w[known] @ losses[known] / w[known].sum())
    return {
        "ne": lambda: ne(x, y, w, logits=True),
        "auc": lambda: auc(x, y, w),
        "gauc": lambda: gauc(x, y, e["clusters"], w),
        "calibration": lambda: calibration(x, y, w, logits=True),
    }[metric]()


@pytest.mark.parametrize("metric", METRICS)
def test_estimates_are_the_metrics(metric: str) -> None:
    e = events(0)
    alone = interval(metric, e["a"], e["labels"], e["clusters"], weight=e["weight"], resamples=100)
    assert alone.estimate == pytest.approx(value(metric, e["a"], e), rel=1e-12)
    assert alone.low < alone.estimate < alone.high
    both = paired(metric, e["a"], e["b"], e["labels"], e["clusters"], weight=e["weight"], resamples=100)
    assert both.estimate == pytest.approx(value(metric, e["a"], e) - value(metric, e["b"], e), rel=1e-9)
    same = paired(metric, e["a"], e["a"], e["labels"], e["clusters"], resamples=100)
    assert (same.estimate, same.low, same.high) == (0, 0, 0)


def test_it_agrees_with_the_loss_bootstrap() -> None:
    e = events(1, users=200)
    losses = [log_loss(e[name], e["labels"], logits=True) for name in "ab"]
    one = paired_difference(*losses, e["clusters"], e["labels"], resamples=2000)
    two = paired("ne", e["a"], e["b"], e["labels"], e["clusters"], resamples=2000)
    assert two.estimate == pytest.approx(one.estimate, rel=1e-10)
    assert two.high - two.low == pytest.approx(one.high - one.low, rel=0.08)


def test_a_resample_is_whole_clusters() -> None:
    """Two clusters that contradict each other: by rows the AUC is sure, by clusters it is 0, 1/2 or 1."""
    n = 100
    y = np.tile([0.0, 1.0], n)
    x = np.concatenate((y[:n], 1 - y[n:]))
    found = interval("gauc", x, y, np.repeat([0, 1], n), resamples=400)
    assert (found.estimate, found.low, found.high) == (0.5, 0.0, 1.0)
    rows = interval("auc", x, y, np.arange(2 * n), resamples=400)
    assert 0.38 < rows.low < 0.5 < rows.high < 0.62


def test_two_levels_draw_seeds_then_clusters() -> None:
    worlds = [events(seed) for seed in range(5)]
    for number, world in enumerate(worlds):
        world["b"] = world["a"] + (number - 2) * 0.4  # the difference varies with the seed far more than within one
    columns = {name: [world[name] for world in worlds] for name in ("a", "b", "labels", "clusters")}
    found = paired("log_loss", **columns, resamples=500)
    each = [
        paired("log_loss", *(world[k] for k in ("a", "b", "labels", "clusters")), resamples=100) for world in worlds
    ]
    assert found.estimate == pytest.approx(np.mean([one.estimate for one in each]))
    assert found.high - found.low > 2 * np.mean([one.high - one.low for one in each])


def test_coverage_of_auc_differences_on_placebo_worlds() -> None:
    hits = 0
    for seed in range(60):
        rng = np.random.default_rng(1000 + seed)
        e = events(seed, users=30, each=12)
        swap = rng.random(len(e["a"])) < 0.5  # exchangeable models: the true difference is 0
        a, b = np.where(swap, e["a"], e["b"]), np.where(swap, e["b"], e["a"])
        found = paired("auc", a, b, e["labels"], e["clusters"], resamples=200, seed=seed)
        hits += found.low <= 0 <= found.high
    assert 52 <= hits <= 60


def test_what_cannot_be_known_is_nan() -> None:
    one = interval("auc", [0.1, 0.2], [0, 1], [7, 7], resamples=100)
    assert one.estimate == 1.0
    assert math.isnan(one.low)
    assert math.isnan(interval("auc", [0.1, 0.2], [1, 1], [1, 2], resamples=100).estimate)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="metric: expected one of ne, log_loss, auc, gauc, calibration, found 'f1'"):
        interval("f1", [0.0], [1], [0])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="resamples: expected at least 100"):
        interval("ne", [0.0], [1], [0], resamples=9)
    with pytest.raises(ValueError, match=r"clusters: expected one per label \(2\), found 1"):
        interval("ne", [0.0, 1.0], [1, 0], [0])
