"""Running counts and sums over what happened strictly before an event: features that cannot see their own answer."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def before(key: Ints, time: Ints, value: Floats) -> tuple[Ints, Floats]:
    """For each event, how many earlier events share its key, and the sum of their values.

    ``key``, ``time``, ``value`` [n]; earlier means a strictly smaller time, so events of one moment do not see each
    other. Any order of the events.
    """
    count, total = np.zeros(len(key), np.int64), np.zeros(len(key))
    if len(key) == 0:
        return count, total
    key_start, moment_start, order = _spans(key, time)
    prefix = np.concatenate(([0.0], np.cumsum(value[order])))
    count[order] = moment_start - key_start
    total[order] = prefix[moment_start] - prefix[key_start]
    return count, total


def outcomes_before(key: Ints, time: Ints, outcome_time: Ints) -> tuple[Ints, Ints]:
    """For each event, how many earlier events share its key, and how many of their outcomes had come by then.

    ``outcome_time`` [n]: when each event's outcome came, in the unit of ``time``; -1 = it never does. Earlier means
    strictly, for events and outcomes alike: an outcome that is still to come is not counted.
    """
    came = outcome_time >= 0
    keys, times = np.concatenate((key, key[came])), np.concatenate((time, outcome_time[came]))
    is_outcome = np.concatenate((np.zeros(len(key)), np.ones(int(came.sum()))))
    count, outcomes = before(keys, times, is_outcome)
    known = outcomes[: len(key)].astype(np.int64)
    return count[: len(key)] - known, known


def previous(key: Ints, time: Ints, value: Floats) -> Floats:
    """For each event, the value of the last event before it (strictly) with its key; nan where there is none. Of events
    of one moment the last in order counts."""
    found = np.full(len(key), np.nan)
    start, stop, order = _spans(key, time)
    has = stop > start
    found[order[has]] = value[order][stop[has] - 1]
    return found


def recent(key: Ints, time: Ints, value: Ints, length: int) -> tuple[Ints, Ints]:
    """For each event, the values of the last ``length`` events before it (strictly) with its key, oldest first: flat
    values [V], and offsets [n+1]."""
    start, stop, order = _spans(key, time)
    first = np.empty(len(key), np.int64)
    lengths = np.zeros(len(key), np.int64)
    first[order] = np.maximum(start, stop - length)
    lengths[order] = np.minimum(stop - start, length)
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    picks = np.arange(offsets[-1]) + np.repeat(first - offsets[:-1], lengths)
    values: Ints = value[order][picks]
    return values, offsets


def _spans(key: Ints, time: Ints) -> tuple[Ints, Ints, Ints]:
    """Order by key and time; for each place in it, where its key begins and its moment begins."""
    order = np.lexsort((time, key))
    keys, times = key[order], time[order]
    position = np.arange(len(key))
    new_key = np.concatenate(([True], keys[1:] != keys[:-1]))[: len(key)]
    new_moment = new_key | np.concatenate(([True], times[1:] != times[:-1]))[: len(key)]
    key_start: Ints = np.maximum.accumulate(np.where(new_key, position, 0))
    moment_start: Ints = np.maximum.accumulate(np.where(new_moment, position, 0))
    return key_start, moment_start, order
