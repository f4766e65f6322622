"""Fitting: censoring, groups and what is above them, the choice of a family, streams and workers, drift."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from scipy import stats
from windows_support import DAY, HOUR, LAWS, drawn, true_alpha

pytest.importorskip("pyarrow")

from octavo.windows import FAMILIES, PersonalizedInterpolator

ALL = list(LAWS.values())


def fitted(data: dict[str, Any], until: float, **settings: Any) -> PersonalizedInterpolator:
    options = {"group": ["advertiser"], "half_life": None, **settings}
    return PersonalizedInterpolator(("1d", "7d"), **options).fit(data, int(until * DAY))


def test_each_law_is_found_by_its_own_family_and_by_auto() -> None:
    data = drawn(ALL, [20_000] * 5, 40, until=60)
    right = {"exponential": (0, 1), "weibull": (0, 1, 2, 3), "lognormal": (4,), "empirical": range(5), "auto": range(5)}
    for family, groups in right.items():
        pi = fitted(data, 60, family=family)
        for g, window in itertools.product(groups, ("2d", "3d", "5d")):
            exact = true_alpha(ALL[g], float(window[0]))
            assert pi.alpha([g], window)[0] == pytest.approx(exact, abs=0.015), (family, g, window)


def test_exponential_delays_come_out_to_a_thousandth() -> None:
    """methods.md 5e (1): by quantiles in place of draws, so that nothing but the method is off."""
    law, count = LAWS["exponential mean 3"], 400_000
    delay = law.ppf((np.arange(count) + 0.5) / count)
    data = {"anchor": np.zeros(count), "converted": np.round(delay * DAY)}
    for family in ("exponential", "exponential_ratio"):
        pi = PersonalizedInterpolator(family=family, half_life=None).fit(data, 100 * DAY)
        for window in (2, 3, 5):
            found = law.cdf(1) + pi.alpha([0], f"{window}d")[0] * (law.cdf(7) - law.cdf(1))
            assert found == pytest.approx(law.cdf(window), rel=1e-3), (family, window)


@pytest.mark.parametrize("family", ["exponential", "empirical", "weibull", "auto"])
def test_a_young_tail_biases_the_naive_share_and_not_the_fit(family: str) -> None:
    """methods.md 5e (4): everything is younger than 14 days, half of it than 7."""
    law = LAWS["exponential mean 3"]
    data = drawn([law], [60_000], 14, seed=4)
    delay = (data["converted"] - data["anchor"]) / DAY
    naive = np.mean(delay[delay <= 7] <= 3)
    inside = delay[(delay > 1) & (delay <= 7)]
    exact = true_alpha(law, 3.0)
    assert np.mean(inside <= 3) > exact + 0.02  # too short
    assert naive > law.cdf(3) / law.cdf(7) + 0.01
    pi = fitted(data, 14, family=family)
    row = pi.diagnose("3d").slice(0, 1).to_pydict()
    assert pi.alpha([0], "3d")[0] == pytest.approx(exact, abs=0.012)
    if family == "empirical":
        assert row["low"][0] < exact < row["high"][0]


def test_a_rising_conversion_rate_biases_kaplan_and_meier_and_not_the_fit() -> None:
    """Ten times the rate in the last 7 days: early hazards are of other anchors than late ones."""
    law = LAWS["exponential mean 3"]
    old, new = drawn([law], [4_000], 14, 1, 100, others=9.0), drawn([law], [20_000], 7, 2, 100)
    data = {name: np.concatenate([old[name], new[name] + (14 * DAY if name != "advertiser" else 0)]) for name in old}
    data["converted"] = np.where(data["converted"] <= 21 * DAY, data["converted"], np.nan)
    pi = fitted(data, 21, family="empirical")
    exact = true_alpha(law, 3.0)
    reached = [pi.kaplan_meier(window)[0] for window in ("1d", "3d", "7d")]
    forwards = (reached[1] - reached[0]) / (reached[2] - reached[0])
    assert abs(forwards - exact) > 0.03
    assert pi.alpha([0], "3d")[0] == pytest.approx(exact, abs=0.015)


def test_kaplan_meier_is_lifelines_and_the_truth() -> None:
    law = LAWS["weibull .5, 5"]
    data = drawn([law, law], [6_000, 6_000], 20, 5, others=1.0)
    pi = fitted(data, 20)
    for window in (1, 3, 7):
        assert pi.kaplan_meier(f"{window}d")[0] == pytest.approx(0.5 * law.cdf(window), abs=0.015)
    lifelines = pytest.importorskip("lifelines", reason="lifelines (the bench extra) is not installed")
    until = 20 * DAY
    came = ~np.isnan(data["converted"])
    waited = np.where(came, data["converted"], until) - data["anchor"]
    exact = lifelines.KaplanMeierFitter().fit(waited / DAY, came).predict(3.0)
    assert pi.kaplan_meier("3d")[0] == pytest.approx(1 - exact, abs=0.004)  # anchors' times are kept to 6 hours


def test_small_groups_are_helped_and_big_ones_are_left_alone() -> None:
    """Error of alpha(3d): shrunk <= own and pooled for groups of 20, as good as own for groups of 20,000."""
    rng = np.random.default_rng(8)
    laws = [stats.expon(scale=s) for s in np.exp(rng.normal(1.0, 0.3, 200))]
    small = drawn(laws, [20] * 200, 40, until=60, seed=9)
    exact = np.array([true_alpha(law, 3.0) for law in laws])

    def error(data: dict[str, Any], groups: int, shrink: Any) -> float:
        found = fitted(data, 60, family="empirical", shrink=shrink).alpha(np.arange(groups), "3d")
        return float(np.abs(found - exact[:groups]).mean())

    auto, own, pooled = (error(small, 200, shrink) for shrink in ("auto", 0.0, np.inf))
    assert auto < 0.75 * own
    assert auto < pooled
    assert auto <= min(error(small, 200, kappa) for kappa in (3.0, 30.0, 300.0)) * 1.1
    big = drawn(laws[:5], [20_000] * 5, 40, until=60, seed=10)
    auto, own, pooled = (error(big, 5, shrink) for shrink in ("auto", 0.0, np.inf))
    assert auto <= own * 1.1 + 1e-3
    assert auto < 0.3 * pooled


def test_a_group_never_seen_has_its_verticals_law_or_that_of_all() -> None:
    fast, slow = stats.expon(scale=1.0), stats.expon(scale=10.0)
    data = drawn([fast, fast, slow, slow], [4_000] * 4, 40, until=80, seed=3)
    data["vertical"] = np.array(["games", "games", "cars", "cars"])[data["advertiser"]]
    pi = fitted(data, 80, vertical=["vertical"])
    keys = {"vertical": ["games", "cars", "food", "games"], "advertiser": [77, 77, 0, 0]}
    found = pi.alpha(keys, "3d")
    assert found[0] == pytest.approx(true_alpha(fast, 3.0), abs=0.02)
    assert found[1] == pytest.approx(true_alpha(slow, 3.0), abs=0.02)
    whole = pi.diagnose("3d").to_pydict()
    assert found[2] == pytest.approx(whole["alpha"][0], abs=1e-6)
    assert found[3] == pytest.approx(true_alpha(fast, 3.0), abs=0.02)
    assert whole["level"] == ["all", "vertical", "vertical", "group", "group", "group", "group"]
    assert pi.counts == {"groups never seen": 3, **{k: v for k, v in pi.counts.items() if "after" in k}}


@pytest.mark.parametrize("half_life", [None, "14d"])
def test_parts_of_a_stream_on_any_worker_are_the_whole(half_life: str | None) -> None:
    data = drawn(ALL, [900, 50, 400, 1, 30], 40, seed=6, until=50, others=0.5)
    data["name"] = np.array([f"a{g}" for g in data["advertiser"]])
    settings: dict[str, Any] = {"group": ["advertiser", "name"], "half_life": half_life}
    whole = PersonalizedInterpolator(**settings).fit(data, 50 * DAY)
    rng = np.random.default_rng(1)
    worker = rng.integers(0, 3, len(data["anchor"]))
    merged = PersonalizedInterpolator(**settings)
    for number in (2, 0, 1):
        part = PersonalizedInterpolator(**settings)
        rows = np.flatnonzero(worker == number)
        for piece in np.array_split(rng.permutation(rows), 3):
            part.partial_fit({name: values[piece] for name, values in data.items()}, 51 * DAY + 1)
        merged.merge(part)
    merged.partial_fit({name: values[:0] for name, values in data.items()}, 50 * DAY)
    assert merged.observed_until == 51 * DAY + 1
    whole.partial_fit({name: values[:0] for name, values in data.items()}, 51 * DAY + 1)
    keys = {"advertiser": np.arange(5), "name": [f"a{g}" for g in range(5)]}
    for window in ("6h", "2d", "3d", "7d"):
        np.testing.assert_allclose(merged.alpha(keys, window), whole.alpha(keys, window), rtol=0, atol=1e-6)
    assert np.array_equal(np.sort(merged._outcomes.count), np.sort(whole._outcomes.count))
    assert merged._outcomes.count.sum() == (~np.isnan(data["converted"])).sum() - merged.counts.get(
        "conversions after the longest window", 0
    )


def test_late_outcomes_of_anchors_given_without_one_count_once() -> None:
    """A day's anchors as they stood on the next, and their outcomes as they came: as all at once, in any order."""
    data = drawn(ALL[:1], [3_000], 20, seed=2, until=40, others=1.0)
    until = 40 * DAY
    whole = PersonalizedInterpolator(half_life=None).fit(data, until)
    early = data["converted"] - data["anchor"] <= DAY
    late = ~early & ~np.isnan(data["converted"])
    first = {**data, "converted": np.where(early, data["converted"], np.nan)}
    second = {name: values[late] for name, values in data.items()}
    for order in ((False, True), (True, False)):
        pi = PersonalizedInterpolator(half_life=None)
        for is_late in order:
            pi.partial_fit(second if is_late else first, until, late=is_late)
        for window in ("1d", "3d", "7d"):
            assert pi.kaplan_meier(window)[0] == pytest.approx(whole.kaplan_meier(window)[0], rel=1e-12)
            assert pi.alpha([0], window)[0] == whole.alpha([0], window)[0]
    twice = PersonalizedInterpolator(half_life=None).partial_fit(first, until).partial_fit(second, until)
    assert twice.kaplan_meier("7d")[0] < 0.85 * whole.kaplan_meier("7d")[0]  # what late is there for
    alone = PersonalizedInterpolator(half_life=None).partial_fit(second, until, late=True)
    missing = alone._outcomes.count.sum()
    with pytest.raises(ValueError, match=f"{missing} late outcomes are of anchors that were never given"):
        alone.kaplan_meier("7d")
    with pytest.raises(ValueError, match="conversions: row 1 has no outcome; with late all rows have one"):
        alone.partial_fit({"anchor": [0, 0], "converted": [DAY, np.nan]}, until, late=True)


