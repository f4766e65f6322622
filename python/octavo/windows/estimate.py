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
_TEMPER = 0.5  # of held-out log likelihoods: fits of halves, both ways, are not two independent witnesses
_EM, _UNIFORM = 40, 0.05  # steps; share of groups whose family may be any
_PRIOR_BY = 1024  # groups from which a prior is learned, at most
_CLEAR = 0.02  # gain in log likelihood per held-out outcome
_CAP = 100.0  # held-out outcomes of one group, at most, that teach the pseudo-counts
_TRUSTED = 10  # groups that must teach a prior to be trusted half
_FLOOR = 1e-6  # of a coarse bin's probability: an empirical curve may have ruled it out


@dataclass(frozen=True)
class Sample:
    """One level's outcomes in a segment: ``whole`` and its two halves; ``ratio`` [3][L]: F(a) / F(b) of each;
    ``ratio_variance`` [L] of the first."""

    whole: Tally
    halves: tuple[Tally, Tally]
    ratio: tuple[Floats, Floats, Floats]
    ratio_variance: Floats

    @property
    def parts(self) -> tuple[Tally, Tally, Tally]:
        return self.whole, *self.halves


@dataclass(frozen=True)
class Above:
    """The level above, as seen from each of L groups: ``curves`` [3][L, E] of all outcomes and of each half,
    ``ratio`` [L], ``variance`` [L, n + 1] of the first up to the longer window."""

    curves: tuple[Floats, Floats, Floats]
    ratio: Floats
    variance: Floats


@dataclass(frozen=True)
class Estimate:
    """``curves`` [3][L, E], ``ratio`` [L] and ``variance`` [L, n + 1] as :class:`Above`; ``weights`` [L, F] of the
    families; ``own`` [L]: the group's own share."""

    curves: tuple[Floats, Floats, Floats]
    weights: Floats
    own: Floats
    ratio: Floats
    variance: Floats


def flat(segment: Segment, level: int = 1) -> Above:
    """What is above everything: log-time (linear up to the shortest window), which says little and is never 0."""
    a, b = segment.ends
    curve = laws.linear(a, b, segment.points) if a == 0 else laws.log_time(a, b, segment.points)
    rows = np.repeat(curve[None, :], level, axis=0)
    return Above((rows, rows, rows), np.full(level, a / b), np.zeros((level, len(segment.times))))


Priors = dict[str, Floats]  # by family: how often each parameter of its grid occurs among the groups


def family_curves(
    families: Sequence[str],
    part: Tally,
    ratio: Floats,
    above: Floats,
    kappa: Floats,
    segment: Segment,
    priors: Priors | None,
) -> Floats:
    """[F, L, E]: each family's curves. With ``priors`` those of laws with parameters are posterior means, else maxima
    of likelihood. The empirical one is shrunk already, by outcomes that follow ``above``: only so can it use what is
    known of bins for which the group is too young."""
    a, b = segment.ends
    points, groups = segment.points, len(part.events)
    found = np.empty((len(families), groups, len(points)))
    fitted: dict[str, Floats] = {}
    events, reach = _whole(part)

    def law(family: str) -> Floats:
        if family not in fitted:
            if priors is not None and family in priors:
                fitted[family] = laws.posterior_curves(
                    family, events, reach, a, b, segment.times, points, priors[family]
                )
            else:
                theta = laws.fit_law(family, events, reach, a, b, segment.times)
                fitted[family] = laws.LAWS[family].alpha(theta, a, b, points)
        return fitted[family]

    for number, family in enumerate(families):
        if family in laws.FIXED:
            found[number] = laws.fixed_alpha(family, a, b, points)
        elif family == "exponential_ratio":
            found[number] = laws.exponential(laws.rate_of_ratio(ratio, a, b), a, b, points)
        elif family in laws.LAWS:
            found[number] = law(family)
        else:
            inside = len(segment.times)
            count = np.full(groups, kappa[number])
            if np.isinf(kappa[number]):
                found[number] = above
                continue
            found[number, :, :inside] = laws.empirical(events, reach, above[:, :inside], count)
            if len(segment.beyond):
                found[number, :, inside:] = law("weibull" if "weibull" in families else "exponential")[:, inside:]
        found[number, part.size == 0] = above[part.size == 0]
    # Beyond the longest window no outcomes may come faster than between the last two: a law that rises would explode.
    inside = len(segment.times)
    found[:, :, inside:] = np.clip(found[:, :, inside:], 1.0, laws.linear(a, b, segment.beyond))
    return found


def _whole(part: Tally) -> tuple[Floats, Floats]:
    """Its events and reach, scaled: decayed outcomes say as much as ``size`` whole ones."""
    total = part.events.sum(axis=1)
    scale = np.divide(part.size, total, out=np.ones(len(total)), where=part.size > 0)[:, None]
    return part.events * scale, part.reach * scale


