"""Ranking metrics over one set of events. The definitions are frozen in docs/definitions.md.

Everywhere: ``predictions`` [n] are probabilities, or logits with ``logits=True``; ``labels`` [n] in 0..1 with nan = not
known (the event is dropped); ``weight`` [n] >= 0 or None. Sums are float64. What is not defined is nan.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.evaluation.inputs import Floats, as_array, known_events
from octavo.evaluation.ranking import Ranking

_TINY = 2.0**-53  # probabilities are kept this far from 0 and 1; logits need no such care


@dataclass(frozen=True)
class Quality:
    """Ranking quality of one task over some events (those with a known label). None = not defined there, or, for
    ``gauc``, not asked for."""

    events: int
    ne: float | None
    auc: float | None
    calibration: float | None
    gauc: float | None = None


def log_loss(predictions: Any, labels: Any, logits: bool = False) -> Floats:
    """[n] float64: each event's -y ln p - (1-y) ln(1-p); nan where the label is not known.

    Logits are taken stably (no overflow, no clipping); probabilities are first kept 2^-53 away from 0 and 1.
    """
    scores, truth, _, known = known_events(predictions, labels, None, logits)
    losses = np.full(len(known), math.nan)
    losses[known] = event_losses(scores, truth, logits)
    return losses


def ne(predictions: Any, labels: Any, weight: Any = None, logits: bool = False) -> float:
    """Normalised entropy: mean log loss / entropy of the mean label over the same events. Smaller is better; 1 is a
    model that always says the mean. nan without events or where the mean label is 0 or 1 (no entropy)."""
    scores, truth, loads, _ = known_events(predictions, labels, weight, logits)
    return _ne(scores, truth, loads, logits)


def calibration(predictions: Any, labels: Any, weight: Any = None, logits: bool = False) -> float:
    """sum(p) / sum(y): above 1 the model promises too much. nan where no label is positive."""
    scores, truth, loads, _ = known_events(predictions, labels, weight, logits)
    return _calibration(scores, truth, loads, logits)


def auc(predictions: Any, labels: Any, weight: Any = None) -> float:
    """Area under the ROC curve: the (weighted) share of pairs (positive, negative) ranked right, ties counting half.

    Exact. Any monotone score does: probabilities or logits. nan unless both classes are there (with weight > 0).
    """
    scores, truth, loads, _ = known_events(predictions, labels, weight, logits=True, binary=True)
    return Ranking(scores, truth, np.zeros(len(scores), np.int64)).auc(loads)


def gauc(predictions: Any, labels: Any, group: Any, weight: Any = None) -> float:
    """AUC within each group (user), averaged with the group's impressions (sum of weights) as weight.

    Groups without both classes and events of group -1 (none) do not count. nan where no group counts.
    """
    scores, truth, loads, known = known_events(predictions, labels, weight, logits=True, binary=True)
    return _gauc(scores, truth, loads, _groups(group, known))


def quality(predictions: Any, labels: Any, weight: Any = None, logits: bool = False, group: Any = None) -> Quality:
    """NE, AUC and calibration of the same events; GAUC too where their ``group`` (users) is given."""
    scores, truth, loads, known = known_events(predictions, labels, weight, logits, binary=True)
    values = (
        _ne(scores, truth, loads, logits),
        Ranking(scores, truth, np.zeros(len(scores), np.int64)).auc(loads),
        _calibration(scores, truth, loads, logits),
        math.nan if group is None else _gauc(scores, truth, loads, _groups(group, known)),
    )
    return Quality(len(scores), *(None if math.isnan(value) else value for value in values))


def _ne(scores: Floats, truth: Floats, loads: Floats, logits: bool) -> float:
    total = float(loads.sum())
    if total == 0:
        return math.nan
    entropy = entropy_of(float(loads @ truth) / total)
    return float(loads @ event_losses(scores, truth, logits)) / total / entropy if entropy > 0 else math.nan


def _calibration(scores: Floats, truth: Floats, loads: Floats, logits: bool) -> float:
    outcomes = float(loads @ truth)
    return float(loads @ probabilities(scores, logits)) / outcomes if outcomes > 0 else math.nan


def _groups(group: Any, known: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    groups = as_array(group, "group")
    if len(groups) != len(known):
        raise ValueError(f"group: expected one per label ({len(known)}), found {len(groups)}")
    return groups[known]


def _gauc(scores: Floats, truth: Floats, loads: Floats, groups: npt.NDArray[Any]) -> float:
    inside = groups != -1
    return Ranking(scores[inside], truth[inside], groups[inside]).auc(loads[inside])


def probabilities(scores: Floats, logits: bool) -> Floats:
    """1 / (1 + e^-x) without overflow where ``logits``, else the scores themselves."""
    if not logits:
        return scores
    decay = np.exp(-np.abs(scores))
    return np.where(scores >= 0, 1.0, decay) / (1.0 + decay)


def entropy_of(rate: float) -> float:
    """Entropy of a coin with this rate, in nats; 0 for rates 0 and 1."""
    if not 0 < rate < 1:
        return 0.0
    return -rate * math.log(rate) - (1 - rate) * math.log1p(-rate)


def event_losses(scores: Floats, truth: Floats, logits: bool) -> Floats:
    """[n] log losses of events whose label is known."""
    if logits:
        # ln(1 + e^x) - y x, with each class's term exact for infinite logits (0 * inf would be nan).
        tail = np.log1p(np.exp(-np.abs(scores)))
        right, wrong = np.maximum(-scores, 0), np.maximum(scores, 0)
        with np.errstate(invalid="ignore"):
            linear = np.where(truth == 1, right, np.where(truth == 0, wrong, truth * right + (1 - truth) * wrong))
        return tail + linear
    kept = np.clip(scores, _TINY, 1 - _TINY)
    return -(truth * np.log(kept) + (1 - truth) * np.log1p(-kept))
