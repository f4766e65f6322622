"""Windows as milliseconds, the delay bins between them, and the buckets in which anchors' times are kept."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.data import DataError
from octavo.data.durations import parse_duration

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

BELOW_BINS, BEYOND_POINTS, BEYOND = 16, 12, 4  # BEYOND: windows up to so many times the longest can be extrapolated
CHUNK = 1 << 15  # requests whose intermediate values stay in L2
_FINEST = 64  # the first bin ends at the shortest window / this
_MOST_STEPS = 512  # multiples of the resolution that become edges


class WindowsError(DataError):
    """What the user gave cannot be used: says which argument, what was found and what to do."""


def window_ms(text: Any, where: str) -> int:
    """Milliseconds of ``"3d"``. Raises :class:`WindowsError` for a number without a unit, and for 0."""
    try:
        found = parse_duration(text, where)
    except DataError as error:
        raise WindowsError(str(error)) from None
    if found == 0:
        raise WindowsError(f"{where}: found {text!r}; expected more than nothing")
    return found


@dataclass(frozen=True)
class Segment:
    """The bins ``first`` .. ``last`` - 1 between two windows: ``times`` [n + 1] ms their edges, ``beyond`` [b] later
    points."""

    first: int
    last: int
    times: Floats
    beyond: Floats

    @property
    def points(self) -> Floats:
        """[n + 1 + b] ms: where the segment's curves are kept."""
        return np.concatenate([self.times, self.beyond])

    @property
    def ends(self) -> tuple[float, float]:
        return float(self.times[0]), float(self.times[-1])


@dataclass(frozen=True)
class Grid:
    """Delay bins: bin k holds delays in (edges[k], edges[k + 1]] ms, bin 0 delay 0 too.

    ``windows``: the anchors' windows, ms, increasing. ``edges`` [K + 1] int64 ms, from 0 to the longest window, the
    windows among them (``at``: where). ``beyond`` [b] ms: the points after the longest window at which extrapolated
    curves are kept. ``bucket``: ms by which anchors' times are kept: an outcome counts as observable once the youngest
    anchor of its bucket is old enough.
    """

    windows: tuple[int, ...]
    edges: Ints
    at: tuple[int, ...]
    beyond: Ints
    bucket: int

    @classmethod
    def of(cls, windows: Sequence[Any], bins: int, resolution: str | None, bucket: str | None) -> Grid:
        """``bins``: between two windows, by equal ratios; ``resolution``: its multiples are edges too (default: the
        windows' greatest common divisor), so that delays on a lattice are counted exactly."""
        if isinstance(windows, str) or len(windows) < 2:
            raise WindowsError(f"windows: found {windows!r}; expected two or more, such as ('1d', '7d')")
        spans = tuple(window_ms(window, f"windows[{i}]") for i, window in enumerate(windows))
        if any(b <= a for a, b in itertools.pairwise(spans)):
            raise WindowsError(f"windows: found {', '.join(windows)}; expected them increasing")
        if bins < 4:
            raise WindowsError(f"bins: found {bins}; expected at least 4")
        step = math.gcd(*spans) if resolution is None else window_ms(resolution, "resolution")
        first = spans[0]
        parts = [np.array([0], np.int64), _between(max(first // _FINEST, 1), first, BELOW_BINS)]
        parts += [_between(a, b, bins) for a, b in itertools.pairwise(spans)]
        if spans[-1] // step <= _MOST_STEPS:
            parts.append(np.arange(step, spans[-1] + 1, step))
        edges = np.unique(np.concatenate([*parts, np.array(spans)]))
        at = tuple(int(np.searchsorted(edges, span)) for span in spans)
        beyond = _between(spans[-1], BEYOND * spans[-1], BEYOND_POINTS)[1:]
        width = max(first // 4, 1) if bucket is None else window_ms(bucket, "bucket")
        return cls(spans, edges, at, beyond, width)

    @property
    def bins(self) -> int:
        return len(self.edges) - 1

    def bin_of(self, delay: Ints) -> Ints:
        """The bin of each delay (ms, >= 0); ``bins`` for one after the longest window."""
        found: Ints = np.searchsorted(self.edges[1:], delay, side="left").astype(np.int64)
        return found

    def observed_bins(self, bucket: Ints, until: int) -> Ints:
        """How many bins, from the first on, were observed whole at ``until`` (ms) for every anchor of each bucket."""
        youngest = until - (bucket + 1) * self.bucket + 1
        found: Ints = np.searchsorted(self.edges[1:], youngest, side="right").astype(np.int64)
        return found

    def segments(self) -> list[Segment]:
        """Up to the shortest window, then between each two; the last one goes on beyond the longest."""
        found = []
        for first, last in zip((0, *self.at), self.at):
            times = self.edges[first : last + 1]
            beyond = self.beyond if last == self.bins else self.beyond[:0]
            found.append(Segment(first, last, times.astype(np.float64), beyond.astype(np.float64)))
        return found

    def place(self, window: int, where: str = "window") -> tuple[int, int, float]:
        """(segment, j, share): the segment's curve at ``window`` ms lies ``share`` of the way from its point j to the
        next, by log time (by time in the first bin). Raises :class:`WindowsError` for one too long to extrapolate to.
        """
        longest = BEYOND * self.windows[-1]
        if window > longest:
            raise WindowsError(
                f"{where}: found {window} ms; expected at most {BEYOND} times the longest window ({longest} ms): train "
                "a head for a longer window"
            )
        segments = self.segments()
        number = min(int(np.searchsorted(self.windows, window, side="left")), len(segments) - 1)
        points = segments[number].points
        j = min(max(int(np.searchsorted(points, window, side="left")) - 1, 0), len(points) - 2)
        low, high = float(points[j]), float(points[j + 1])
        if low == 0:
            return number, j, window / high
        return number, j, math.log(window / low) / math.log(high / low)

    def is_extrapolated(self, window: int) -> bool:
        """Whether ``window`` (ms) lies outside the anchors' windows."""
        return not self.windows[0] <= window <= self.windows[-1]


def _between(low: int, high: int, bins: int) -> Ints:
    """Edges by equal ratios, both ends included, as whole ms."""
    return np.unique(np.round(np.geomspace(low, high, bins + 1)).astype(np.int64))
