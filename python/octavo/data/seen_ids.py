"""The ids that have come so far, in little memory."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]


class SeenIds:
    """A set of 64-bit ids: a range of those that come numbered, and few sorted runs of the rest, each at least twice
    the next. Adding n costs n log n amortised; 8 bytes an id (at times 16) outside the range."""

    def __init__(self) -> None:
        self._range: tuple[int, int] | None = None  # first and last
        self._runs: list[Ids] = []

    def add(self, ids: Ids) -> npt.NDArray[np.bool_]:
        """Which of ``ids`` were there already, or came earlier in ``ids``."""
        if bool((ids[1:] > ids[:-1]).all()):
            new, first = ids, np.arange(len(ids))
        else:
            new, first = np.unique(ids, return_index=True)
        known = np.ones(len(ids), np.bool_)
        known[first] = False
        if self._range is not None:
            known |= (ids >= self._range[0]) & (ids <= self._range[1])
        for run in self._runs:
            place = np.searchsorted(run, new).clip(max=len(run) - 1)
            known[first[run[place] == new]] = True
        fresh = ids[~known]
        if not len(fresh):
            return known
        fresh.sort()
        start, end = int(fresh[0]), int(fresh[-1])
        if end - start + 1 == len(fresh) and (self._range is None or self._range[1] + 1 == start):
            self._range = (start if self._range is None else self._range[0], end)
            return known
        self._runs.append(fresh)
        while len(self._runs) > 1 and len(self._runs[-2]) < 2 * len(self._runs[-1]):
            joined = np.concatenate([self._runs.pop(), self._runs.pop()])
            joined.sort(kind="stable")  # merges runs
            self._runs.append(joined)
        return known
