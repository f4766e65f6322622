"""One segment's curves for one level of the hierarchy: families fitted, shrunk to the level above, and weighed by what
they said of outcomes that they had not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from octavo.windows import laws
from octavo.windows.counts import Tally
from octavo.windows.grid import Floats, Ints, Segment

COARSE = 8  # bins of equal share of all outcomes, in which held-out outcomes are scored
KAPPAS = np.array([0.0, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 1e5, np.inf])
DEFAULT_KAPPA, ENOUGH = 200.0, 50.0  # where fewer held-out outcomes than ENOUGH could teach it
_TRUST = 20.0  # held-out outcomes that the level above counts as when a group's family is chosen
_FLOOR = 1e-6  # of a coarse bin's probability: an empirical curve may have ruled it out


@dataclass(frozen=True)
class Sample:
    """One level's outcomes in a segment: ``whole`` and its two halves; ``ratio`` [3][L]: F(a) / F(b) of each."""

    whole: Tally
    halves: tuple[Tally, Tally]
    ratio: tuple[Floats, Floats, Floats]

    @property
    def parts(self) -> tuple[Tally, Tally, Tally]:
        return self.whole, *self.halves


@dataclass(frozen=True)
class Above:
    """The level above, as seen from each of L groups: ``curves`` [3][L, E] of all outcomes and of each half,
    ``scores`` [L, F] per held-out outcome, ``ratio`` [L]."""

    curves: tuple[Floats, Floats, Floats]
    scores: Floats
    ratio: Floats


@dataclass(frozen=True)
class Estimate:
    """``curves`` [3][L, E] as :class:`Above`; ``weights`` [L, F] of the families; ``own`` [L]: the group's own share;
    ``scores`` [L, F] and ``held`` [L]: log likelihood of held-out outcomes, and how many they were; ``ratio`` [L]."""

    curves: tuple[Floats, Floats, Floats]
    weights: Floats
    own: Floats
    scores: Floats
    held: Floats
    ratio: Floats


def flat(segment: Segment, families: int, level: int = 1) -> Above:
    """What is above everything: log-time (linear up to the shortest window), which says little and is never 0."""
    a, b = segment.ends
    curve = laws.linear(a, b, segment.points) if a == 0 else laws.log_time(a, b, segment.points)
    rows = np.repeat(curve[None, :], level, axis=0)
    return Above((rows, rows, rows), np.zeros((level, families)), np.full(level, a / b))


def family_curves(
    families: Sequence[str], part: Tally, ratio: Floats, above: Floats, kappa: Floats, segment: Segment
) -> Floats:
    """[F, L, E]: each family's curves. The empirical one is shrunk already, by outcomes that follow ``above``: only so
    can it use what is known of bins for which the group is too young."""
    a, b = segment.ends
    points, groups = segment.points, len(part.events)
    found = np.empty((len(families), groups, len(points)))
    fitted: dict[str, Floats] = {}

    def law(family: str, times: Floats) -> Floats:
        if family not in fitted:
            fitted[family] = laws.fit_law(family, part.events, part.reach, a, b, segment.times)
        return laws.LAWS[family].alpha(fitted[family], a, b, times)

    for number, family in enumerate(families):
        if family in laws.FIXED:
            found[number] = laws.fixed_alpha(family, a, b, points)
        elif family == "exponential_ratio":
            found[number] = laws.exponential(laws.rate_of_ratio(ratio, a, b), a, b, points)
        elif family in laws.LAWS:
            found[number] = law(family, points)
        else:
            inside = len(segment.times)
            count = np.full(groups, kappa[number])
            if np.isinf(kappa[number]):
                found[number] = above
                continue
            found[number, :, :inside] = laws.empirical(part.events, part.reach, above[:, :inside], count)
            if len(segment.beyond):
                found[number, :, inside:] = law("weibull", segment.beyond)
        found[number, part.size == 0] = above[part.size == 0]
    # Beyond the longest window no outcomes may come faster than between the last two: a law that rises would explode.
    inside = len(segment.times)
    found[:, :, inside:] = np.clip(found[:, :, inside:], 1.0, laws.linear(a, b, segment.beyond))
    return found