def test_merging_needs_the_same_settings() -> None:
    one, other = PersonalizedInterpolator(("1d", "7d")), PersonalizedInterpolator(("1d", "14d"))
    with pytest.raises(ValueError, match=r"merge: windows is \['1d', '14d'\], expected \['1d', '7d'\]"):
        one.merge(other)


def test_merging_needs_the_same_end() -> None:
    data = drawn(ALL[:2], [300, 300], 40, seed=2, until=50)
    parts = [PersonalizedInterpolator(group=["advertiser"]).fit(data, day * DAY) for day in (50, 60)]
    with pytest.raises(ValueError, match="merge: it was observed until .* give both the same observed_until"):
        parts[0].merge(parts[1])


def test_groups_never_seen_have_the_pooled_product_limit() -> None:
    pi = PersonalizedInterpolator(group=["advertiser"]).fit(drawn(ALL[:2], [300, 900], 40, seed=2, until=50), 50 * DAY)
    found = pi.kaplan_meier("3d", {"advertiser": [0, 1, 99]})
    assert found[2] == pi.kaplan_meier("3d")[0]
    assert found[0] != found[1] != found[2]


def test_a_request_beyond_its_windows_rises_no_faster_than_between_them() -> None:
    data = drawn(ALL[:1], [2000], 40, seed=2, until=50)
    pi = PersonalizedInterpolator(family="exponential_request").fit(data, 50 * DAY)
    with pytest.warns(UserWarning, match="extrapolated"):
        found = pi.predict(np.array([0.0, 0.02]), np.array([0.1, 0.1]), window="10d")
    assert found[0] == pytest.approx(0.15)  # 0.1 in six days, three more
    assert 0.1 < found[1] <= 0.02 + 0.08 * 1.5


