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
    order = np.lexsort((time, key))
    keys, times = key[order], time[order]
    position = np.arange(len(key))
    new_key = np.concatenate(([True], keys[1:] != keys[:-1]))
    new_moment = new_key | np.concatenate(([True], times[1:] != times[:-1]))
    key_start = np.maximum.accumulate(np.where(new_key, position, 0))
    moment_start = np.maximum.accumulate(np.where(new_moment, position, 0))
    prefix = np.concatenate(([0.0], np.cumsum(value[order])))
    count[order] = moment_start - key_start
    total[order] = prefix[moment_start] - prefix[key_start]
    return count, total
