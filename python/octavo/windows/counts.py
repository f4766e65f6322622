"""What a fit remembers of a stream: whole numbers by group, anchor's bucket and delay bin. They add up, so parts of a
stream in any order and on any worker come to the counts of all of it, exactly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from octavo.data.hashing import mix_bits
from octavo.windows.grid import Floats, Grid, Ints, WindowsError


@dataclass(frozen=True)
class Sparse:
    """Counts [r] of distinct (group, bucket, bin), sorted by group."""

    group: Ints
    bucket: Ints
    bin: Ints
    count: Ints

    @classmethod
    def empty(cls) -> Sparse:
        none = np.empty(0, np.int64)
        return cls(none, none, none, none)

    @classmethod
    def of(cls, group: Ints, bucket: Ints, bins: Ints, count: Ints) -> Sparse:
        """The sums over equal places."""
        if len(group) == 0:
            return cls.empty()
        first, width = int(bucket.min()), int(bins.max()) + 1
        span = int(bucket.max()) - first + 1
        if (int(group.max()) + 1) * span * width >= 1 << 62:
            raise WindowsError(f"anchor: times span {span} buckets, too many to count; are they ms since 1970?")
        place = ((group * span) + (bucket - first)) * width + bins
        order = np.argsort(place, kind="stable")
        place = place[order]
        starts = np.flatnonzero(np.concatenate(([True], place[1:] != place[:-1])))
        rest, found = np.divmod(place[starts], width)
        groups, buckets = np.divmod(rest, span)
        return cls(groups, buckets + first, found, np.add.reduceat(count[order], starts))

    def plus(self, other: Sparse) -> Sparse:
        if not len(self.group):
            return other
        pairs = ((self.group, other.group), (self.bucket, other.bucket), (self.bin, other.bin),
                 (self.count, other.count))  # fmt: skip
        return Sparse.of(*(np.concatenate(pair) for pair in pairs))

    def regrouped(self, where: Ints) -> Sparse:
        """With ``where[g]`` in place of group g."""
        return Sparse.of(where[self.group], self.bucket, self.bin, self.count)

    def of_groups(self, low: int, high: int) -> Sparse:
        """Rows of groups low .. high - 1."""
        rows = slice(*np.searchsorted(self.group, [low, high]))
        return Sparse(self.group[rows], self.bucket[rows], self.bin[rows], self.count[rows])

    def kept(self, keep: np.ndarray) -> Sparse:
        return Sparse(self.group[keep], self.bucket[keep], self.bin[keep], self.count[keep])


@dataclass(frozen=True)
class Tally:
    """What delays within some n bins say, each outcome decayed by its age, for g groups.

    ``events`` [g, n]: weight of the outcomes in each bin, of anchors for which that bin was observed whole.
    ``reach`` [g, n]: weight of those same anchors' outcomes from the first of the bins up to this one: who is at risk,
    backwards in time. ``mature`` [g, n]: outcomes of anchors for which all the bins were observed. ``size`` [g]: how
    many outcomes without decay say as much (Kish: square of the sum of weights / sum of their squares).
    """

    events: Floats
    reach: Floats
    mature: Floats
    size: Floats


def weights_of(bucket: Ints, grid: Grid, until: int, half_life: int | None) -> Floats:
    """Each bucket's weight: halved by every ``half_life`` ms of age at ``until``."""
    if half_life is None:
        return np.ones(len(bucket))
    age = until - (bucket + 0.5) * grid.bucket
    weight: Floats = np.exp2(-np.maximum(age, 0) / half_life)
    return weight


def tally(
    rows: Sparse, groups: int, grid: Grid, until: int, half_life: int | None, first: int = 0, last: int | None = None
) -> Tally:
    """Of bins ``first`` .. ``last`` - 1. ``rows``' groups are 0 .. ``groups`` - 1."""
    last = grid.bins if last is None else last
    width = last - first
    observed = np.minimum(grid.observed_bins(rows.bucket, until), last)
    seen = (rows.bin < observed) & (rows.bin >= first)
    rows, observed = rows.kept(seen), observed[seen] - first
    decay = weights_of(rows.bucket, grid, until, half_life)
    weight = decay * rows.count

    def spread(place: Ints, load: Floats, columns: int = width) -> Floats:
        found = np.bincount(rows.group * columns + place, load, minlength=groups * columns)
        return found.reshape(groups, columns).astype(np.float64, copy=False)  # of no rows numpy makes integers

    events = spread(rows.bin - first, weight)
    ends = spread(observed, weight, width + 1)[:, :width]  # the bin from which on its anchor is too young
    # Sums and differences of decayed weights round: who is at risk is no fewer than who came.
    reach = np.maximum(np.cumsum(events - ends, axis=1), events)
    mature = spread(rows.bin - first, weight * (observed == width))
    total, squares = (spread(np.zeros_like(observed), load, 1)[:, 0] for load in (weight, weight * decay))
    size = np.divide(total**2, squares, out=np.zeros(groups), where=squares > 0)
    return Tally(events, reach, mature, size)


def excess(outcomes: Sparse, anchors: Sparse) -> int:
    """How many outcomes there are beyond the anchors of their group and bucket; 0 when each is one of them."""
    came = Sparse.of(outcomes.group, outcomes.bucket, np.zeros_like(outcomes.bin), -outcomes.count)
    return -int(np.minimum(anchors.plus(came).count, 0).sum())


def fold_of(bucket: Ints) -> Ints:
    """0 or 1: which half of the anchors a bucket belongs to, by a hash of its number."""
    halves: Ints = (mix_bits(bucket.astype(np.uint64)) & np.uint64(1)).astype(np.int64)
    return halves


def hazard_tally(
    events: Sparse, anchors: Sparse, groups: int, grid: Grid, until: int, half_life: int | None
) -> tuple[Floats, Floats]:
    """Outcomes and anchors at risk [g, K], forwards in time, for Kaplan and Meier's estimator. ``anchors``: counts of
    all anchors, in bin 0."""
    width = grid.bins
    observed = grid.observed_bins(anchors.bucket, until)
    weight = weights_of(anchors.bucket, grid, until, half_life) * anchors.count
    found = np.bincount(anchors.group * (width + 1) + observed, weight, minlength=groups * (width + 1))
    # Anchors observed for at least k + 1 bins.
    exposed = np.cumsum(found.reshape(groups, width + 1)[:, ::-1], axis=1)[:, ::-1][:, 1:]
    came = tally(events, groups, grid, until, half_life)
    before = np.maximum(came.reach - came.events, 0.0)  # outcomes in earlier bins of anchors that observed this one
    return came.events, np.maximum(exposed - before, came.events)