def test_a_half_life_follows_a_law_that_changes_and_the_alarm_fires() -> None:
    """methods.md 5e (5): mean 1 day until day 60, 8 days after; looked at on day 90."""
    before, after = stats.expon(scale=1.0), stats.expon(scale=8.0)
    steady = drawn([stats.expon(scale=2.0)] * 2, [20_000] * 2, 90, seed=2, until=90)
    old, new = drawn([before], [20_000], 60, 3, 1e6), drawn([after], [20_000], 30, 4, 1e6)
    changed = {"advertiser": np.full(40_000, 2)}
    for name in ("anchor", "converted"):
        changed[name] = np.concatenate([old[name], new[name] + 60 * DAY])
    changed["converted"] = np.where(changed["converted"] <= 90 * DAY, changed["converted"], np.nan)
    data = {name: np.concatenate([steady[name], changed[name]]) for name in steady}
    alphas = {
        half_life: fitted(data, 90, half_life=half_life, family="empirical").alpha([2], "3d")[0]
        for half_life in (None, "14d", "5d")
    }
    distance = {key: abs(value - true_alpha(after, 3.0)) for key, value in alphas.items()}
    assert distance["5d"] < distance["14d"] < distance[None]
    assert distance["5d"] < 0.03
    found = fitted(data, 90, half_life="14d").diagnose("3d").to_pydict()
    drift = dict(zip(found["advertiser"], found["drift"], strict=True))
    assert drift[2]
    assert not drift[0]
    assert not drift[1]


