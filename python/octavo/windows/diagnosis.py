"""What a fit found, row by row: a table to look at, to alarm on, and to make a report of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from octavo.windows.fitting import Fitted
from octavo.windows.grid import Grid
from octavo.windows.keys import Keys

FALSE_ALARMS = 0.01  # of each flag, over all rows of a fit [Benjamini and Hochberg 1995]
Z = 1.959963984540054


def diagnosis(fitted: Fitted, keys: Keys, grid: Grid, window: int) -> pa.Table:
    """Columns: the key columns (null above the level), ``level`` (all, vertical, group), ``conversions`` (effective
    outcomes in the segment of ``window``), ``family`` (the heaviest), ``weight`` (its), ``own`` (the share of the
    group's own data), ``alpha`` with ``low`` and ``high`` at ``window``, ``misfit_p``, ``drift_p``, ``misfit``,
    ``drift``.

    The interval is Greenwood's, narrowed by the own share where the level above holds the rest: the level above's
    own uncertainty is not in it.
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
    at = min(j + round(share), fitted.spread[segment].shape[1] - 1)
    error = fitted.spread[segment][:, at].astype(np.float64) * fitted.own[segment]
    best = fitted.weights[segment].argmax(axis=1)
    names = np.array(("empirical",) if segment == 0 else fitted.families, dtype=object)
    top = None if window > grid.windows[-1] else 1.0
    columns |= {
        "level": pa.array(level.tolist()),
        "conversions": fitted.size[segment].astype(np.float64),
        "family": pa.array(names[best].tolist()),
        "weight": fitted.weights[segment].max(axis=1).astype(np.float64),
        "own": fitted.own[segment].astype(np.float64),
        "alpha": alpha,
        "low": np.clip(alpha - Z * error, 0.0, top),
        "high": np.clip(alpha + Z * error, 0.0, top),
        "misfit_p": fitted.misfit[segment].astype(np.float64),
        "drift_p": fitted.drift[segment].astype(np.float64),
        "misfit": _flags(fitted.misfit[segment]),
        "drift": _flags(fitted.drift[segment]),
    }
    return pa.table(columns)


def _flags(p: np.ndarray) -> np.ndarray:
    """Which p-values [n] are small at a false discovery rate of ``FALSE_ALARMS``."""
    order = np.argsort(p, kind="stable")
    passed = p[order] <= FALSE_ALARMS * np.arange(1, len(p) + 1) / len(p)
    found = np.zeros(len(p), bool)
    if passed.any():
        found[order[: int(np.flatnonzero(passed)[-1]) + 1]] = True
    return found
