"""Ratios that compare models, caches and detectors. The definitions are frozen in docs/definitions.md."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from octavo.evaluation.inputs import known_events
from octavo.evaluation.metrics import auc, probabilities
from octavo.evaluation.paired import Interval


def transfer_ratio(student_gain: float, teacher_gain: Interval) -> float:
    """NE gain of the student / NE gain of the teacher. nan where the teacher's interval holds 0 (or is not known):
    a ratio to a gain that may be none says nothing."""
    if not (teacher_gain.low > 0 or teacher_gain.high < 0):
        return math.nan
    return student_gain / teacher_gain.estimate


def r_score(metric: float, vanilla: float, oracle: float) -> float:
    """(metric - vanilla) / (oracle - vanilla): 0 = no better than ignoring delays, 1 = as if every label were known at
    once. nan where oracle and vanilla are equal."""
    return (metric - vanilla) / (oracle - vanilla) if oracle != vanilla else math.nan


def coverage(fresh: int, served: int) -> float:
    """Served pairs found fresh / served pairs; nan where none was served."""
    return _share("fresh", fresh, "served", served)


def utilisation(hit: int, computed: int) -> float:
    """Computed entries ever hit / computed entries; nan where none was computed."""
    return _share("hit", hit, "computed", computed)


def detection_auc(scores: Any, adversarial: Any) -> float:
    """AUC of a detector: higher scores are more suspicious, ``adversarial`` [n] (1) is the positive class."""
    return auc(scores, adversarial)


def expected_calibration_error(
    predictions: Any, labels: Any, weight: Any = None, bins: int = 10, logits: bool = False
) -> float:
    """sum over bins of share * |mean prediction - mean label|, over up to ``bins`` bins of about equally many events by
    rising prediction; equal predictions share a bin. nan without known events (or without weight)."""
    if bins < 1:
        raise ValueError(f"bins: expected at least 1, found {bins}")
    scores, truth, loads, _ = known_events(predictions, labels, weight, logits)
    total = float(loads.sum())
    if total == 0:
        return math.nan
    number = np.searchsorted(np.sort(scores), scores, side="left") * bins // len(scores)
    gaps = np.bincount(number, loads * (probabilities(scores, logits) - truth), minlength=bins)
    return float(np.abs(gaps).sum()) / total


def _share(part_name: str, part: int, whole_name: str, whole: int) -> float:
    if not 0 <= part <= whole:
        raise ValueError(f"{part_name}: expected 0 to {whole_name} ({whole}), found {part}")
    return part / whole if whole else math.nan
