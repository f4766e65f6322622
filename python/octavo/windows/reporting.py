"""What the report of a fit shows: its laws and, with predictions and outcomes, how the windows came true."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from octavo.evaluation import Interval, calibration_bins
from octavo.evaluation import interval as bootstrap
from octavo.report import LawCurve, LawRow, WindowCalibration, WindowsResults, now
from octavo.windows.counts import tally
from octavo.windows.events import column, delays
from octavo.windows.grid import Floats, WindowsError, window_ms
from octavo.windows.interpolator import PersonalizedInterpolator
from octavo.windows.table import ExtrapolationWarning

SHOWN_LAWS, SHOWN_CURVES, SHOWN_GROUPS, FEWEST = 60, 12, 14, 30
DAY_MS, HOUR_MS = 86_400_000, 3_600_000


def results_of(
    fit: PersonalizedInterpolator,
    title: str,
    scored: Any = None,
    predictions: Sequence[str] = (),
    windows: Sequence[str] = (),
    observed_until: Any = None,
    resamples: int = 400,
) -> WindowsResults:
    """``scored``: a table of events with the fit's key columns and times and, for each of its windows, a column of
    ``predictions``; ``windows``: what to look at, besides the models' own. Only events old enough for a window count.

    Raises :class:`WindowsError` for columns that are missing and for a window for which no event is old enough.
    """
    table = fit.diagnose()
    middle = int(math.sqrt(float(fit.grid.windows[0]) * fit.grid.windows[1]))
    names = _names(fit)
    order = [0, *(np.argsort(-np.asarray(table["conversions"])[1:], kind="stable") + 1)]
    shown = order[: SHOWN_LAWS + 1]
    columns = {name: table[name].to_pylist() for name in table.column_names}
    fields = ("level", "conversions", "family", "weight", "own", "alpha", "low", "high", "misfit", "drift")
    laws = [LawRow(names[row], **{name: columns[name][row] for name in fields}) for row in shown]
    calibrated = []
    if scored is not None:
        calibrated = _calibrations(fit, scored, predictions, windows, observed_until, resamples)
    until = fit.observed_until or 0
    facts = {
        "observed until": datetime.fromtimestamp(until / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "groups": f"{len(names) - 1:,}",
        **{f"repaired or noticed: {name}": f"{number:,}" for name, number in fit.counts.items()},
    }
    settings = {name: ", ".join(map(str, v)) if isinstance(v, list) else v for name, v in fit.settings.items()}
    return WindowsResults(
        title, now(), list(fit.windows), _said(middle), settings, facts, laws, len(order) - len(shown),
        _curves(fit, names, order), calibrated,
    )  # fmt: skip


def _names(fit: PersonalizedInterpolator) -> list[str]:
    keys = fit._keys
    codes = keys.vertical_codes()
    verticals = ["/".join(_value(keys.values[i], code) for i, code in enumerate(row)) for row in codes.tolist()]
    groups = ["/".join(_value(keys.values[i], code) for i, code in enumerate(row)) for row in keys.codes.tolist()]
    return ["all", *verticals, *(group or "all" for group in groups)]


def _value(values: Any, code: int) -> str:
    return str(values[code].as_py())


def _curves(fit: PersonalizedInterpolator, names: Sequence[str], order: Sequence[int]) -> list[LawCurve]:
    """Between the first two windows, of everything and of the rows with most outcomes."""
    fitted, segment = fit._need(), fit.grid.segments()[1]
    inside = len(segment.times)
    first = len(names) - len(fit._keys)
    until = fit.observed_until or 0
    rows = tally(
        fit._outcomes, len(fit._keys), fit.grid, until, fit.half_life, segment.first, segment.last
    ).mature  # fmt: skip
    found = []
    for row in order[:SHOWN_CURVES]:
        counts = rows.sum(axis=0) if row == 0 else None
        if row >= first:
            counts = rows[row - first]
        elif row > 0:
            counts = rows[fit._keys.vertical_of_group() == row - 1].sum(axis=0)
        assert counts is not None
        total = counts.sum()
        seen: list[tuple[float, float]] = []
        if total >= FEWEST:
            share = np.cumsum(counts) / total
            for place in np.unique(np.linspace(0, inside - 2, 16).astype(int)).tolist():
                seen.append((float(segment.times[place + 1]) / HOUR_MS, float(share[place])))
        alpha = fitted.segments[1][row, :inside].astype(float).tolist()
        found.append(LawCurve(names[row], (segment.times / HOUR_MS).tolist(), alpha, seen))
    return found


def _calibrations(
    fit: PersonalizedInterpolator, scored: Any, predictions: Sequence[str], windows: Sequence[str], until: Any,
    resamples: int,
) -> list[WindowCalibration]:  # fmt: skip
    if len(predictions) != len(fit.windows):
        raise WindowsError(
            f"predictions: {len(predictions)} columns; expected one for each of {', '.join(fit.windows)}"
        )
    p = [np.asarray(column(scored, name)) for name in predictions]
    end = fit._until(scored, until)
    start, delay, came = delays(scored, fit.settings["anchor"], fit.settings["converted"], end)
    groups = {name: column(scored, name) for name in fit._keys.columns}
    names = np.array(_names(fit))[fit.rows(groups or start)]
    found = []
    every = sorted({*windows, *fit.windows}, key=lambda window: window_ms(window, "windows"))
    for window in every:
        span = window_ms(window, "windows")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExtrapolationWarning)  # the page says which windows are whose
            score = fit.predict(*p, groups or start, window=window)
        old = start + span <= end
        if not old.any():
            raise WindowsError(f"windows: no event is older than {window} at the end; give older ones or leave it out")
        y = (came & (delay <= span)).astype(np.float64)[old]
        own = span in fit.grid.windows
        found.append(calibration_of(window, own, score[old], y, start[old] // DAY_MS, names[old], resamples))
    return found


def calibration_of(
    window: str, own: bool, p: Floats, y: Floats, day: Any, names: Any, resamples: int = 400
) -> WindowCalibration:
    """How ``p`` [n] for ``window`` came true: ``y`` [n] 0 or 1; intervals over ``day`` [n]; by group ``names`` [n]."""
    by_group = _by_group(names, p, y, day, resamples)
    return WindowCalibration(window, own, len(y), _ratio(p, y, day, resamples), calibration_bins(p, y), by_group)


def _by_group(names: Any, p: Floats, y: Floats, day: Any, resamples: int) -> list[tuple[str, int, Interval]]:
    label, number = np.unique(names, return_inverse=True)
    outcomes = np.bincount(number, y)
    if len(label) < 2:
        return []
    found = []
    for at in np.argsort(-outcomes, kind="stable")[:SHOWN_GROUPS].tolist():
        inside = number == at
        if outcomes[at] >= FEWEST:
            ratio = _ratio(p[inside], y[inside], day[inside], resamples)
            found.append((str(label[at]), int(outcomes[at]), ratio))
    return found


def _ratio(p: Floats, y: Floats, day: Any, resamples: int) -> Interval:
    return bootstrap("calibration", p, y, day, logits=False, resamples=resamples)


def _said(ms: int) -> str:
    hours = ms / HOUR_MS
    return f"{hours / 24:.1f} d" if hours >= 48 else f"{hours:.1f} h"
