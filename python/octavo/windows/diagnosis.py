"""What a fit found, row by row: a table to look at, to alarm on, and to make a report of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from scipy.special import betaincinv

from octavo.windows.fitting import Fitted
from octavo.windows.grid import Floats, Grid
from octavo.windows.keys import Keys

FALSE_ALARMS = 0.01  # of each flag, over all rows of a fit [Benjamini and Hochberg 1995]


def diagnosis(fitted: Fitted, keys: Keys, grid: Grid, window: int) -> pa.Table:
    """Columns: the key columns (null above the level), ``level`` (all, vertical, group), ``conversions`` (effective
    outcomes in the segment of ``window``), ``family`` (the heaviest), ``weight`` (its), ``own`` (the share of the
    group's own data), ``alpha`` with ``low`` and ``high`` at ``window``, ``misfit_p``, ``drift_p``, ``misfit``,
    ``drift``.

    The interval holds 95% of the beta distribution whose mean is alpha and whose variance is the error to expect of it
    (:func:`octavo.windows.estimate.variances`): few outcomes, the spread of groups around the level above, that level's
    own uncertainty, and families that disagree are all in it. It is null beyond the longest window, of which no
    outcome says anything.
    """
    segment, j, share = grid.place(window)
    rows = len(fitted.segments[0])
    first = rows - len(keys)
    columns: dict[str, Any] = {}
    vertical_codes = keys.vertical_codes()
    for number, name in enumerate(keys.columns):
        values = keys.values[number]
        assert values is not None
        codes = np.full(rows, -1, np.int64)
        codes[first:] = keys.codes[:, number]
        if number < keys.verticals:
            codes[1:first] = vertical_codes[:, number]
        columns[name] = values.take(pa.array(codes, mask=codes < 0))
    level = np.full(rows, "group", dtype=object)
    level[1:first], level[0] = "vertical", "all"
    curves = fitted.segments[segment].astype(np.float64)
    alpha = curves[:, j] + share * (curves[:, j + 1] - curves[:, j])
    low, high = _interval(alpha, fitted.spread[segment].astype(np.float64), j, share)
    best = fitted.weights[segment].argmax(axis=1)
    names = np.array(("empirical",) if segment == 0 else fitted.families, dtype=object)
    columns |= {
        "level": pa.array(level.tolist()),
        "conversions": fitted.size[segment].astype(np.float64),
        "family": pa.array(names[best].tolist()),
        "weight": fitted.weights[segment].max(axis=1).astype(np.float64),
        "own": fitted.own[segment].astype(np.float64),
        "alpha": alpha,
        "low": low,
        "high": high,
        "misfit_p": fitted.misfit[segment].astype(np.float64),
        "drift_p": fitted.drift[segment].astype(np.float64),
        "misfit": _flags(fitted.misfit[segment]),
        "drift": _flags(fitted.drift[segment]),
    }
    return pa.table(columns)


def _interval(alpha: Floats, spread: Floats, j: int, share: float) -> tuple[pa.Array, pa.Array]:
    """Ends [R] around ``alpha`` [R] at ``share`` of the way from point j of ``spread`` [R, n + 1] to the next."""
    if j + 1 >= spread.shape[1]:
        return pa.nulls(len(alpha), pa.float64()), pa.nulls(len(alpha), pa.float64())
    error = spread[:, j] + share * (spread[:, j + 1] - spread[:, j])
    uncertain = error > 1e-6
    square = np.where(uncertain, error, 0.5) ** 2
    # Few outcomes may leave alpha at 0 or 1, where no beta distribution is: as far from there as its variance needs.
    mean = np.clip(alpha, np.minimum(square, 0.5), 1 - np.minimum(square, 0.5))
    load = mean * (1 - mean) / np.minimum(square, 0.99 * mean * (1 - mean)) - 1
    ends = [np.where(uncertain, betaincinv(mean * load, (1 - mean) * load, tail), alpha) for tail in (0.025, 0.975)]
    return pa.array(np.minimum(ends[0], alpha)), pa.array(np.maximum(ends[1], alpha))


def _flags(p: np.ndarray) -> np.ndarray:
    """Which p-values [n] are small at a false discovery rate of ``FALSE_ALARMS``."""
    order = np.argsort(p, kind="stable")
    passed = p[order] <= FALSE_ALARMS * np.arange(1, len(p) + 1) / len(p)
    found = np.zeros(len(p), bool)
    if passed.any():
        found[order[: int(np.flatnonzero(passed)[-1]) + 1]] = True
    return found
