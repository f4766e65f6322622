"""Intervals of alpha: as often right as they say, for groups of any size, and no wider than they need to be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats
from windows_support import DAY, LAWS, drawn, true_alpha

pytest.importorskip("pyarrow")

from octavo.windows import PersonalizedInterpolator, laws
from octavo.windows.grid import Floats


def shown(sizes: list[int], means: Floats, seed: int, **settings: Any) -> tuple[Floats, Floats, Floats]:
    """(low, high, truth) [windows of 2, 3, 5 days, groups] of groups of ``sizes`` with exponential delays."""
    every = [stats.expon(scale=mean) for mean in means]
    data = drawn(every, sizes, 40, seed=seed, until=48)
    pi = PersonalizedInterpolator(group=["advertiser"], half_life=None, **settings).fit(data, 48 * DAY)
    found = []
    for days in (2.0, 3.0, 5.0):
        table = pi.diagnose(f"{days:g}d").slice(1).to_pydict()
        exact = [true_alpha(every[g], days) for g in table["advertiser"]]
        found.append((table["low"], table["high"], exact))
    return tuple(np.array(found).transpose(1, 0, 2))  # type: ignore[return-value]


@pytest.mark.parametrize("family", ["empirical", "exponential", "auto"])
@pytest.mark.parametrize("size", [10, 30, 100])
def test_groups_that_differ_are_within_their_intervals(family: str, size: int) -> None:
    """Mean delays spread by 30% around 2.7 days. Greenwood's error of a group alone, times its own share, held 0.2 to
    0.4 of them."""
    held, width, alone = [], [], []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        means = np.exp(rng.normal(1.0, 0.3, 150))
        low, high, exact = shown([size] * 150, means, seed, family=family)
        held.append(np.mean((low <= exact) & (exact <= high)))
        width.append(np.mean(high - low))
        low, high, _ = shown([size] * 150, means, seed, family="empirical", shrink=0.0)
        alone.append(np.mean(high - low))
    assert np.mean(held) >= 0.92
    assert min(held) >= 0.87
    assert np.mean(width) <= (0.6 if size < 100 else 1.0) * np.mean(alone)


@pytest.mark.parametrize(("size", "least"), [(10, 0.75), (60, 0.9), (400, 0.9)])
def test_groups_alone_are_within_theirs_without_help(size: int, least: float) -> None:
    """Of ten outcomes about four lie between the windows."""
    low, high, exact = shown([size] * 150, np.full(150, 3.0), 12, family="empirical", shrink=0.0)
    held = np.mean((low <= exact) & (exact <= high))
    assert least <= held <= 0.99


def test_pooling_that_was_asked_for_says_how_far_groups_differ() -> None:
    means = np.exp(np.random.default_rng(5).normal(1.0, 0.6, 200))
    low, high, exact = shown([200] * 200, means, 5, family="empirical", shrink=np.inf)
    assert np.mean((low <= exact) & (exact <= high)) >= 0.9


def test_few_groups_of_few_outcomes_are_not_certain_of_each_other() -> None:
    held = []
    for seed in range(12):
        means = np.exp(np.random.default_rng(seed).normal(1.0, 0.4, 4))
        low, high, exact = shown([40] * 4, means, seed, family="exponential")
        held.append(np.mean((low <= exact) & (exact <= high)))
    assert np.mean(held) >= 0.88


def test_a_young_tail_widens_it() -> None:
    law = LAWS["exponential mean 3"]
    data = drawn([law], [3_000], 40, until=40)
    widths = []
    for end in (10, 40):  # days of anchors
        kept = data["anchor"] <= end * DAY
        part = {name: values[kept] for name, values in data.items()}
        part["converted"] = np.where(part["converted"] <= end * DAY, part["converted"], np.nan)
        table = PersonalizedInterpolator(family="empirical", half_life=None).fit(part, end * DAY).diagnose("3d")
        row = {name: column[0] for name, column in table.to_pydict().items()}
        assert row["low"] <= true_alpha(law, 3.0) <= row["high"]
        widths.append((row["high"] - row["low"]) * np.sqrt(row["conversions"]))
    assert widths[0] > 1.1 * widths[1]  # of as many outcomes, those of young anchors say less of the late bins


def test_ends_of_what_is_known_by_definition_and_of_what_nobody_knows() -> None:
    data = drawn([LAWS["exponential mean 1"]], [30], 40, until=60)
    more = {"advertiser": [1], "anchor": [0], "converted": [2.5 * DAY]}
    data = {name: np.concatenate([values, more[name]]) for name, values in data.items()}
    data["advertiser"] = data["advertiser"].astype(int)
    pi = PersonalizedInterpolator(group=["advertiser"], family="empirical", shrink=0.0, half_life=None)
    pi.fit(data, 60 * DAY)
    own = pi.diagnose("7d").to_pydict()
    assert own["low"] == own["high"] == own["alpha"] == [1.0] * 3
    assert pi.diagnose("10d")["low"].null_count == pi.diagnose("10d")["high"].null_count == 3
    one = pi.diagnose("3d").to_pydict()  # all of its outcomes came by then: one
    assert one["alpha"][2] == 1.0
    assert one["low"][2] < 0.3


def test_variances_are_those_of_draws() -> None:
    """Binomials in three bins; a ratio of the first to all."""
    rng = np.random.default_rng(0)
    curve, count = np.array([[0.0, 0.3, 0.55, 1.0]]), 50
    draws = rng.multinomial(count, np.diff(curve[0]), 40_000)
    shares = np.cumsum(draws, axis=1) / count
    reach = count * curve[:, 1:]
    found = laws.sampling_variance(curve, reach)
    np.testing.assert_allclose(found[0, 1:3], shares[:, :2].var(axis=0), rtol=0.1)
    assert found[0, 0] == found[0, 3] == 0.0
    ratio = laws.ratio_variance(count * np.diff(curve)[:, 1:], count * curve[:, 2:], 0.3)
    np.testing.assert_allclose(ratio, shares[:, 0].var(), rtol=0.15)
