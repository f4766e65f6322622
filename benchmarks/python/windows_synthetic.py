"""Personalized Interpolation where the truth is known: AdsWorld ``delay``, its five delay laws, groups of 10 to 100,000
conversions. Each group is an advertiser of the world with its law and speed; p for 1 and 7 days are exact, so the error
is the interpolation's alone: |p(T) / P(T) - 1|, mean over T of 2, 3 and 5 days, per group.

All groups are fitted together, as in use; the last days' conversions have not all come. Every family runs with learned
shrinkage; ``own`` and ``pooled`` are ``auto`` without shrinkage and with nothing else, ``own ecdf`` and ``pooled ecdf``
the same of ``empirical``: a group's own share of delays, and everybody's (methods.md 5e (3)).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import harness
import numpy as np
from harness import Interval

from octavo.data import AdsWorld
from octavo.windows import FAMILIES, PersonalizedInterpolator

DAY_S, DAY_MS = 86_400.0, 86_400_000
DAYS, TARGETS = 60, (2, 3, 5)
# size -> groups of each law and world
GROUPS = {10: 40, 30: 40, 100: 40, 300: 20, 1_000: 10, 10_000: 4, 100_000: 1}
WORLDS = {"smoke": 1, "quick": 4, "full": 16}
LAWS = ("exponential", "weibull .4", "weibull 1.5", "lognormal", "mixture")
METHODS: dict[str, Mapping[str, Any]] = {
    **{family: {"family": family} for family in FAMILIES},
    "auto": {"family": "auto"},
    "own": {"family": "auto", "shrink": 0.0},
    "pooled": {"family": "auto", "shrink": np.inf},
    "own ecdf": {"family": "empirical", "shrink": 0.0},
    "pooled ecdf": {"family": "empirical", "shrink": np.inf},
}
RESAMPLES = 2000


def draw(world: AdsWorld, sizes: Mapping[int, int], seed: int) -> tuple[dict[str, Any], np.ndarray, np.ndarray, Any]:
    """Conversions as known at the end; law [groups]; size [groups]; F(seconds) -> [groups]."""
    rng = np.random.default_rng(seed)
    kinds, sizes_, advertisers = [], [], []
    for law in range(len(LAWS)):
        having = np.flatnonzero(world.truth.law == law)
        for size, count in sizes.items():
            advertisers.append(rng.choice(having, count, replace=count > len(having)))
            kinds += [law] * count
            sizes_ += [size] * count
    advertiser, size = np.concatenate(advertisers), np.array(sizes_)
    group = np.repeat(np.arange(len(size)), size)
    anchor = rng.integers(0, DAYS * DAY_MS, len(group))
    delay = world.truth.delay_quantile(advertiser[group], rng.random(len(group)))
    end = anchor + np.floor(delay * 1000)
    data = {"group": group, "anchor": anchor, "converted": np.where(end <= DAYS * DAY_MS, end, np.nan)}
    return data, np.array(kinds), size, lambda seconds: world.truth.delay_cdf(advertiser, seconds)


def errors(data: dict[str, Any], cdf: Any, groups: int, method: Mapping[str, Any]) -> np.ndarray:
    """[groups] in %."""
    pi = PersonalizedInterpolator(("1d", "7d"), ["group"], half_life=None, **method)
    pi.fit(data, DAYS * DAY_MS)
    short, long = cdf(DAY_S), cdf(7 * DAY_S)
    found = pi.predict(short, long, np.arange(groups), window=[f"{days}d" for days in TARGETS])
    exact = np.stack([cdf(days * DAY_S) for days in TARGETS], 1)
    return 100 * np.abs(found / exact - 1).mean(axis=1)


def body(run: harness.Run) -> None:
    """Every method on every world; a table by law and by size; the three gates."""
    sizes = {10: 4, 100: 4, 1_000: 2} if run.is_smoke else GROUPS
    found: dict[str, list[np.ndarray]] = {name: [] for name in METHODS}
    laws, counts = [], []
    for seed in range(WORLDS[run.effort.name]):
        data, law, size, cdf = draw(AdsWorld("delay", seed), sizes, seed)
        for name, method in METHODS.items():
            found[name].append(errors(data, cdf, len(size), method))
        laws.append(law)
        counts.append(size)
    law, size = np.concatenate(laws), np.concatenate(counts)
    error = {name: np.concatenate(parts) for name, parts in found.items()}
    cells = law * 100 + np.searchsorted(sorted(sizes), size)  # a law's groups of one size
    rng = np.random.default_rng(0)
    for name, values in error.items():
        for number, kind in enumerate(LAWS):
            inside = law == number
            by_size = {f"{s}": round(float(values[inside & (size == s)].mean()), 3) for s in sizes}
            figure = _mean(values, cells, inside, rng)
            run.row("windows_synthetic", {"law": kind}, name, figure, {"by_size": by_size})
    everything = np.ones(len(size), bool)
    singles = {name: float(np.mean(_cell_means(error[name], cells))) for name in FAMILIES}
    best = min(singles, key=lambda name: singles[name])
    gap = _mean(error["auto"] - error[best], cells, everything, rng)
    run.measured("windows_auto_vs_best_family", gap, 0.0, at_most=True, best=best, singles=singles)
    small = size <= 100
    for suffix, shrunk, own, pooled in (
        ("", "auto", "own", "pooled"),
        ("_ecdf", "empirical", "own ecdf", "pooled ecdf"),
    ):
        gap = _mean(error[own] - error[pooled], cells, size >= 1_000, rng)
        run.measured(f"windows{suffix}_own_vs_pooled_from_1000", gap, 0.0, at_most=True)
        means = {name: float(np.mean(_cell_means(error[name][small], cells[small]))) for name in (own, pooled)}
        other = min(means, key=means.__getitem__)
        gap = _mean(error[shrunk] - error[other], cells, small, rng)
        run.measured(
            f"windows{suffix}_shrunk_vs_own_and_pooled_to_100", gap, 0.0, at_most=True, other=other, means=means
        )


def _cell_means(values: np.ndarray, cells: np.ndarray) -> np.ndarray:
    _, number = np.unique(cells, return_inverse=True)
    return np.bincount(number, values) / np.bincount(number)


def _mean(values: np.ndarray, cells: np.ndarray, inside: np.ndarray, rng: np.random.Generator) -> Interval:
    """Mean over laws and sizes (each counts alike) of the groups' mean; groups are resampled within each."""
    values, cells = values[inside], cells[inside]
    order = np.argsort(cells, kind="stable")
    parts = np.split(values[order], np.flatnonzero(np.diff(cells[order])) + 1)
    drawn = np.zeros(RESAMPLES)
    for part in parts:
        drawn += part[rng.integers(0, len(part), (RESAMPLES, len(part)))].mean(axis=1)
    low, high = np.quantile(drawn / len(parts), [0.025, 0.975])
    return Interval(float(np.mean([part.mean() for part in parts])), float(low), float(high))


if __name__ == "__main__":
    harness.main("windows_synthetic", body)
