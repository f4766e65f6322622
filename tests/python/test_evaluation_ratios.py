"""Ratios: published and hand-made vectors, and where they are not defined."""

from __future__ import annotations

import math

import numpy as np
import pytest

from octavo.evaluation import (
    Interval,
    coverage,
    detection_auc,
    expected_calibration_error,
    ne,
    r_score,
    transfer_ratio,
    utilisation,
)


def test_vectors_of_torcheval() -> None:
    assert ne([0.2, 0.3], [1, 0]) == pytest.approx(1.4183, abs=5e-5)
    assert ne([0.2, 0.3], [1, 0], [5, 1]) == pytest.approx(3.1087, abs=5e-5)
    assert ne([-1.3863, -0.8473], [1, 0], logits=True) == pytest.approx(1.4183, abs=5e-5)


def test_transfer_ratio() -> None:
    assert transfer_ratio(0.4, Interval(1.6, 1.2, 2.0)) == 0.25
    assert transfer_ratio(-0.4, Interval(-1.6, -2.0, -1.2)) == 0.25
    assert math.isnan(transfer_ratio(0.4, Interval(1.6, -0.1, 3.0)))
    assert math.isnan(transfer_ratio(0.4, Interval(1.6, math.nan, math.nan)))


def test_r_score() -> None:
    assert r_score(0.75, 0.7, 0.8) == pytest.approx(0.5)
    assert math.isnan(r_score(0.75, 0.7, 0.7))


def test_coverage_and_utilisation() -> None:
    assert coverage(3, 4) == 0.75
    assert utilisation(0, 4) == 0.0
    assert math.isnan(coverage(0, 0))
    with pytest.raises(ValueError, match=r"hit: expected 0 to computed \(4\), found 5"):
        utilisation(5, 4)


def test_detectors_score_adversarial_higher() -> None:
    assert detection_auc([0.1, 0.9, 0.5], [0, 1, 0]) == 1.0


def test_expected_calibration_error_by_hand() -> None:
    p, y = [0.1, 0.1, 0.6, 0.8], [0, 1, 1, 1]
    assert expected_calibration_error(p, y, bins=2) == pytest.approx((abs(0.2 - 1) + abs(1.4 - 2)) / 4)
    assert expected_calibration_error(p, y, bins=1) == pytest.approx(abs(1.6 - 3) / 4)
    assert expected_calibration_error(p, y, weight=[1, 1, 0, 2], bins=2) == pytest.approx((0.8 + 0.4) / 4)
    assert math.isnan(expected_calibration_error([], []))
    rng = np.random.default_rng(0)
    q = rng.random(200_000)
    assert expected_calibration_error(q, rng.random(len(q)) < q) < 0.01
