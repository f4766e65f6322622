"""From counts to curves: global, then verticals, then groups, segment by segment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.stats import chi2

from octavo.windows import laws
from octavo.windows.counts import Sparse, Tally, fold_of, tally
from octavo.windows.estimate import (
    Above,
    Estimate,
    Sample,
    Taught,
    _coarse_counts,
    between,
    coarse_edges,
    estimate,
    flat,
    teach,
)
from octavo.windows.grid import Floats, Grid, Ints, Segment, WindowsError

_CHUNK_NUMBERS = 1 << 21  # of groups times bins, held at once
_TAUGHT_BY = 4096  # groups that the pseudo-counts are learned from, at most


@dataclass
class Fitted:
    """Curves of R rows: everything (row 0), the verticals, the groups.

    ``segments`` [S][R, E_s] float32: first the share of p_short by windows up to the shortest, then alpha between each
    two windows, the last with what lies beyond. By segment: ``weights`` [R, F] of the families, ``own`` [R], ``size``
    [R] outcomes (Kish), ``ratio`` [R] = F(a) / F(b), ``misfit`` and ``drift`` [R] p-values, ``spread`` [R, n + 1]
    standard errors of the curves up to the segment's longer window, ``kappa`` [levels, F].
    """

    families: tuple[str, ...]
    segments: list[np.ndarray]
    weights: list[np.ndarray]
    own: list[np.ndarray]
    size: list[np.ndarray]
    ratio: list[np.ndarray]
    misfit: list[np.ndarray]
    drift: list[np.ndarray]
    spread: list[np.ndarray]
    kappa: list[np.ndarray] = field(default_factory=list)


def fit_curves(
    rows: Sparse,
    vertical_of: Ints,
    verticals: int,
    grid: Grid,
    until: int,
    half_life: int | None,
    families: Sequence[str],
    shrink: float | None,
) -> Fitted:
    """``rows``: outcomes of ``len(vertical_of)`` groups; ``vertical_of`` [groups]: -1 where there are no verticals.
    ``shrink``: outcomes that the level above counts as; None: learned. Raises :class:`WindowsError` where no outcome
    is old enough to say anything."""
    groups, count = len(vertical_of), 1 + verticals + len(vertical_of)
    families = tuple(families)
    found = Fitted(families, [], [], [], [], [], [], [], [])
    for number, segment in enumerate(grid.segments()):
        used = ("empirical",) if number == 0 else families
        out = _Rows(count, segment, len(used))
        fitter = _Fitter(grid, segment, until, half_life, used, shrink)
        first = rows.kept((rows.bin >= segment.first) & (rows.bin < segment.last))
        whole = rows if fitter.wants_ratio else first
        top = fitter.fit(whole.regrouped(np.zeros(groups, np.int64)), 1, fitter.above_all(1), np.zeros(1, np.int64))
        if number and top.size[0] == 0:
            a, b = segment.ends
            raise WindowsError(
                f"conversions: none between {a / 3.6e6:g} h and {b / 3.6e6:g} h after its anchor that was observed for "
                "so long; give older anchors or shorter windows"
            )
        out.put(0, top)
        parent, where = top, np.zeros(groups, np.int64)
        kappas = [top.taught.kappa]
        if verticals:
            above = fitter.above(top, np.zeros(verticals, np.int64))
            middle = fitter.fit(whole.regrouped(vertical_of), verticals, above, np.arange(verticals))
            out.put(1, middle)
            parent, where = middle, vertical_of
            kappas.append(middle.taught.kappa)
        taught = fitter.teach(whole, groups, parent, where)
        kappas.append(taught.kappa)
        step = max(1, _CHUNK_NUMBERS // max(len(segment.points), 1))
        for begin in range(0, groups, step):
            end = min(begin + step, groups)
            part = whole.of_groups(begin, end)
            part = Sparse(part.group - begin, part.bucket, part.bin, part.count)
            above = fitter.above(parent, where[begin:end])
            out.put(1 + verticals + begin, fitter.fit(part, end - begin, above, np.arange(end - begin), taught))
        found.segments.append(out.curves)
        for name in ("weights", "own", "size", "ratio", "misfit", "drift", "spread"):
            getattr(found, name).append(getattr(out, name))
        found.kappa.append(np.stack(kappas))
    return found


@dataclass(frozen=True)
class _Level:
    estimate: Estimate
    taught: Taught
    size: Floats
    misfit: Floats
    drift: Floats
    spread: Floats


class _Rows:
    def __init__(self, count: int, segment: Segment, families: int) -> None:
        self.curves = np.empty((count, len(segment.points)), np.float32)
        self.weights = np.empty((count, families), np.float32)
        self.own, self.size, self.ratio, self.misfit, self.drift = (np.empty(count, np.float32) for _ in range(5))
        self.spread = np.empty((count, len(segment.times)), np.float32)

    def put(self, at: int, level: _Level) -> None:
        rows = slice(at, at + len(level.size))
        # A mixture of rising curves rises but for rounding.
        self.curves[rows] = np.maximum.accumulate(level.estimate.curves[0], axis=1)
        self.weights[rows] = level.estimate.weights
        self.own[rows], self.size[rows], self.ratio[rows] = level.estimate.own, level.size, level.estimate.ratio
        self.misfit[rows], self.drift[rows], self.spread[rows] = level.misfit, level.drift, level.spread


class _Fitter:
    """One segment's levels, one after the other."""

    def __init__(
        self, grid: Grid, segment: Segment, until: int, half_life: int | None, families: Sequence[str],
        shrink: float | None,
    ) -> None:  # fmt: skip
        self.grid, self.segment, self.until, self.half_life = grid, segment, until, half_life
        self.families, self.shrink = tuple(families), shrink
        self.wants_ratio = segment.first > 0
        self.coarse: Ints | None = None

    def above_all(self, groups: int) -> Above:
        return flat(self.segment, groups)

    def above(self, parent: _Level, where: Ints) -> Above:
        curves = tuple(curve[where] for curve in parent.estimate.curves)
        estimate = parent.estimate
        return Above(curves, estimate.ratio[where], estimate.variance[where])  # type: ignore[arg-type]

    def teach(self, rows: Sparse, groups: int, parent: _Level, where: Ints) -> Taught:
        """What at most ``_TAUGHT_BY`` of the groups, evenly spaced, say of all of them."""
        chosen = np.unique(np.linspace(0, groups - 1, min(groups, _TAUGHT_BY)).astype(np.int64))
        place = np.full(groups, -1)
        place[chosen] = np.arange(len(chosen))
        part = rows.kept(place[rows.group] >= 0)
        sample = self._sample(Sparse(place[part.group], part.bucket, part.bin, part.count), len(chosen))
        return self._taught(sample, self.above(parent, where[chosen]))

    def fit(self, rows: Sparse, groups: int, above: Above, where: Ints, taught: Taught | None = None) -> _Level:
        sample = self._sample(rows, groups)
        if self.coarse is None:  # the top: alone, but for what makes an empirical curve one
            self.coarse = self._first_edges(sample.whole)
            alone = np.array([1.0 if family == "empirical" else 0.0 for family in self.families])
            taught = Taught(alone, np.zeros(len(alone)), np.zeros(len(self.segment.times)))
        if taught is None:
            taught = self._taught(sample, above)
        found = estimate(self.families, sample, above, taught, self.segment, self.coarse)
        misfit, drift = self._checks(rows, groups, found)
        return _Level(found, taught, sample.whole.size, misfit, drift, np.sqrt(found.variance))

    def _taught(self, sample: Sample, above: Above) -> Taught:
        assert self.coarse is not None
        if self.shrink is not None:
            count = len(self.families)
            return Taught(np.full(count, self.shrink), np.zeros(count), between(sample, above))
        return teach(self.families, sample, above, self.segment, self.coarse)

    def _sample(self, rows: Sparse, groups: int) -> Sample:
        halves = fold_of(rows.bucket)
        parts = [rows, rows.kept(halves == 0), rows.kept(halves == 1)]
        tallies = [self._tally(part, groups) for part in parts]
        a, b = self.segment.ends
        if not self.wants_ratio:
            even = np.full(groups, a / b)
            return Sample(tallies[0], (tallies[1], tallies[2]), (even, even, even), np.zeros(groups))
        ratios = [self._ratio(part, groups) for part in parts]
        return Sample(tallies[0], (tallies[1], tallies[2]), tuple(r[0] for r in ratios), ratios[0][1])  # type: ignore[arg-type]

    def _tally(self, rows: Sparse, groups: int, first: int | None = None) -> Tally:
        start = self.segment.first if first is None else first
        return tally(rows, groups, self.grid, self.until, self.half_life, start, self.segment.last)

    def _ratio(self, rows: Sparse, groups: int) -> tuple[Floats, Floats]:
        """F(a) / F(b) by the product-limit estimator backwards in time; a / b (no rate at all) without outcomes. And
        its variance."""
        whole = self._tally(rows, groups, 0)
        events, reach = whole.events[:, self.segment.first :], whole.reach[:, self.segment.first :]
        stay = 1 - np.divide(events, reach, out=np.zeros_like(events), where=reach > 0)
        a, b = self.segment.ends
        scale = np.divide(whole.size, whole.events.sum(axis=1), out=np.ones(groups), where=whole.size > 0)[:, None]
        ratio = np.where(whole.size > 0, np.prod(np.clip(stay, 0, 1), axis=1), a / b)
        return ratio, laws.ratio_variance(events * scale, reach * scale, a / b)

    def _first_edges(self, whole: Tally) -> Ints:
        inside = len(self.segment.times)
        prior = flat(self.segment).curves[0][:, :inside]
        return coarse_edges(laws.empirical(whole.events, whole.reach, prior, 1.0)[0], inside)

    def _checks(self, rows: Sparse, groups: int, found: Estimate) -> tuple[Floats, Floats]:
        """p-values [groups]: that matured outcomes follow the curve, and that the newer half of the anchors' time has
        the law of the older (Pearson, without decay, in the coarse bins)."""
        assert self.coarse is not None
        until, grid, seg = self.until, self.grid, self.segment
        counts = _coarse_counts(tally(rows, groups, grid, until, None, seg.first, seg.last).mature, self.coarse)
        expected = np.maximum(np.diff(found.curves[0][:, self.coarse], axis=1), 1e-9)
        total = counts.sum(axis=1, keepdims=True)
        misfit = _pearson(((counts - total * expected) ** 2 / np.maximum(total * expected, 1e-9)), total * expected)
        recent = self._recent(rows)
        newer = _coarse_counts(
            tally(rows.kept(recent), groups, grid, until, None, seg.first, seg.last).mature, self.coarse
        )
        older = counts - newer
        sums = newer.sum(axis=1, keepdims=True), older.sum(axis=1, keepdims=True)
        share = counts / np.maximum(total, 1e-9)
        parts = [(c - s * share) ** 2 / np.maximum(s * share, 1e-9) for c, s in zip((newer, older), sums)]
        drift = _pearson(parts[0] + parts[1], np.minimum(sums[0], sums[1]) * share)
        return misfit, drift

    def _recent(self, rows: Sparse) -> np.ndarray:
        """Anchors of the last half-life (the last quarter of the time, without one) among those that are mature."""
        mature = self.grid.observed_bins(rows.bucket, self.until) >= self.segment.last
        if not mature.any():
            return mature
        newest, oldest = int(rows.bucket[mature].max()), int(rows.bucket[mature].min())
        span = (newest - oldest) // 4 if self.half_life is None else self.half_life // self.grid.bucket
        return rows.bucket > newest - max(span, 1)


def _pearson(parts: Floats, expected: Floats) -> Floats:
    """p-values [g] of [g, c] terms; 1 where fewer than 5 outcomes are expected in some bin."""
    enough = expected.min(axis=1) >= 5
    found: Floats = np.where(enough, chi2.sf(parts.sum(axis=1), max(parts.shape[1] - 1, 1)), 1.0)
    return found
