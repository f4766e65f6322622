"""Delay laws between two windows: alpha(T) = (F(T) - F(a)) / (F(b) - F(a)), for many groups at once.

methods.md 5b.2. Every law is fitted by the likelihood of what is seen backwards in time: of the outcomes within
(a, e_k+1] among anchors for which bin k was observed whole, the share in bin k is (alpha_k+1 - alpha_k) / alpha_k+1.
The product of these binomials is the likelihood of delays truncated at each anchor's own age [Kalbfleisch and Lawless
1989], so the outcomes that have not come yet bias nothing, and neither does a conversion rate that changes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

from octavo.windows.grid import Floats

FIXED = ("linear", "log_time")
FITTED = ("exponential", "weibull", "lognormal")
FAMILIES = (*FIXED, "exponential_ratio", *FITTED, "empirical")
BY_REQUEST = "exponential_request"
_TINY = 1e-12
_REFINE_FROM, _STEPS = 30.0, 8  # outcomes from which a fit leaves its grid, and Fisher scoring's steps
_OWN_FROM = 400.0  # outcomes from which a group's law is its own
_EM, _UNIFORM = 40, 0.05
_CHUNK = 1 << 22  # numbers held at once while a law is refined


@dataclass(frozen=True)
class Law:
    """``alpha(theta [L, d], a, b, times [E]) -> [L, E]``; ``grid`` [M, d] where to look first; ``low``, ``high``."""

    alpha: Callable[[Floats, float, float, Floats], Floats]
    grid: Callable[[float, float], Floats]


def linear(a: float, b: float, times: Floats) -> Floats:
    """(T - a) / (b - a): outcomes come evenly."""
    return (times - a) / (b - a)


def log_time(a: float, b: float, times: Floats) -> Floats:
    """log(T / a) / log(b / a): outcomes come evenly in log time."""
    return np.log(times / a) / np.log(b / a)


def exponential(theta: Floats, a: float, b: float, times: Floats) -> Floats:
    """(e^-xa - e^-xT) / (e^-xa - e^-xb), rate x = theta / (b - a) of either sign; 0 is :func:`linear`."""
    x = theta[:, :1]
    share = linear(a, b, times)[None, :]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        falling = np.expm1(-x * share) / np.expm1(-x)
        # Negative rates by the mirror image: e^-x would overflow.
        rising = np.exp(x * (1 - share)) * np.expm1(x * share) / np.expm1(x)
    found = np.where(x >= 0, falling, rising)
    return np.where(np.abs(x) < 1e-9, share + 0.5 * x * share * (1 - share), found)


def weibull(theta: Floats, a: float, b: float, times: Floats) -> Floats:
    """F(t) = 1 - exp(-(t / s)^k), theta = (ln k, ln(s / b))."""
    k, s = np.exp(theta[:, :1]), np.exp(theta[:, 1:])
    with np.errstate(over="ignore", invalid="ignore", divide="ignore", under="ignore"):
        start, stop = (a / b / s) ** k, (1 / s) ** k
        steps = (times[None, :] / b / s) ** k - start
        found = np.expm1(-steps) / np.expm1(start - stop)
        # s >> b: both are their arguments; below the smallest float only a power of time is left.
        power = ((times[None, :] / b) ** k - (a / b) ** k) / (1 - (a / b) ** k)
    return np.where(stop - start < 1e-280, power, found)


def lognormal(theta: Floats, a: float, b: float, times: Floats) -> Floats:
    """F(t) = Phi(ln(t / m) / s), theta = (ln(m / b), ln s)."""
    m, s = theta[:, :1], np.exp(theta[:, 1:])
    start, stop = (np.log(a / b) - m) / s, -m / s
    at = (np.log(times[None, :] / b) - m) / s
    flip = start > 0  # the upper tail, where Phi is 1 to the last bit
    sign = np.where(flip, -1.0, 1.0)
    low, high, here = ndtr(sign * start), ndtr(sign * stop), ndtr(sign * at)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = (here - low) / (high - low)
    return np.where(np.abs(high - low) > 1e-290, found, linear(a, b, times)[None, :])


def _exponential_grid(a: float, b: float) -> Floats:
    return np.sinh(np.linspace(-np.arcsinh(30.0), np.arcsinh(700.0), 129))[:, None]


def _weibull_grid(a: float, b: float) -> Floats:
    return _mesh(np.linspace(np.log(0.1), np.log(6.0), 35), np.linspace(np.log(1e-3), np.log(1e3), 61))


def _lognormal_grid(a: float, b: float) -> Floats:
    return _mesh(np.linspace(np.log(a / b) - 4.0, 5.0, 45), np.linspace(np.log(0.3), np.log(5.0), 21))


LAWS = {
    "exponential": Law(exponential, _exponential_grid),
    "weibull": Law(weibull, _weibull_grid),
    "lognormal": Law(lognormal, _lognormal_grid),
}


def fixed_alpha(family: str, a: float, b: float, times: Floats) -> Floats:
    """[E]: the curve of a family without parameters."""
    return (linear if family == "linear" else log_time)(a, b, times)


def fit_law(family: str, events: Floats, reach: Floats, a: float, b: float, edges: Floats) -> Floats:
    """theta [L, d] of the largest likelihood for each of L groups.

    ``events``, ``reach`` [L, n]: outcomes in each of n bins between ``edges`` [n + 1] (a .. b), and those in (a, the
    bin's end] of the same anchors. A group without outcomes gets the grid's flattest point.
    """
    law = LAWS[family]
    grid, log_in, log_out = _on_grid(family, a, b, edges.tobytes())
    best = np.empty(len(events), np.int64)
    step = max(1, _CHUNK // len(grid))
    for begin in range(0, len(events), step):
        rows = slice(begin, begin + step)
        rest = reach[rows] - events[rows]
        best[rows] = np.argmax(events[rows] @ log_in.T + rest @ log_out.T, axis=1)
    theta = grid[best]
    many = np.flatnonzero(reach.max(axis=1, initial=0.0) >= _REFINE_FROM)
    step = max(1, _CHUNK // (4 * events.shape[1]))
    low, high = grid.min(axis=0), grid.max(axis=0)
    for begin in range(0, len(many), step):
        rows_ = many[begin : begin + step]
        theta[rows_] = _refined(law, theta[rows_], events[rows_], reach[rows_], a, b, edges, low, high)
    return theta


def posterior_curves(
    family: str, events: Floats, reach: Floats, a: float, b: float, edges: Floats, points: Floats, prior: Floats
) -> Floats:
    """alpha [L, E] at ``points``: the mean over the law's grid under ``prior`` [M] times each group's likelihood; of a
    group with many outcomes, which needs no prior and deserves better than a grid, the curve of the largest likelihood.
    """
    law = LAWS[family]
    grid, log_in, log_out = _on_grid(family, a, b, edges.tobytes())
    curves, log_prior = law.alpha(grid, a, b, points), np.log(np.maximum(prior, 1e-300))
    found = np.empty((len(events), len(points)))
    step = max(1, _CHUNK // len(grid))
    for begin in range(0, len(events), step):
        rows = slice(begin, begin + step)
        weight = events[rows] @ log_in.T + (reach[rows] - events[rows]) @ log_out.T + log_prior
        weight = np.exp(weight - weight.max(axis=1, keepdims=True))
        found[rows] = (weight @ curves) / weight.sum(axis=1, keepdims=True)
    many = has_own_law(reach)
    if many.any():
        found[many] = law.alpha(fit_law(family, events[many], reach[many], a, b, edges), a, b, points)
    return found


def has_own_law(reach: Floats) -> npt.NDArray[np.bool_]:
    """[L]: which groups have so many outcomes (``reach`` [L, n]) that no prior is needed."""
    found: npt.NDArray[np.bool_] = reach.max(axis=1, initial=0.0) >= _OWN_FROM
    return found


def posterior_variance(
    family: str, events: Floats, reach: Floats, a: float, b: float, edges: Floats, centre: Floats, prior: Floats,
    taught_by: int,
) -> Floats:  # fmt: skip
    """Mean square distance [L, n + 1] of alpha at ``edges`` from ``centre`` under the law's posterior.

    ``prior`` [M] was learned from ``taught_by`` groups, each of these among them: a group's own part of it is taken
    out, and the uniform counts as one group more [as the urn of Blackwell and MacQueen 1973], or a group would be
    certain of what it taught itself."""
    grid, log_in, log_out = _on_grid(family, a, b, edges.tobytes())
    curves = LAWS[family].alpha(grid, a, b, edges)
    squares, uniform = curves**2, 1.0 / len(grid)
    found = np.empty((len(events), len(edges)))
    step = max(1, _CHUNK // len(grid))
    for begin in range(0, len(events), step):
        rows = slice(begin, begin + step)
        likelihood = events[rows] @ log_in.T + (reach[rows] - events[rows]) @ log_out.T
        likelihood = np.exp(likelihood - likelihood.max(axis=1, keepdims=True))
        own = likelihood * prior
        own /= own.sum(axis=1, keepdims=True)
        weight = likelihood * (np.maximum(taught_by * prior - own, 0.0) + uniform)
        weight /= weight.sum(axis=1, keepdims=True)
        mean = weight @ curves
        found[rows] = weight @ squares - 2 * mean * centre[rows] + centre[rows] ** 2
    return np.maximum(found, 0.0)


def learned_prior(family: str, events: Floats, reach: Floats, a: float, b: float, edges: Floats) -> Floats:
    """[M] over the law's grid: how often each parameter occurs among L groups, by nonparametric maximum likelihood
    [Laird 1978] in ``_EM`` steps of EM, with a little of the uniform left everywhere."""
    grid, log_in, log_out = _on_grid(family, a, b, edges.tobytes())
    likelihood = events @ log_in.T + (reach - events) @ log_out.T
    likelihood = np.exp(likelihood - likelihood.max(axis=1, keepdims=True))
    prior = np.full(len(grid), 1.0 / len(grid))
    if not len(events):
        return prior
    for _ in range(_EM):
        prior = prior * (likelihood / (likelihood @ prior)[:, None]).mean(axis=0)
    return (1 - _UNIFORM) * prior + _UNIFORM / len(grid)


@functools.lru_cache(maxsize=16)
def _on_grid(family: str, a: float, b: float, edges: bytes) -> tuple[Floats, Floats, Floats]:
    """The law's grid [M, d], and ln of the shares that its points give each bin between ``edges``."""
    grid = LAWS[family].grid(a, b)
    return grid, *_log_shares(LAWS[family].alpha(grid, a, b, np.frombuffer(edges)))


def _log_shares(curves: Floats) -> tuple[Floats, Floats]:
    """ln of the share of a bin among all up to its end, and of the rest, [M, n]."""
    end, inside = curves[:, 1:], np.diff(curves, axis=1)
    share = np.clip(inside / np.maximum(end, 1e-300), _TINY, 1.0)
    rest = np.clip(curves[:, :-1] / np.maximum(end, 1e-300), _TINY, 1.0)
    return np.log(share), np.log(rest)


def _refined(
    law: Law, theta: Floats, events: Floats, reach: Floats, a: float, b: float, edges: Floats, low: Floats, high: Floats
) -> Floats:
    """Fisher scoring of the binomials from the grid's best point; a step that loses likelihood is halved."""

    def likelihood(at: Floats) -> tuple[Floats, Floats]:
        log_in, log_out = _log_shares(law.alpha(at, a, b, edges))
        return (events * log_in + (reach - events) * log_out).sum(axis=1), np.exp(log_in)

    size = theta.shape[1]
    value, share = likelihood(theta)
    scale = np.ones(len(theta))
    for _ in range(_STEPS):
        slopes = []
        for d in range(size):
            h = 1e-4 * np.maximum(1.0, np.abs(theta[:, d]))
            ahead, behind = theta.copy(), theta.copy()
            ahead[:, d] += h
            behind[:, d] -= h
            both = [np.exp(_log_shares(law.alpha(x, a, b, edges))[0]) for x in (ahead, behind)]
            slopes.append((both[0] - both[1]) / (2 * h[:, None]))
        slope = np.stack(slopes, 2)  # [L, n, d]
        inside = np.clip(share, 1e-9, 1 - 1e-9)
        weight = reach / (inside * (1 - inside))
        residual = (events - reach * share) / (inside * (1 - inside))
        information = np.einsum("lnd,ln,lne->lde", slope, weight, slope)
        score = np.einsum("lnd,ln->ld", slope, residual)
        ridge = 1e-9 * np.trace(information, axis1=1, axis2=2) + 1e-12
        information += ridge[:, None, None] * np.eye(size)
        step = np.linalg.solve(information, score[:, :, None])[:, :, 0]
        proposed = np.clip(theta + scale[:, None] * step, low, high)
        found, shares = likelihood(proposed)
        better = found >= value
        theta = np.where(better[:, None], proposed, theta)
        share = np.where(better[:, None], shares, share)
        value = np.where(better, found, value)
        scale = np.where(better, np.minimum(1.0, 2 * scale), scale / 4)
    return theta


def rate_of_ratio(ratio: Floats, a: float, b: float) -> Floats:
    """theta [L, 1] for :func:`exponential` between a and b with F(a) / F(b) = ``ratio`` [L]: the paper's closed form
    solves (1 - e^-xa) / (1 - e^-xb) = R. A ratio of a / b is rate 0, below it the rate is negative."""
    theta = RATIO_RATES
    share = a / b
    whole = theta / (1 - share)  # rate * b
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        falling = np.expm1(-whole * share) / np.expm1(-whole)
        rising = np.exp(whole * (1 - share)) * np.expm1(whole * share) / np.expm1(whole)
    found = np.where(whole > 0, falling, np.where(whole < 0, rising, share))
    with np.errstate(divide="ignore"):
        known, wanted = (
            np.log(x / (1 - x)) for x in (np.clip(found, 1e-15, 1 - 1e-15), np.clip(ratio, 1e-15, 1 - 1e-15))
        )
    return np.interp(wanted, known, theta)[:, None]


RATIO_RATES = np.sinh(np.linspace(-np.arcsinh(30.0), np.arcsinh(700.0), 40_001))


def request_alpha(ratio: Floats, a: float, b: float, window: float) -> Floats:
    """alpha(window) [n] of each request from its own R(x) = p_short / p_long [n] (methods.md 5b.2c ii)."""
    place = np.array([window])
    found: Floats = exponential(rate_of_ratio(ratio, a, b), a, b, place)[:, 0]
    return found


def empirical(events: Floats, reach: Floats, prior: Floats, count: Floats | float) -> Floats:
    """alpha [L, n + 1] by the product-limit estimator backwards in time, with ``count`` outcomes more that follow the
    curve ``prior`` [L or 1, n + 1] and were all observed. Without censoring: (n F_n + count prior) / (n + count).

    Bins of which nothing is known (no outcome of anchors so old) keep the prior's share."""
    load = np.asarray(count, np.float64)
    load = load[:, None] if load.ndim else load
    came, total = events + load * np.diff(prior, axis=1), reach + load * prior[:, 1:]
    end = np.maximum(prior[:, 1:], 1e-300)
    unknown = np.where(prior[:, 1:] > 0, np.diff(prior, axis=1) / end, 1.0)
    share = np.where(total > 0, came / np.where(total > 0, total, 1.0), unknown)
    stay = np.clip(1.0 - share, 0.0, 1.0)
    stay[:, 0] = np.where(total[:, 0] > 0, 0.0, stay[:, 0])
    found = np.ones((len(events), events.shape[1] + 1))
    found[:, :-1] = np.cumprod(stay[:, ::-1], axis=1)[:, ::-1]
    found[:, 0] = 0.0
    return found


def kaplan_meier(events: Floats, risk: Floats) -> Floats:
    """F [L, K + 1] from outcomes and anchors at risk by bin [Kaplan and Meier 1958]."""
    hazard = np.where(risk > 0, events / np.where(risk > 0, risk, 1.0), 0.0)
    found = np.zeros((len(events), events.shape[1] + 1))
    found[:, 1:] = 1.0 - np.cumprod(1.0 - np.clip(hazard, 0.0, 1.0), axis=1)
    return found


def sampling_variance(curve: Floats, reach: Floats) -> Floats:
    """Variance [L, n + 1] of the product-limit estimate of ``curve`` [L, n + 1] from ``reach`` [L, n] outcomes up to
    each bin's end (less than one counts as one): Greenwood's before its approximation of products by sums."""
    end = curve[:, 1:]
    stay = np.divide(curve[:, :-1], end, out=np.zeros_like(end), where=end > 0)
    found = np.zeros_like(curve)
    found[:, :-1] = _product_variance(stay[:, ::-1], reach[:, ::-1])[:, ::-1]
    return found


def ratio_variance(events: Floats, reach: Floats, share: float) -> Floats:
    """Variance [L] of F(a) / F(b), the product over the bins between, likewise, one outcome more at the even rate of
    F(a) / F(b) = ``share`` among those it is computed with."""
    even = np.linspace(share, 1.0, events.shape[1] + 1)
    stay = 1 - (events + np.diff(even)) / (reach + even[1:])
    found: Floats = _product_variance(stay[:, ::-1], reach[:, ::-1])[:, -1]
    return found


def _product_variance(stay: Floats, count: Floats) -> Floats:
    """Variance [L, n] of the running products of independent shares with mean ``stay`` among ``count``."""
    stay = np.clip(stay, 0.0, 1.0)
    squares = stay**2 + stay * (1 - stay) / np.maximum(count, 1.0)
    return np.maximum(np.cumprod(squares, axis=1) - np.cumprod(stay, axis=1) ** 2, 0.0)


def _mesh(*axes: Floats) -> Floats:
    return np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")], 1)