def between(sample: Sample, above: Above) -> Floats:
    """[n + 1]: how far groups' own curves lie from the level above, mean square, without what chance adds [moments, as
    DerSimonian and Laird 1986], and one standard error more: few groups say little of how much groups differ. A group
    counts as its outcomes, ``_CAP`` of them at most."""
    events, reach = _whole(sample.whole)
    parent = above.curves[0][:, : events.shape[1] + 1]
    load = np.minimum(sample.whole.size, _CAP) * (sample.whole.size >= 1)
    if not load.any():
        return np.zeros(parent.shape[1])
    own = laws.empirical(events, reach, parent, 0.0)
    excess = (own - parent) ** 2 - laws.sampling_variance(parent, reach)
    load = load / load.sum()
    mean: Floats = load @ excess
    error = np.sqrt(load**2 @ (excess - mean) ** 2)
    return np.maximum(mean, 0.0) + error


def variances(
    families: Sequence[str], curves: Floats, weights: Floats, sample: Sample, above: Above, taught: Taught,
    segment: Segment,
) -> Floats:  # fmt: skip
    """[L, n + 1]: mean square error to expect of the mixture of the families' ``curves`` [F, L, E].

    Each family's, plus how far families lie apart. A curve that is ``own`` a group's and the rest that of the level
    above errs by own^2 times the variance of the group's plus (1 - own)^2 times (how far groups lie from that level,
    plus its own variance). A group's own variance: of the empirical curve, by the outcomes at risk; of laws, by the
    posterior, as far as many groups taught its prior, else as the empirical curve's; linear and log time have no
    parameter to be uncertain about."""
    a, b = segment.ends
    inside = len(segment.times)
    _, reach = _whole(sample.whole)
    mean = np.einsum("lf,fle->le", weights, curves[:, :, :inside])
    # By a curve with one outcome more that is the level above's: what never came among few is not impossible.
    size = sample.whole.size[:, None]
    alone = laws.sampling_variance((size * mean + above.curves[0][:, :inside]) / (size + 1), reach)
    total = np.zeros_like(alone)
    for number, family in enumerate(families):
        centre = curves[number][:, :inside]
        if family in laws.FIXED:
            total += weights[:, number, None] * (centre - mean) ** 2
            continue
        found = alone
        if family == "exponential_ratio":
            sd = np.sqrt(sample.ratio_variance)
            rates = [laws.rate_of_ratio(sample.ratio[0] + sign * sd, a, b) for sign in (1, -1)]
            ends = [laws.exponential(rate, a, b, segment.times) for rate in rates]
            found = ((ends[0] - ends[1]) / 2) ** 2
        elif family in laws.LAWS and taught.priors is not None:
            found = _law_variance(family, sample, centre, taught, segment, alone)
        own = _own_share(sample.whole.size, float(taught.kappa[number]))[:, None]
        found = own**2 * found + (1 - own) ** 2 * (taught.between + above.variance)
        total += weights[:, number, None] * (found + (centre - mean) ** 2)
    total[:, [0, -1]] = 0.0  # alpha is 0 and 1 there by definition
    return total


def _law_variance(
    family: str, sample: Sample, centre: Floats, taught: Taught, segment: Segment, alone: Floats
) -> Floats:
    assert taught.priors is not None
    events, reach = _whole(sample.whole)
    few = ~laws.has_own_law(reach)
    found = alone.copy()
    if few.any():
        posterior = laws.posterior_variance(
            family, events[few], reach[few], *segment.ends, segment.times, centre[few], taught.priors[0][family],
            taught.taught_by,
        )  # fmt: skip
        trust = taught.taught_by / (taught.taught_by + _TRUSTED)
        found[few] = trust * posterior + (1 - trust) * alone[few]
    return found


