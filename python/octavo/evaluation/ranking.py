"""AUC, over everything or averaged over groups: events are sorted once and weighed any number of times."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from octavo.evaluation.inputs import Floats


class Ranking:
    """Events in the order of (group, score). ``scores``, ``truth`` (0 or 1) and ``groups`` [n]."""

    def __init__(self, scores: Floats, truth: Floats, groups: Any) -> None:
        self._order = np.lexsort((scores, groups))
        self._truth = truth[self._order]
        sorted_scores, sorted_groups = scores[self._order], groups[self._order]
        first = np.ones(min(1, len(scores)), bool)
        new_group = np.concatenate((first, sorted_groups[1:] != sorted_groups[:-1]))
        new_score = new_group | np.concatenate((first, sorted_scores[1:] != sorted_scores[:-1]))
        self._ties = np.flatnonzero(new_score)  # where runs of equal scores begin
        self._starts = np.flatnonzero(new_group[self._ties])  # where groups begin among the runs
        self._sizes = np.diff(np.append(self._starts, len(self._ties)))

    def auc(self, loads: Floats) -> float:
        """Each group's AUC, ties counting half, averaged by the sum of its ``loads`` [n]; nan where no group has both
        classes."""
        if len(self._order) == 0:
            return math.nan
        sorted_loads = loads[self._order]
        positive = np.add.reduceat(sorted_loads * self._truth, self._ties)
        negative = np.add.reduceat(sorted_loads * (1 - self._truth), self._ties)
        below = np.cumsum(negative) - negative
        below -= np.repeat(below[self._starts], self._sizes)
        right = np.add.reduceat(positive * (below + 0.5 * negative), self._starts)
        positives, negatives = np.add.reduceat(positive, self._starts), np.add.reduceat(negative, self._starts)
        counted = (positives > 0) & (negatives > 0)
        if not counted.any():
            return math.nan
        areas = right[counted] / (positives[counted] * negatives[counted])
        impressions = (positives + negatives)[counted]
        return float(areas @ impressions / impressions.sum())
