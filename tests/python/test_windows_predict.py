"""Predictions: identities, monotonicity, any number of windows, fallbacks, what is refused, the compiled table."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from windows_support import DAY, LAWS, drawn

pytest.importorskip("pyarrow")

import pyarrow as pa

from octavo.windows import (
    FAMILIES,
    CalibrationWarning,
    ExtrapolationWarning,
    PersonalizedInterpolator,
    WindowsError,
    laws,
)
from octavo.windows.calibration import Calibration
from octavo.windows.laws import BY_REQUEST

ALL = list(LAWS.values())
EVERY = [*FAMILIES, BY_REQUEST, "auto"]


@pytest.fixture(scope="module")
def fits() -> dict[str, PersonalizedInterpolator]:
    data = drawn(ALL, [3_000, 40, 300, 800, 5], 40, until=60)
    return {
        family: PersonalizedInterpolator(group=["advertiser"], family=family).fit(data, 60 * DAY) for family in EVERY
    }


@pytest.fixture(scope="module")
def four() -> PersonalizedInterpolator:
    data = drawn(ALL, [3_000, 40, 300, 800, 5], 90, until=90)
    return PersonalizedInterpolator(("6h", "1d", "7d", "30d"), ["advertiser"]).fit(data, 90 * DAY)


def requests(count: int, seed: int = 0, kind: Any = np.float64) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    short = rng.random(count) ** 2
    long = short + (1 - short) * rng.random(count)
    return short.astype(kind), long.astype(kind), rng.integers(0, 5, count)


@pytest.mark.parametrize("family", EVERY)
def test_the_models_own_windows_come_back(fits: dict[str, PersonalizedInterpolator], family: str) -> None:
    short, long, groups = requests(500)
    np.testing.assert_allclose(fits[family].predict(short, long, groups, window="1d"), short, rtol=1e-7)
    np.testing.assert_allclose(fits[family].predict(short, long, groups, window="7d"), long, rtol=1e-7)


@settings(max_examples=60, deadline=None)
@given(
    family=st.sampled_from(EVERY),
    seed=st.integers(0, 1000),
    hours=st.lists(st.integers(1, 28 * 24), min_size=2, max_size=6, unique=True),
)
@pytest.mark.filterwarnings("ignore::octavo.windows.ExtrapolationWarning")
def test_p_never_falls_with_the_window_and_stays_a_probability(
    fits: dict[str, PersonalizedInterpolator], family: str, seed: int, hours: list[int]
) -> None:
    short, long, groups = requests(64, seed)
    windows = [f"{h}h" for h in sorted(hours)]
    found = fits[family].predict(short, long, groups, window=windows)
    assert found.shape == (64, len(windows))
    assert ((found >= 0) & (found <= 1)).all()
    assert (np.diff(found, axis=1) >= -1e-12).all()
    for number, h in enumerate(sorted(hours)):
        if 24 <= h <= 168:
            assert (found[:, number] >= short - 1e-12).all()
            assert (found[:, number] <= long + 1e-12).all()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), hours=st.lists(st.integers(1, 720), min_size=2, max_size=6, unique=True))
def test_through_four_windows_too(four: PersonalizedInterpolator, seed: int, hours: list[int]) -> None:
    rng = np.random.default_rng(seed)
    p = np.sort(rng.random((4, 64)), axis=0)
    groups = rng.integers(0, 6, 64)  # 5: never seen
    inside = sorted(h for h in hours if h >= 6) or [6]
    found = four.predict(*p, groups, window=[f"{h}h" for h in inside])
    assert (np.diff(found, axis=1) >= -1e-9).all()
    for window, own in zip(("6h", "1d", "7d", "30d"), p, strict=True):
        np.testing.assert_allclose(four.predict(*p, groups, window=window), own, atol=1e-6)


def test_a_request_that_follows_its_groups_law_is_exact_through_four_windows() -> None:
    law, count = LAWS["lognormal 1.5, 3"], 200_000
    delay = law.ppf((np.arange(count) + 0.5) / count)
    data = {"anchor": np.zeros(count), "converted": np.round(delay * DAY)}
    pi = PersonalizedInterpolator(("6h", "1d", "7d", "30d"), family="empirical", half_life=None).fit(data, 4000 * DAY)
    p = [np.full(3, 0.3 * law.cdf(days)) for days in (0.25, 1, 7, 30)]
    for hours in (12, 48, 72, 14 * 24, 25 * 24):
        found = pi.predict(*p, np.zeros(3), window=f"{hours}h")
        np.testing.assert_allclose(found, 0.3 * law.cdf(hours / 24), rtol=2e-3)


def test_left_out_window_is_found_from_the_others(four: PersonalizedInterpolator) -> None:
    """methods.md 5e (7): 7 d from 1 d and 30 d, per group with its own law."""
    data = drawn(ALL, [20_000] * 5, 60, until=120, seed=3)
    pi = PersonalizedInterpolator(("1d", "30d"), ["advertiser"], half_life=None).fit(data, 120 * DAY)
    for g, law in enumerate(ALL):
        found = pi.predict([law.cdf(1)], [law.cdf(30)], [g], window="7d")[0]
        assert found == pytest.approx(law.cdf(7), rel=0.02)


def test_each_requests_own_rate(fits: dict[str, PersonalizedInterpolator]) -> None:
    """p_s / p_l of an exponential request give its p for every window, whatever its group."""
    means = np.array([0.4, 1.0, 3.0, 20.0])
    exact = 0.2 * -np.expm1(-np.array([[1.0, 2.0, 3.0, 7.0]]) / means[:, None])
    found = fits[BY_REQUEST].predict(exact[:, 0], exact[:, 3], [0, 1, 2, 3], window=["2d", "3d"])
    np.testing.assert_allclose(found, exact[:, 1:3], rtol=1e-5)


def test_each_requests_own_rates_through_three_windows() -> None:
    """Exact for an exponential request, whatever its group; for a Weibull one, nearer than the last two windows are by
    the ratio of their p; beyond the last no faster than before."""
    data = drawn(ALL, [300] * 5, 90, until=90)
    windows = ("1d", "7d", "30d")
    pi = PersonalizedInterpolator(windows, ["advertiser"], family=BY_REQUEST).fit(data, 90 * DAY)
    means = np.array([0.7, 3.0, 10.0, 60.0])
    exact = {days: 0.2 * -np.expm1(-days / means) for days in (1, 2, 5, 7, 12, 25, 30, 45)}
    p = [exact[days] for days in (1, 7, 30)]
    for days in (1, 2, 5, 7, 12, 25, 30):
        np.testing.assert_allclose(pi.predict(*p, [0, 1, 2, 3], window=f"{days}d"), exact[days], rtol=2e-5)
    law = LAWS["weibull .5, 5"]
    p = [np.array([law.cdf(days)]) for days in (1, 7, 30)]
    found = pi.predict(*p, [0], window="14d")[0]
    ratio = laws.request_alpha(p[1] / p[2], 7.0, 30.0, 14.0)[0]
    assert abs(found - law.cdf(14)) < 0.7 * abs(p[1] + ratio * (p[2] - p[1]) - law.cdf(14))
    with pytest.warns(ExtrapolationWarning):
        beyond = pi.predict([0.1], [0.2], [0.3], [0], window="45d")[0]
    assert 0.3 < beyond <= 0.3 + 0.1 * 15 / 23
    assert pi.predict([0.2], [0.1], [0.4], [0], window="7d")[0] == pytest.approx(0.2)
    assert pi.counts["p_short > p_long"] == 1


@pytest.mark.parametrize("family", ["auto", BY_REQUEST])
def test_one_by_one_and_float32_are_the_same(fits: dict[str, PersonalizedInterpolator], family: str) -> None:
    """methods.md 5e (2)."""
    short, long, groups = requests(40)
    pi = fits[family]
    found = pi.predict(short, long, groups, window=["2d", "5d"])
    for i in range(40):
        one = pi.predict(short[i : i + 1], long[i : i + 1], groups[i : i + 1], window=["2d", "5d"])
        assert np.array_equal(one[0], found[i])
    narrow = pi.predict(short.astype(np.float32), long.astype(np.float32), groups, window=["2d", "5d"])
    assert narrow.dtype == np.float32
    np.testing.assert_allclose(narrow, found, rtol=2e-6, atol=1e-7)
    assert pi.predict(short[:0], long[:0], groups[:0], window=["2d"]).shape == (0, 1)


def test_the_compiled_table_is_predict(fits: dict[str, PersonalizedInterpolator]) -> None:
    short, long, groups = requests(100_000, kind=np.float32)
    pi = fits["auto"]
    windows = ["6h", "2d", "7d", "10d"]
    with pytest.warns(ExtrapolationWarning, match=r"window 6h, 10d: outside the models' windows"):
        table = pi.compile(windows)
    with pytest.warns(ExtrapolationWarning):
        expected = pi.predict(short, long, groups, window=windows)
    rows = pi.rows(groups)
    out = np.empty(len(rows), np.float32)
    for number in range(4):
        found, repaired = table.predict(short, long, rows, number, out=out)
        assert found is out
        assert repaired == 0
        assert np.array_equal(found, expected[:, number])
    with pytest.raises(WindowsError, match=r"rows: found 0\.\.6; expected 0\.\.5"):
        table.predict(short[:2], long[:2], np.array([0, 6]))


def test_below_and_beyond_are_flagged_and_follow_the_law() -> None:
    law = LAWS["exponential mean 3"]
    data = drawn([law], [60_000], 40, until=70)
    pi = PersonalizedInterpolator(family="exponential", half_life=None).fit(data, 70 * DAY)
    with pytest.warns(ExtrapolationWarning, match="window 12h: outside"):
        below = pi.predict([law.cdf(1)], [law.cdf(7)], [0], window="12h")[0]
    with pytest.warns(ExtrapolationWarning, match="window 14d: outside"):
        beyond = pi.predict([law.cdf(1)], [law.cdf(7)], [0], window="14d")[0]
    assert below == pytest.approx(law.cdf(0.5), rel=0.02)
    assert beyond == pytest.approx(law.cdf(14), rel=0.01)
    assert pi.predict([0.6], [1.0], [0], window="7d")[0] == 1.0
    with pytest.warns(ExtrapolationWarning):
        assert pi.predict([0.6], [1.0], [0], window="28d")[0] == 1.0
    with pytest.raises(WindowsError, match="window 29d: found .* expected at most 4 times the longest window"):
        pi.predict([0.1], [0.2], [0], window="29d")


def test_p_short_above_p_long_is_raised_and_counted(fits: dict[str, PersonalizedInterpolator]) -> None:
    pi = fits["linear"]
    before = pi.counts.get("p_short > p_long", 0)
    found = pi.predict([0.3, 0.1], [0.2, 0.4], [0, 0], window="4d")
    np.testing.assert_allclose(found, [0.3, 0.25])
    assert pi.counts["p_short > p_long"] == before + 1
    with pytest.raises(WindowsError, match="p of a longer window is below that of a shorter one in 1 rows"):
        pi.predict([0.3, 0.1], [0.2, 0.4], [0, 0], window="4d", strict=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ([0.1, np.nan], [0.2, 0.2], [0, 0]),
            r"p_short: nan at row 1 \(1 such rows\); expected probabilities in 0\.\.1",
        ),
        (([0.1, 0.1], [1.2, 0.2], [0, 0]), r"p_long: 1\.2 at row 0"),
        (([0.1], [0.2, 0.3], [0, 0]), r"\[1, 2\] predictions and 2 groups; expected equal"),
        (([0.1], [0.2], [0.5]), r"groups: 'advertiser' is double; expected integers or text"),
        (([0.1], [0.2], ["a"]), r"groups: 'advertiser' is string, was int64 before"),
        (([0.1], [0.2], pa.array([None], pa.int64())), r"groups: 'advertiser' is null at row 0"),
        (([0.1], [0.2], {"other": [1]}), r"groups: has no column 'advertiser'; it has other"),
        (([0.1], [0.2], [0.3], [0]), r"3 predictions; expected one for each of 1d, 7d"),
    ],
)
def test_bad_requests_are_refused(
    fits: dict[str, PersonalizedInterpolator], arguments: tuple[Any, ...], message: str
) -> None:
    with pytest.raises(WindowsError, match=message):
        fits["auto"].predict(*arguments, window="3d")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"windows": ("7d", "1d")}, "windows: found 7d, 1d; expected them increasing"),
        ({"windows": ("1d", "24h")}, "windows: found 1d, 24h; expected them increasing"),
        ({"windows": ("1d", 7)}, r"windows\[1\]: found 7; expected a number and a unit"),
        ({"windows": ("0d", "7d")}, r"windows\[0\]: found '0d'; expected more than nothing"),
        ({"windows": ("7d",)}, "expected two or more"),
        ({"windows": "7d"}, "expected two or more"),
        ({"family": "gamma"}, "family: found 'gamma'; expected one of linear, log_time"),
        ({"shrink": -1}, "shrink: found -1; expected 'auto' or how many outcomes"),
        ({"shrink": "much"}, "shrink: found 'much'"),
        ({"half_life": "soon"}, "half_life: found 'soon'; expected a number and a unit"),
        ({"group": "advertiser"}, "expected lists of column names"),
        ({"vertical": ["v"]}, "vertical: needs group"),
        ({"bins": 2}, "bins: found 2; expected at least 4"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(WindowsError, match=message):
        PersonalizedInterpolator(**settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"converted": [5, 2 * DAY, 3 * DAY]}, r"'converted' is 5 ms before 'anchor' at row 0; .* \(1 such rows\)"),
        ({"converted": [20, 99 * DAY, np.nan]}, "'converted' is 3369600000 ms after observed_until at row 1"),
        (
            {"anchor": [10, 10, 61 * DAY], "converted": [np.nan] * 3},
            "'anchor' is 86400000 ms after observed_until at row 2",
        ),
        ({"anchor": [10, np.nan, 10]}, "'anchor' is null at row 1; leave such rows out"),
        ({"anchor": ["x", "y", "z"]}, "'anchor': found <U1; expected ms since 1970"),
        ({"converted": [np.inf, 20, 20]}, "inf at row 0"),
        ({"advertiser": [1.0, 2.0, 3.0]}, "'advertiser' is double; expected integers or text"),
        ({"advertiser": [1, 2]}, "conversions: 2 rows of keys and 3 of times; expected equal"),
    ],
)
def test_bad_conversions_are_refused(changes: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"advertiser": [1, 1, 2], "anchor": [10, 10, 10], "converted": [DAY * 2, DAY * 3, np.nan]}
    PersonalizedInterpolator(group=["advertiser"]).fit(good, 60 * DAY)
    with pytest.raises(WindowsError, match=message):
        PersonalizedInterpolator(group=["advertiser"]).fit({**good, **changes}, 60 * DAY)


def test_conversions_come_as_tables_frames_and_time_stamps() -> None:
    data = drawn(ALL[:2], [500, 500], 40, until=60)
    expected = PersonalizedInterpolator(group=["advertiser"]).fit(data, 60 * DAY).alpha([0, 1], "3d")
    stamps = {
        "advertiser": pa.array(data["advertiser"]),
        "anchor": pa.array(data["anchor"].astype("datetime64[ms]")),
        "converted": pa.array(data["converted"], from_pandas=True)
        .cast(pa.int64(), safe=False)
        .cast(pa.timestamp("ms")),
    }
    table = pa.table(stamps)
    found = PersonalizedInterpolator(group=["advertiser"]).fit(table, "1970-03-02").alpha({"advertiser": [0, 1]}, "3d")
    assert np.array_equal(found, expected)
    with pytest.raises(WindowsError, match="conversions: has no column 'converted'; it has advertiser, anchor"):
        PersonalizedInterpolator(group=["advertiser"]).fit(table.drop(["converted"]))


def test_calibration_learns_from_matured_anchors_alone() -> None:
    """Models that promise half: the map doubles them; anchors too young for the window say nothing."""
    rng = np.random.default_rng(0)
    law, count = LAWS["exponential mean 3"], 40_000
    strength = rng.uniform(0.05, 0.5, count)
    anchor = rng.integers(0, 40 * DAY, count)
    came = rng.random(count) < strength
    converted = np.where(came, anchor + law.rvs(count, random_state=rng) * DAY, np.nan)
    converted = np.where(converted <= 40 * DAY, converted, np.nan)
    data = {"anchor": anchor, "converted": converted}
    pi = PersonalizedInterpolator(half_life=None).fit(data, 40 * DAY)
    short, long = 0.5 * strength * law.cdf(1), 0.5 * strength * law.cdf(7)
    pi.calibrate(short, long, conversions=data, windows=["3d", "7d"], observed_until=40 * DAY)
    found = pi.predict(short, long, anchor, window=["2d", "3d", "7d"])
    for number, days in ((1, 3), (2, 7)):
        assert found[:, number].sum() == pytest.approx((strength * law.cdf(days)).sum(), rel=0.03)
    plain = pi.predict(short, long, anchor, window=["2d", "3d", "7d"], calibrated=False)
    assert plain[:, 2].sum() == pytest.approx(long.sum())
    between = plain[:, 0] / plain[:, 1]  # a window without a map, below the shortest that has one
    np.testing.assert_allclose(found[:, 0], between * found[:, 1], rtol=1e-12)
    assert found[:, 0].sum() == pytest.approx((strength * law.cdf(2)).sum(), rel=0.03)
    assert (np.diff(found, axis=1) >= 0).all()
    young = {"anchor": np.full(50, 39 * DAY), "converted": np.full(50, np.nan)}
    with pytest.raises(WindowsError, match="of 0 anchors older than 168 h 0 converted in time; a map needs 10"):
        pi.calibrate(short[:50], long[:50], conversions=young, windows=["7d"], observed_until=40 * DAY)


def calibrated(count: int = 4_000) -> tuple[PersonalizedInterpolator, np.ndarray, np.ndarray]:
    """A fit with maps for 2 and 5 days that contradict each other: outcomes come early or not at all."""
    rng = np.random.default_rng(3)
    anchor = rng.integers(0, 40 * DAY, count)
    short = rng.uniform(0.02, 0.3, count)
    long = short + (1 - short) * rng.uniform(0.05, 0.5, count)
    came = rng.random(count) < 0.5 * long
    data = {"anchor": anchor, "converted": np.where(came, anchor + rng.uniform(0, 7, count) * DAY, np.nan)}
    data["converted"] = np.where(data["converted"] <= 40 * DAY, data["converted"], np.nan)
    pi = PersonalizedInterpolator(half_life=None).fit(data, 40 * DAY)
    pi.calibrate(short, long, conversions=data, windows=["5d", "2d"], observed_until=40 * DAY)
    return pi, short, long


@pytest.mark.filterwarnings("ignore::octavo.windows.ExtrapolationWarning")
@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("with_maps", [True, False])
def test_p_is_that_of_its_window_alone_and_never_falls_from_call_to_call(kind: Any, with_maps: bool) -> None:
    pi, short, long = calibrated()
    short, long = short.astype(kind), long.astype(kind)
    windows = [f"{h}h" for h in (1, 6, 23, 24, 25, 36, 47, 48, 49, 72, 119, 120, 121, 150, 168, 169, 300, 600)]
    options: dict[str, Any] = {"calibrated": with_maps}
    together = pi.predict(short, long, window=windows, **options)
    for number, window in enumerate(windows):
        assert np.array_equal(pi.predict(short, long, window=window, **options), together[:, number])
        pair = [windows[-1 - number], window]
        assert np.array_equal(pi.predict(short, long, window=pair, **options)[:, 1], together[:, number])
    assert together.dtype == kind
    assert (np.diff(together, axis=1) >= 0).all()
    assert ((together >= 0) & (together <= 1)).all()


def test_maps_that_contradict_each_other_are_raised() -> None:
    knots = {2: (np.array([-9.0, 9.0]), np.array([0.4, 0.4])), 5: (np.array([-9.0, 9.0]), np.array([0.2, 0.6]))}
    raw = {1: 0.1, 2: 0.2, 3: 0.3, 5: 0.5, 7: 0.6}
    found = Calibration(knots).curves(lambda window: np.full(1, raw[window]), [1, 2, 3, 5, 7])
    assert [float(p[0]) for p in found] == pytest.approx([0.2, 0.4, 0.4, 0.4, 0.52])
    same = Calibration(knots).curves(lambda window: np.full(1, 0.5), [3, 4])  # nothing between them: by time
    assert [float(p[0]) for p in same] == pytest.approx([0.4, 0.4])
    knots[5] = (np.array([-9.0, 9.0]), np.array([0.7, 0.7]))
    same = Calibration(knots).curves(lambda window: np.full(1, 0.5), [3, 4])
    assert [float(p[0]) for p in same] == pytest.approx([0.5, 0.6])


def test_a_table_without_the_maps_is_refused_unless_asked_for() -> None:
    pi, short, long = calibrated()
    with pytest.raises(WindowsError, match=r"compile: a table holds shares of groups, not this fit's calibration maps"):
        pi.compile(["3d"])
    table = pi.compile(["3d"], calibrated=False)
    found, _ = table.predict(short, long, pi.rows(short))
    assert np.array_equal(found, pi.predict(short, long, window="3d", calibrated=False))


def test_more_conversions_drop_the_maps_and_say_so() -> None:
    pi, _, _ = calibrated()
    maps = pi.calibration
    more = {"anchor": [0], "converted": [2 * DAY]}
    with pytest.warns(CalibrationWarning, match="the calibration maps were dropped"):
        pi.partial_fit(more, 40 * DAY)
    assert pi.calibration is None
    assert pi.counts["calibrations dropped"] == 1
    pi.partial_fit(more, 40 * DAY)  # nothing to drop
    pi.calibration = maps
    other = PersonalizedInterpolator(half_life=None).fit(more, 40 * DAY)
    with pytest.warns(CalibrationWarning):
        pi.merge(other)
    assert pi.counts["calibrations dropped"] == 2
    pi.calibration = maps
    pi.fit(more, 40 * DAY)  # forgets everything, so nothing is lost
    assert pi.calibration is None