def estimate(
    families: Sequence[str], sample: Sample, above: Above, kappa: Floats, segment: Segment, coarse: Ints
) -> Estimate:
    """``kappa`` [F]: outcomes that the level above counts as, for each family."""
    shrunk = []
    for part, ratio, parent in zip(sample.parts, sample.ratio, above.curves, strict=True):
        shrunk.append(
            _blend(families, family_curves(families, part, ratio, parent, kappa, segment), part, parent, kappa)
        )
    scores = np.zeros((len(sample.whole.size), len(families)))
    for half, other in ((0, 1), (1, 0)):  # fitted on one half, scored on the other's matured outcomes
        held = _coarse_counts(sample.halves[other].mature, coarse)
        for number in range(len(families)):
            scores[:, number] += _score(shrunk[1 + half][number][:, coarse], held)
    held_out = sum(half.mature.sum(axis=1) for half in sample.halves)
    weights = _softmax(scores + _TRUST * above.scores) if len(families) > 1 else np.ones((len(scores), 1))
    curves = tuple(np.einsum("lf,fle->le", weights, part) for part in shrunk)
    share = sample.whole.size[:, None] / np.maximum(sample.whole.size[:, None] + kappa[None, :], 1e-300)
    reached = _coarse_ratio(sample, above, families, kappa)
    return Estimate(curves, weights, (weights * share).sum(axis=1), scores, held_out, reached)  # type: ignore[arg-type]


def learned_kappa(families: Sequence[str], sample: Sample, above: Above, segment: Segment, coarse: Ints) -> Floats:
    """[F]: the pseudo-count of each family under which curves of one half of the anchors, shrunk, say most of the other
    half's matured outcomes, summed over the groups of ``sample``."""
    total = np.zeros((len(families), len(KAPPAS)))
    plain = np.zeros(len(families))
    for half, other in ((0, 1), (1, 0)):
        part, parent = sample.halves[half], above.curves[1 + half]
        held = _coarse_counts(sample.halves[other].mature, coarse)
        curves = family_curves(families, part, sample.ratio[1 + half], parent, plain, segment)[:, :, coarse]
        for place, kappa in enumerate(KAPPAS):
            own = _own_share(part.size, kappa)[:, None]
            for number in range(len(families)):
                mixed = own * curves[number] + (1 - own) * parent[:, coarse]
                total[number, place] += _score(mixed, held).sum()
    if sum(half.mature.sum() for half in sample.halves) < ENOUGH:
        return np.full(len(families), DEFAULT_KAPPA)
    found: Floats = KAPPAS[np.argmax(total, axis=1)]
    return found


def coarse_edges(curve: Floats, inside: int) -> Ints:
    """Places [<= COARSE + 1] among the first ``inside`` points that cut ``curve`` [E] into about equal shares."""
    wanted = np.linspace(0, 1, COARSE + 1)[1:-1]
    middle = np.searchsorted(curve[:inside], wanted)
    return np.unique(np.concatenate([[0], np.clip(middle, 1, inside - 2), [inside - 1]])).astype(np.int64)


def _own_share(size: Floats, kappa: float) -> Floats:
    if np.isinf(kappa):
        return np.zeros_like(size)
    found: Floats = np.divide(size, size + kappa, out=np.zeros_like(size), where=size > 0)
    return found


def _blend(families: Sequence[str], curves: Floats, part: Tally, parent: Floats, kappa: Floats) -> Floats:
    for number, family in enumerate(families):
        if family == "empirical":
            inside = part.events.shape[1] + 1
            own = _own_share(part.size, float(kappa[number]))[:, None]
            beyond = slice(inside, None)
            curves[number, :, beyond] = own * curves[number, :, beyond] + (1 - own) * parent[:, beyond]
            continue
        own = _own_share(part.size, float(kappa[number]))[:, None]
        curves[number] = own * curves[number] + (1 - own) * parent
    return curves


def _coarse_ratio(sample: Sample, above: Above, families: Sequence[str], kappa: Floats) -> Floats:
    """F(a) / F(b), shrunk as the first family is (the empirical one where it is there)."""
    load = float(kappa[families.index("empirical") if "empirical" in families else 0])
    own = _own_share(sample.whole.size, load)
    return own * sample.ratio[0] + (1 - own) * above.ratio


def _coarse_counts(mature: Floats, coarse: Ints) -> Floats:
    total = np.concatenate([np.zeros((len(mature), 1)), np.cumsum(mature, axis=1)], axis=1)
    found: Floats = np.diff(total[:, coarse], axis=1)
    return found


def _score(curves: Floats, held: Floats) -> Floats:
    return (held * np.log(np.maximum(np.diff(curves, axis=1), _FLOOR))).sum(axis=1)


def _softmax(scores: Floats) -> Floats:
    found = np.exp(scores - scores.max(axis=1, keepdims=True))
    return found / found.sum(axis=1, keepdims=True)
