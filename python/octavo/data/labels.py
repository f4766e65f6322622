"""From outcomes and their delays to the labels of a model's heads, as they were known at some time."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from octavo.data.errors import DataError
from octavo.data.schema import Label, Schema

Floats = npt.NDArray[np.float64]


def labels_as_of(
    schema: Schema,
    outcomes: Mapping[str, Floats],
    delays: Mapping[str, Floats],
    age: Floats | None,
    where: str,
    is_collection: bool = False,
) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """Labels by head and delays (s, nan = not yet) by task, of n events.

    ``outcomes`` by task (nan = not known), ``delays`` by task (nan = none), both as the log has them. ``age``: seconds
    from each event to the moment of asking; None = all windows are closed. ``is_collection``: that moment is when the
    outcomes were collected, so those without a window are as they are. A label is

    * 1 (the outcome) once it happened, within the head's window where it has one
    * 0 once that can no longer be: the window is over, or that of the anchor which never came
    * nan until then; without a window an outcome that has not come is never known before the collection

    A known label never changes as ``age`` grows. Raises :class:`DataError` for outcomes that contradict their delays
    or come before their anchor.
    """
    for label in schema.labels:
        if label.delay is not None:
            _check_delays(label, outcomes, delays, where)
    for label in schema.labels:
        if label.anchor is not None:
            _check_order(label, outcomes, delays, where)
    now = np.inf if age is None else age
    as_they_are = age is None or is_collection
    labels: dict[str, Floats] = {}
    known_delays: dict[str, Floats] = {}
    for label in schema.labels:
        outcome = outcomes[label.task]
        if label.delay is None:
            labels[label.task] = outcome
            continue
        delay = delays[label.task]
        if not label.windows and as_they_are:
            labels[label.task], known_delays[label.task] = outcome, delay
            continue
        came = (outcome > 0) & (delay <= now)
        known_delays[label.task] = np.where(delay <= now, delay, np.nan)
        if not label.windows:
            labels[label.task] = np.where(came, outcome, np.nan)
            continue
        anchor, missed = _anchor(schema, label, outcomes, delays, now, as_they_are)
        for head, window_ms in zip(label.heads, label.windows_ms, strict=True):
            window = window_ms / 1000
            inside = (outcome > 0) & (delay - anchor <= window)  # nan: no anchor
            over = missed | (anchor + window <= now)
            value = np.where(inside & came, outcome, np.where(over & ~inside, 0.0, np.nan))
            labels[head] = np.where(np.isnan(outcome), np.nan, value)
    return labels, known_delays


def _anchor(
    schema: Schema,
    label: Label,
    outcomes: Mapping[str, Floats],
    delays: Mapping[str, Floats],
    now: Floats | float,
    as_they_are: bool,
) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Seconds from the event to the label's anchor (nan: it did not come in time), and whether it is known that it
    never will. An anchor with windows counts within the longest of them."""
    events = len(outcomes[label.task])
    if label.anchor is None:
        return np.zeros(events), np.zeros(events, bool)
    anchor = schema.label(label.anchor)
    outcome, delay = outcomes[anchor.task], delays[anchor.task]
    start, missed = _anchor(schema, anchor, outcomes, delays, now, as_they_are)
    came = outcome > 0
    if not anchor.windows:
        return np.where(came, delay, np.nan), (outcome == 0) & as_they_are
    limit = max(anchor.windows_ms) / 1000
    in_time = came & (delay - start <= limit)
    return np.where(in_time, delay, np.nan), ~np.isnan(outcome) & ~in_time & (missed | (start + limit <= now))


def _check_delays(label: Label, outcomes: Mapping[str, Floats], delays: Mapping[str, Floats], where: str) -> None:
    outcome, delay = outcomes[label.task], delays[label.task]
    wrong = (outcome > 0) & np.isnan(delay)
    if wrong.any():
        at = int(wrong.argmax())
        raise DataError(f"{where}: column {label.delay!r}: null at row {at}, where {label.task!r} is {outcome[at]:g}")
    wrong = ~(outcome > 0) & ~np.isnan(delay)
    if wrong.any():
        at = int(wrong.argmax())
        found = "null" if np.isnan(outcome[at]) else "0"
        raise DataError(
            f"{where}: column {label.delay!r}: {delay[at]:g} s at row {at}, where {label.task!r} is {found}; an "
            "outcome that never came, or is not known, has a null delay"
        )


def _check_order(label: Label, outcomes: Mapping[str, Floats], delays: Mapping[str, Floats], where: str) -> None:
    assert label.anchor is not None
    happened, begun, delay = outcomes[label.task] > 0, outcomes[label.anchor] > 0, delays[label.task]
    wrong = happened & ~begun
    if wrong.any():
        at = int(wrong.argmax())
        found = outcomes[label.anchor][at]
        raise DataError(
            f"{where}: {label.task!r} is 1 at row {at}, but its anchor {label.anchor!r} is "
            f"{'null' if np.isnan(found) else f'{found:g}'}; an outcome needs its anchor"
        )
    wrong = happened & (delay < delays[label.anchor])
    if wrong.any():
        at = int(wrong.argmax())
        raise DataError(
            f"{where}: column {label.delay!r}: {delay[at]:g} s at row {at} is before the anchor {label.anchor!r} "
            f"({delays[label.anchor][at]:g} s)"
        )
