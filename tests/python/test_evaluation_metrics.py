"""NE, AUC, GAUC and calibration against published vectors, hand computations, scikit-learn and brute force."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from octavo.evaluation import Quality, auc, calibration, gauc, log_loss, ne, quality

EVENTS = st.lists(
    st.tuples(st.integers(-6, 6), st.integers(0, 1), st.integers(0, 3), st.integers(-1, 3)), min_size=1, max_size=30
)


def split(events: list[tuple[int, int, int, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Scores (with ties), labels, weights, groups."""
    score, label, weight, group = (np.array(column) for column in zip(*events))
    return score / 2, label.astype(float), weight.astype(float), group


# NE


def test_ne_vectors_of_torcheval() -> None:
    assert ne([0.2, 0.3], [1.0, 0.0]) == pytest.approx(1.4183, abs=5e-5)
    assert ne([0.2, 0.3], [1.0, 0.0], weight=[5.0, 1.0]) == pytest.approx(3.1087, abs=5e-5)
    assert ne([-1.3863, -0.8473], [1.0, 0.0], logits=True) == pytest.approx(1.4183, abs=5e-5)


def test_ne_by_hand() -> None:
    p, y = [0.9, 0.5, 0.2, 0.1], [1, 0, 0, 1]
    loss = -(math.log(0.9) + math.log(0.5) + math.log(0.8) + math.log(0.1)) / 4
    assert ne(p, y) == pytest.approx(loss / math.log(2), rel=1e-14)


def test_predicting_the_mean_has_ne_one() -> None:
    y = np.array([1, 0, 0, 0, 1, 0, 0])
    assert ne(np.full(7, 2 / 7), y) == pytest.approx(1.0, rel=1e-14)
    assert ne(np.full(7, math.log(2 / 5)), y, logits=True) == pytest.approx(1.0, rel=1e-14)


def test_log_loss_against_sklearn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    p, weight = rng.uniform(0.001, 0.999, 5000), rng.random(5000)
    y = (rng.random(5000) < p).astype(float)
    found = float(weight @ log_loss(p, y) / weight.sum())
    assert found == pytest.approx(metrics.log_loss(y, p, sample_weight=weight), rel=1e-12)
    logits = np.log(p / (1 - p))
    np.testing.assert_allclose(log_loss(logits, y, logits=True), log_loss(p, y), rtol=1e-11)


def test_logits_of_any_size_are_exact() -> None:
    x = [800.0, 800.0, -800.0, -800.0, math.inf, -math.inf, math.inf, 0.0, 40.0]
    y = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0]
    wanted = [0.0, 800.0, 0.0, 800.0, 0.0, 0.0, math.inf, math.log(2), math.log1p(math.exp(-40))]
    assert log_loss(x, y, logits=True).tolist() == wanted
    assert ne(torch.tensor([100.0, -100.0]), torch.tensor([1.0, 0.0]), logits=True) == pytest.approx(0, abs=1e-40)


def test_probabilities_of_zero_and_one_are_kept_away_from_infinity() -> None:
    found = log_loss([0.0, 1.0, 0.0, 1.0], [1, 0, 0, 1])
    assert found[:2].tolist() == pytest.approx([53 * math.log(2)] * 2, rel=1e-12)
    assert found[2:].tolist() == pytest.approx([0, 0], abs=2e-16)


def test_soft_labels_have_the_cross_entropy() -> None:
    found = log_loss([0.3], [0.6])[0]
    assert found == pytest.approx(-0.6 * math.log(0.3) - 0.4 * math.log(0.7), rel=1e-14)
    logit = [math.log(0.3 / 0.7)]
    assert log_loss(logit, [0.6], logits=True)[0] == pytest.approx(found, rel=1e-14)


@pytest.mark.parametrize("labels", [[], [0.0, 0.0], [1.0, 1.0], [math.nan, math.nan]])
def test_ne_is_nan_without_entropy(labels: list[float]) -> None:
    assert math.isnan(ne([0.5] * len(labels), labels))
    assert math.isnan(ne([0.5, 0.5], [0.0, 1.0], weight=[1.0, 0.0]))


# AUC


def test_auc_by_hand() -> None:
    assert auc([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1]) == 0.75
    assert auc([1, 2, 3, 4], [0, 0, 1, 1]) == 1.0
    assert auc([4, 3, 2, 1], [0, 0, 1, 1]) == 0.0
    assert auc([1, 1, 1, 1], [0, 1, 0, 1]) == 0.5
    assert auc([1, 2], [0, 1], weight=[2.0, 3.0]) == 1.0


@given(EVENTS)
def test_auc_is_the_share_of_pairs(events: list[tuple[int, int, int, int]]) -> None:
    score, label, weight, _ = split(events)
    right, pairs = Fraction(0), Fraction(0)
    for i in np.flatnonzero(label == 1):
        for j in np.flatnonzero(label == 0):
            share = Fraction(weight[i]) * Fraction(weight[j])
            pairs += share
            right += share * (Fraction(1) if score[i] > score[j] else Fraction(int(score[i] == score[j]), 2))
    found = auc(score, label, weight)
    assert math.isnan(found) if pairs == 0 else found == pytest.approx(float(right / pairs), rel=1e-14, abs=1e-300)


