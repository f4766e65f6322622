"""Calibration by bins of the prediction."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from octavo.evaluation.inputs import known_events
from octavo.evaluation.metrics import probabilities

Z95 = 1.959963984540054


@dataclass(frozen=True)
class CalibrationBin:
    """Events of one prediction bin: mean prediction, mean label, and the label's 95% Wilson interval."""

    predicted: float
    observed: float
    low: float
    high: float
    events: int


def calibration_bins(predictions: Any, labels: Any, bins: int = 10, logits: bool = False) -> list[CalibrationBin]:
    """Up to ``bins`` bins of about equally many events, by rising prediction.

    Equal predictions share a bin (so there may be fewer bins); events whose label is nan are dropped.
    """
    if bins < 1:
        raise ValueError(f"bins: expected at least 1, found {bins}")
    scores, truth, _, _ = known_events(predictions, labels, None, logits, binary=True)
    if len(scores) == 0:
        return []
    order = np.argsort(scores, kind="stable")
    scores, truth = scores[order], truth[order]
    first_of_tie = np.searchsorted(scores, scores, side="left")
    number = first_of_tie * bins // len(scores)
    starts = np.flatnonzero(np.concatenate(([True], number[1:] != number[:-1])))
    chances = probabilities(scores, logits)
    found = []
    for begin, end in zip(starts, np.append(starts[1:], len(scores)), strict=True):
        events, positives = int(end - begin), float(truth[begin:end].sum())
        low, high = wilson_interval(positives, events)
        found.append(CalibrationBin(float(chances[begin:end].mean()), positives / events, low, high, events))
    return found


def wilson_interval(positives: float, events: int) -> tuple[float, float]:
    """95% score interval of a rate [Wilson 1927]; (0, 1) without events."""
    if events == 0:
        return 0.0, 1.0
    rate, square = positives / events, Z95 * Z95
    centre = (rate + square / (2 * events)) / (1 + square / events)
    half = Z95 / (1 + square / events) * math.sqrt(rate * (1 - rate) / events + square / (4 * events * events))
    return (0.0 if positives == 0 else centre - half), (1.0 if positives == events else centre + half)
