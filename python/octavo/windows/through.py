"""p(T) through a request's own p of all windows, where it is no share of a group's between two of them alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.windows import laws
from octavo.windows.grid import Floats
from octavo.windows.pchip import pchip


def by_request(
    p: Sequence[npt.NDArray[Any]], below: npt.NDArray[Any], windows: Sequence[int], span: int
) -> tuple[npt.NDArray[Any], int]:
    """(p(``span``) [n], in how many rows p was raised), by each request's own rate (methods.md 5b.2c ii).

    ``p``: one [n] for each of ``windows`` (ms). Between two of them the rate is that which explains both and the one
    before (0 at 0): an exponential delay starts anew at any time. ``below`` [n]: the group's share of the first p, for
    shorter windows. Beyond the last no faster than between the last two.
    """
    y, repaired = _raised(p)
    ends, kind = (0, *windows), np.result_type(*p)
    number = min(int(np.searchsorted(ends, span)), len(windows))
    if number <= 1:
        return (y[:, 1] * below).astype(kind), repaired
    z, a, b = (float(end) for end in ends[number - 2 : number + 1])
    start, low, high = (y[:, place] for place in (number - 2, number - 1, number))
    ratio = np.divide(low - start, high - start, out=np.full(len(y), (a - z) / (b - z)), where=high > start)
    found = low + laws.request_alpha(ratio, a - z, b - z, span - z) * (high - low)
    top = np.minimum(low + (span - a) / (b - a) * (high - low), 1.0) if span > b else high
    return np.clip(found, low, top).astype(kind), repaired


def through_all(
    p: Sequence[npt.NDArray[Any]], ratios: Sequence[Any], segment: int, share: Floats, beyond: bool
) -> tuple[npt.NDArray[Any], int]:
    """(p [n], in how many rows p was raised): the monotone cubic over u = F_g(T) / F_g(longest window) through (0, 0)
    and ``p`` [windows][n] (5b.3). ``ratios`` [windows - 1][n]: F_g of each window over that of the next; ``share``
    [n]: how far T is between the ends of ``segment`` by F_g; ``beyond``: past the last."""
    y, repaired = _raised(p)
    kind = np.result_type(*p)
    if beyond:
        last = y[:, -1] + (share - 1) * (y[:, -1] - y[:, -2])
        return np.minimum(last, 1.0).astype(kind), repaired
    x = np.ones((len(share), len(p) + 1))
    x[:, 0] = 0.0
    for number in range(len(p) - 1, 0, -1):  # from the longest down
        x[:, number] = x[:, number + 1] * ratios[number - 1]
    low, high = x[:, segment], x[:, segment + 1]
    found = pchip(x, y, low + share * (high - low))
    # A group without outcomes between two windows has no u to tell them apart.
    flat = high <= low
    found[flat] = (y[:, segment] + share * (y[:, segment + 1] - y[:, segment]))[flat]
    return found.astype(kind), repaired


def _raised(p: Sequence[npt.NDArray[Any]]) -> tuple[Floats, int]:
    """([n, 1 + windows]: 0 and then p, none below the one before it; in how many rows one was)."""
    y = np.stack([np.zeros(len(p[0])), *p], 1).astype(np.float64)
    repaired = int((np.diff(y, axis=1) < 0).any(axis=1).sum())
    return np.maximum.accumulate(y, axis=1), repaired