@pytest.mark.parametrize("decimals", [0, 1, 12])
def test_auc_against_sklearn(decimals: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(decimals)
    score, weight = np.round(rng.normal(size=20_000), decimals), rng.random(20_000)
    label = (rng.random(20_000) < 1 / (1 + np.exp(1 - score))).astype(float)
    assert auc(score, label) == pytest.approx(metrics.roc_auc_score(label, score), rel=1e-12)
    assert auc(score, label, weight) == pytest.approx(
        metrics.roc_auc_score(label, score, sample_weight=weight), rel=1e-12
    )


@pytest.mark.parametrize("labels", [[], [0.0, 0.0], [1.0, 1.0], [1.0, math.nan]])
def test_auc_is_nan_without_both_classes(labels: list[float]) -> None:
    assert math.isnan(auc([0.5] * len(labels), labels))


# GAUC


def test_gauc_by_hand() -> None:
    """User 1: AUC 1 over 2 impressions; user 2: AUC 0.5 over 4; user 3 has one class; -1 is nobody."""
    p = [0.1, 0.9, 0.2, 0.8, 0.3, 0.7, 0.5, 0.6, 0.9, 0.1]
    y = [0, 1, 0, 0, 1, 1, 1, 1, 0, 1]
    user = [1, 1, 2, 2, 2, 2, 3, 3, -1, -1]
    pairs = 0.5 * (0 + 1) + 0.5 * (1 + 0)  # 0.3 beats 0.2 only, 0.7 beats 0.2 only
    assert gauc(p, y, user) == pytest.approx((1.0 * 2 + pairs / 2 * 4) / 6)


@given(EVENTS)
def test_gauc_is_auc_per_group(events: list[tuple[int, int, int, int]]) -> None:
    score, label, weight, group = split(events)
    total, impressions = 0.0, 0.0
    for number in set(group.tolist()) - {-1}:
        own = group == number
        area = auc(score[own], label[own], weight[own])
        if not math.isnan(area):
            total += area * weight[own].sum()
            impressions += weight[own].sum()
    found = gauc(score, label, group, weight)
    assert math.isnan(found) if impressions == 0 else found == pytest.approx(total / impressions, rel=1e-12, abs=1e-15)


# Calibration, everything together, what is refused


def test_calibration_by_hand() -> None:
    assert calibration([0.5, 0.25, 0.25, 0.5], [1, 0, 0, 1]) == 0.75
    assert calibration([0.5, 0.25], [1, 0], weight=[1.0, 2.0]) == 1.0
    assert calibration([0.0, math.log(3)], [1, 0], logits=True) == pytest.approx(1.25)
    assert math.isnan(calibration([0.5], [0]))
    assert math.isnan(calibration([], []))


@given(EVENTS, st.lists(st.booleans(), min_size=30, max_size=30))
def test_events_of_unknown_label_do_not_count(events: list[tuple[int, int, int, int]], hidden: list[bool]) -> None:
    score, label, weight, group = split(events)
    known = ~np.array(hidden[: len(events)])
    masked = np.where(known, label, math.nan)
    masked_score = np.where(known, score, math.nan)
    for found, wanted in (
        (ne(masked_score, masked, weight, logits=True), ne(score[known], label[known], weight[known], logits=True)),
        (auc(masked_score, masked, weight), auc(score[known], label[known], weight[known])),
        (gauc(masked_score, masked, group, weight), gauc(score[known], label[known], group[known], weight[known])),
        (calibration(masked_score, masked, weight, True), calibration(score[known], label[known], weight[known], True)),
    ):
        assert found == wanted or (math.isnan(found) and math.isnan(wanted))


def test_integer_weights_are_repeats() -> None:
    rng = np.random.default_rng(1)
    score, label, weight = rng.normal(size=50), rng.integers(0, 2, 50), rng.integers(0, 4, 50)
    many = np.repeat(score, weight), np.repeat(label, weight)
    assert ne(score, label, weight, logits=True) == pytest.approx(ne(*many, logits=True), rel=1e-12)
    assert auc(score, label, weight) == pytest.approx(auc(*many), rel=1e-12)
    assert calibration(score, label, weight, logits=True) == pytest.approx(calibration(*many, logits=True), rel=1e-12)


def test_quality_is_all_three_and_none_where_undefined() -> None:
    x, y = [1.0, -1.0, 0.5, 0.0], [1.0, 0.0, math.nan, 0.0]
    found = quality(x, y, logits=True)
    assert found == Quality(3, ne(x, y, logits=True), auc(x, y), calibration(x, y, logits=True))
    assert quality([], []) == Quality(0, None, None, None)
    assert quality([0.5], [0.0]) == Quality(1, None, None, None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_tensors_of_any_float_type(dtype: torch.dtype) -> None:
    x = torch.tensor([0.5, -0.25, 1.5, -2.0], dtype=dtype, requires_grad=True)
    y = torch.tensor([1, 0, 0, 1], dtype=torch.bool)
    assert ne(x, y, logits=True) == ne([0.5, -0.25, 1.5, -2.0], [1, 0, 0, 1], logits=True)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: ne([1.5, 0.5], [0, 1]), "predictions: expected 0..1, found 1.5; pass logits=True for logits"),
        (lambda: ne([0.5, 0.5], [0, 2]), "labels: expected 0..1, found 2.0"),
        (lambda: ne([0.5], [0, 1]), r"predictions: expected one per label \(2\), found 1"),
        (lambda: ne([0.5, 0.5], [0, 1], weight=[1]), r"weight: expected one per label \(2\), found 1"),
        (lambda: ne([0.5, 0.5], [0, 1], weight=[1, -1]), "weight: expected finite values >= 0"),
        (lambda: ne([0.5, math.nan], [0, 1]), "predictions: nan at known event 1; the model diverged"),
        (lambda: ne([[0.5]], [[1]]), r"predictions: expected 1 dimension, found shape \[1, 1\]"),
        (lambda: auc([0.5, 0.5], [0.5, 1]), "labels: expected 0 or 1, found 0.5"),
        (lambda: gauc([0.5, 0.5], [0, 1], [1]), r"group: expected one per label \(2\), found 1"),
    ],
)
def test_refuses(call: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        call()