def test_diagnose_flags_the_wrong_family() -> None:
    data = drawn([LAWS["weibull 1.5, 3"], LAWS["exponential mean 3"]], [30_000] * 2, 40, until=60)
    for family, expected in (("exponential_ratio", [True, False]), ("auto", [False, False])):
        found = fitted(data, 60, family=family, shrink=0.0).diagnose("3d")
        flags = dict(zip(found["advertiser"].to_pylist(), found["misfit"].to_pylist(), strict=True))
        assert [flags[0], flags[1]] == expected, family
    assert found["family"].to_pylist()[1] in FAMILIES
    assert all(0 <= share <= 1 for share in found["own"].to_pylist())


@pytest.mark.parametrize("family", [*FAMILIES, "auto"])
def test_groups_of_one_of_none_and_all_alike(family: str) -> None:
    """A group with one outcome, one with none between the windows, one whose outcomes all come at one moment."""
    data = drawn([LAWS["exponential mean 3"]], [2_000], 40, until=60)
    more = {"advertiser": [1, 2, 2, *[3] * 50], "anchor": [0, 0, 0, *[0] * 50]}
    more["converted"] = [2 * DAY, 5 * HOUR, np.nan, *[3 * DAY] * 50]
    data = {name: np.concatenate([np.asarray(data[name], float), np.asarray(more[name], float)]) for name in data}
    data["advertiser"] = data["advertiser"].astype(int)
    pi = fitted(data, 60, family=family)
    for window in ("6h", "1d", "2d", "3d", "6d", "7d"):
        alpha = pi.alpha(np.arange(4), window)
        assert ((alpha >= 0) & (alpha <= 1)).all(), (window, alpha)
    at = [pi.alpha(np.arange(4), window) for window in ("1d", "2d", "3d", "5d", "7d")]
    assert (np.diff(at[1:], axis=0) >= 0).all()
    np.testing.assert_allclose(at[0], 1)  # up to the shortest window: all of p_s
    np.testing.assert_allclose(at[-1], 1)


def test_nothing_between_the_windows_is_an_error() -> None:
    with pytest.raises(ValueError, match="none between 24 h and 168 h after its anchor that was observed for so long"):
        PersonalizedInterpolator().fit({"anchor": [0, 0], "converted": [HOUR, np.nan]}, 30 * DAY)