def estimate(
    families: Sequence[str], sample: Sample, above: Above, taught: Taught, segment: Segment, coarse: Ints
) -> Estimate:
    """``taught``: outcomes that the level above counts as, for each family, and what families are worth here."""
    kappa = taught.kappa
    shrunk = []
    priors = taught.priors or (None, None, None)
    for part, ratio, parent, prior in zip(sample.parts, sample.ratio, above.curves, priors, strict=True):
        fitted = family_curves(families, part, ratio, parent, kappa, segment, prior)
        shrunk.append(_blend(families, fitted, part, parent, kappa))
    scores = np.repeat(taught.scores[None, :], len(sample.whole.size), axis=0)
    for half, other in ((0, 1), (1, 0)):  # fitted on one half, scored on the other's matured outcomes
        held = _coarse_counts(sample.halves[other].mature, coarse)
        for number in range(len(families)):
            scores[:, number] += _TEMPER * _score(shrunk[1 + half][number][:, coarse], held)
    weights = _softmax(scores) if len(families) > 1 else np.ones((len(scores), 1))
    curves = tuple(np.einsum("lf,fle->le", weights, part) for part in shrunk)
    share = np.stack([_own_share(sample.whole.size, load) for load in kappa.tolist()], 1)
    reached = _coarse_ratio(sample, above, families, kappa)
    variance = variances(families, shrunk[0], weights, sample, above, taught, segment)
    return Estimate(curves, weights, (weights * share).sum(axis=1), reached, variance)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Taught:
    """What a level's groups teach about all of them: ``kappa`` [F], and ``scores`` [F], the log of the share of groups
    that follow each family; ``between`` [n + 1]: how far they lie from the level above; ``priors`` of the laws'
    parameters among them, from all outcomes and from each half, by ``taught_by`` groups."""

    kappa: Floats
    scores: Floats
    between: Floats
    priors: tuple[Priors, Priors, Priors] | None = None
    taught_by: int = 0


def teach(families: Sequence[str], sample: Sample, above: Above, segment: Segment, coarse: Ints) -> Taught:
    """The pseudo-count of each family under which curves of one half of the anchors, shrunk, say most of the other
    half's matured outcomes, and how much that is. A group counts as ``_CAP`` held-out outcomes at most: big groups, of
    which there may be few, need no help and would drown the small ones that do."""
    total = np.zeros((len(families), len(KAPPAS)))
    each = np.zeros((len(sample.whole.size), len(families), len(KAPPAS)), np.float32)
    plain = np.zeros(len(families))
    heard = 0.0
    priors = tuple(_priors(families, part, segment) for part in sample.parts)
    for half, other in ((0, 1), (1, 0)):
        part, parent = sample.halves[half], above.curves[1 + half]
        held = _coarse_counts(sample.halves[other].mature, coarse)
        capped = np.minimum(1.0, _CAP / np.maximum(held.sum(axis=1), 1e-9))
        heard += float((held.sum(axis=1) * capped).sum())
        curves = family_curves(families, part, sample.ratio[1 + half], parent, plain, segment, priors[1 + half])[
            :, :, coarse
        ]
        for place, kappa in enumerate(KAPPAS):
            own = _own_share(part.size, kappa)[:, None]
            for number in range(len(families)):
                mixed = own * curves[number] + (1 - own) * parent[:, coarse]
                score = _score(mixed, held)
                each[:, number, place] += score
                total[number, place] += (score * capped).sum()
    apart = between(sample, above)
    by = min(int((sample.whole.size > 0).sum()), _PRIOR_BY)
    if heard < ENOUGH:
        kappa = np.full(len(families), DEFAULT_KAPPA)
        return Taught(kappa, np.zeros(len(families)), apart, priors, by)  # type: ignore[arg-type]
    # A law's prior shrinks it already, and nothing of linear or log time was fitted: only a clear gain shrinks more.
    total[[family != "empirical" for family in families], 1:] -= _CLEAR * heard
    best = np.argmax(total, axis=1)
    best[[family in laws.FIXED for family in families]] = 0
    scores = each[:, np.arange(len(families)), best].astype(np.float64)
    return Taught(KAPPAS[best], np.log(_shares(scores)), apart, priors, by)  # type: ignore[arg-type]


def _shares(scores: Floats) -> Floats:
    """[F]: the share of groups that follow each family, by EM on the groups' log likelihoods [L, F]."""
    likelihood = np.exp(_TEMPER * (scores - scores.max(axis=1, keepdims=True)))
    shares = np.full(scores.shape[1], 1.0 / scores.shape[1])
    for _ in range(_EM):
        shares = shares * (likelihood / (likelihood @ shares)[:, None]).mean(axis=0)
    return (1 - _UNIFORM) * shares + _UNIFORM / len(shares)


def _priors(families: Sequence[str], part: Tally, segment: Segment) -> Priors:
    """From at most ``_PRIOR_BY`` of the groups that have outcomes."""
    a, b = segment.ends
    having = np.flatnonzero(part.size > 0)
    chosen = (
        having[np.unique(np.linspace(0, max(len(having) - 1, 0), _PRIOR_BY).astype(np.int64))]
        if len(having)
        else having
    )
    scale = (part.size[chosen] / np.maximum(part.events[chosen].sum(axis=1), 1e-300))[:, None]
    needed = [family for family in laws.FITTED if family in families]
    if "empirical" in families and len(segment.beyond) and "weibull" not in needed:
        needed.append("exponential")
    return {
        family: laws.learned_prior(family, part.events[chosen] * scale, part.reach[chosen] * scale, a, b, segment.times)
        for family in needed
    }


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
