"""What changes in an AdsWorld changes when and where it was told to, and nothing else does."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("pydantic")
pytest.importorskip("scipy")

import pyarrow as pa
from adsworld_support import columns, repeats, unseen
from scipy import stats

from octavo.data import AdsWorld, encode_table

DAY_MS = 86_400_000
# Everybody is drawn evenly, all of a user's candidates are shown: what is left to see is the knob under test.
PLAIN: dict[str, Any] = {
    "users": {"initial": 300, "zipf": 0.0},
    "items": {"initial": 60, "zipf": 0.0},
    "domains": [{"name": "feed", "ctr": 0.3, "cvr": 0.3}, {"name": "reels", "ctr": 0.1, "cvr": 0.2}],
    "traffic": {"impressions_per_day": 60_000, "tick_minutes": 60.0, "daily_swing": 0.0},
    "effects": {"user_sd": 0.0, "item_sd": 0.0},
}


def logit(p: npt.NDArray) -> npt.NDArray:
    return np.log(p / (1 - p))


def pair_means(user: npt.NDArray, item: npt.NDArray, value: npt.NDArray) -> dict[int, float]:
    pair = user * 1000 + item
    names, group = np.unique(pair, return_inverse=True)
    return dict(zip(names.tolist(), (np.bincount(group, value) / np.bincount(group)).tolist()))


def test_nothing_drifts_unless_told() -> None:
    """Without drift a pair's click probability in a domain is one number for ever."""
    user, item, domain, p = columns(AdsWorld(PLAIN), "user", "item", "domain", "_p_click", days=3.0)
    key = (user * 1000 + item) * 2 + domain
    order = np.argsort(key, kind="stable")
    same = np.diff(key[order]) == 0
    assert same.sum() > 50_000
    assert np.abs(np.diff(p[order])[same]).max() < 1e-12


@pytest.mark.parametrize("rotation", [0.1, 0.5])
def test_factors_rotate_at_the_rate_told(rotation: float) -> None:
    """Each plane of each item turns by N(0, rotation) a day: E cos = exp(-(rotation t)^2 / 2) is how affinities
    correlate after t days."""
    world = AdsWorld(
        {
            **PLAIN,
            "domains": [{"name": "feed", "ctr": 0.3}],
            "advertisers": {"click_sd": 0.0},
            "items": {"initial": 400, "zipf": 0.0},
            "traffic": {"impressions_per_day": 200_000, "tick_minutes": 30.0},
            "drift": {"rotation": rotation},
        },
        seed=1,
    )
    time, user, item, p = columns(world, "time", "user", "item", "_p_click", days=4.0)
    day, affinity = (time - world.config.start_ms) / DAY_MS, logit(p)
    early = pair_means(*(column[day < 0.25] for column in (user, item, affinity)))
    for after in (1.0, 3.5):
        inside = (day >= after) & (day < after + 0.25)
        late = pair_means(*(column[inside] for column in (user, item, affinity)))
        both = sorted(early.keys() & late.keys())
        assert len(both) > 5000
        found = np.corrcoef([early[pair] for pair in both], [late[pair] for pair in both])[0, 1]
        assert found == pytest.approx(np.exp(-((rotation * after) ** 2) / 2), abs=0.05)


def test_rates_swing_with_the_period_told() -> None:
    world = AdsWorld(
        {**PLAIN, "drift": {"click_amplitude": 0.4, "conversion_amplitude": 0.2, "period_days": 2.0}}, seed=2
    )
    still = AdsWorld(PLAIN, seed=2)
    names = ("time", "_p_click", "_p_conversion")
    (time, p, q), (_, p_still, q_still) = (columns(w, *names, days=2.0) for w in (world, still))
    swing = np.sin(2 * np.pi * (time - world.config.start_ms) / (2 * DAY_MS))
    np.testing.assert_allclose(logit(p) - logit(p_still), 0.4 * swing, atol=1e-9)
    np.testing.assert_allclose(logit(q) - logit(q_still), 0.2 * swing, atol=1e-9)


def test_a_shift_strikes_on_its_day_in_its_domain() -> None:
    world = AdsWorld({**PLAIN, "shifts": [{"day": 0.5, "click": -1.0, "conversion": 0.5, "domain": "reels"}]}, seed=2)
    names = ("time", "domain", "_p_click", "_p_conversion")
    (time, domain, p, q), (_, _, p_still, q_still) = (columns(w, *names, days=1.0) for w in (world, AdsWorld(PLAIN, 2)))
    struck = (time >= world.time(0.5)) & (domain == 1)
    assert 0 < struck.sum() < len(struck)
    np.testing.assert_allclose(logit(p) - logit(p_still), -1.0 * struck, atol=1e-9)
    np.testing.assert_allclose(logit(q) - logit(q_still), 0.5 * struck, atol=1e-9)


def test_a_reshuffle_redraws_a_share_of_the_items_and_only_then() -> None:
    world = AdsWorld({**PLAIN, "shifts": [{"day": 0.5, "reshuffle": 0.4}]}, seed=3)
    names = ("time", "item", "_p_click")
    (time, item, p), (_, _, p_still) = (columns(w, *names, days=1.0) for w in (world, AdsWorld(PLAIN, 3)))
    late = time >= world.time(0.5)
    moved = np.abs(logit(p) - logit(p_still)) > 1e-9
    assert not moved[~late].any()
    share = np.bincount(item[late], moved[late]) / np.bincount(item[late])
    struck = share > 0.5
    assert share[struck].min() > 0.99  # all impressions of a struck item, none of another
    assert share[~struck].max() == 0
    assert struck.sum() == pytest.approx(0.4 * 60, abs=10)


def test_delay_laws_may_change_mid_stream() -> None:
    laws = [
        {"law": {"kind": "exponential", "mean": 3600.0}},
        {"law": {"kind": "weibull", "shape": 0.7, "scale": 9000.0}},
    ]
    world = AdsWorld(
        {
            **PLAIN,
            "advertisers": {"count": 20, "zipf": 0.0},
            "conversions": {"laws": laws, "window_days": 2.0},
            "shifts": [{"day": 0.5, "delay_factor": 4.0, "advertisers": 0.5}],
        },
        seed=4,
    )
    time, advertiser, wait = columns(world, "time", "advertiser", "_conversion_wait", days=1.0)
    known = ~np.isnan(wait)
    before, after = world.time(0.4), world.time(0.5)
    everyone = np.arange(20)
    old, new = (world.truth.delay_quantile(everyone, 0.5, when) for when in (before, after))
    np.testing.assert_allclose(world.truth.delay_quantile(everyone, 0.5), old)
    struck = new > 1.5 * old
    np.testing.assert_allclose(new[~struck], old[~struck])
    assert 4 <= struck.sum() <= 16
    # The probability transform by the truth at each event's own time is uniform on both sides.
    for side in (time < after, time >= after):
        mine = known & side
        assert stats.kstest(world.truth.delay_cdf(advertiser[mine], wait[mine], time[mine]), "uniform").pvalue > 1e-3
    stale = world.truth.delay_cdf(advertiser[known & (time >= after)], wait[known & (time >= after)])
    assert stats.kstest(stale, "uniform").pvalue < 1e-6


def test_new_ids_appear_when_told_and_old_ones_leave() -> None:
    population = {"initial": 200, "zipf": 0.0, "from_day": 1.0, "burst": 40, "per_day": 100.0}
    world = AdsWorld({**PLAIN, "users": population, "items": {**population, "lifetime_days": 1.0}}, seed=5)
    time, user, item, age = columns(world, "time", "user", "item", "item_age_hours", days=3.0)
    day = (time - world.config.start_ms) / DAY_MS
    for ids in (user, item):
        first = {int(n): float(day[at]) for n, at in zip(*np.unique(ids, return_index=True))}
        assert max(n for n, at in first.items() if at < 1.0) == 199
        burst = [at for n, at in first.items() if 200 <= n < 240]
        assert len(burst) >= 35
        assert 1.0 <= min(burst) < 1.05
        trickle = np.array([(n, at) for n, at in first.items() if n >= 240])
        assert (trickle[:, 1] >= 1.0 + (trickle[:, 0] - 240) / 100).all()  # none before its birth
        assert abs(len(trickle) - 200) < 25
    assert len(np.unique(user)) > 430
    alive = [len(np.unique(item[(day >= at) & (day < at + 0.04) & (item < 200)])) for at in (0.0, 1.0, 2.5)]
    assert alive[1] == pytest.approx(200 * np.exp(-1.0), abs=25)
    assert alive[2] == pytest.approx(200 * np.exp(-2.5), abs=15)
    assert age.min() >= 0
    assert age[item < 200].max() <= (30 + 3) * 24


def test_sessions_repeat_pairs_as_much_as_they_carry() -> None:
    shares = []
    for carry in (0.0, 0.5, 1.0):
        traffic = {
            **PLAIN["traffic"],
            "requests_per_session": 4.0,
            "gap": {"kind": "exponential", "mean": 60.0},
            "candidates": 6,
            "shown": 2,
            "carry": carry,
        }
        big = {"users": {"initial": 3000}, "items": {"initial": 5000, "zipf": 0.0}}
        world = AdsWorld({**PLAIN, **big, "traffic": traffic}, seed=6)
        sets = pa.concat_tables(world.candidates(days=1.0))
        session, request, item = (np.array(sets.column(name)) for name in ("session", "request", "item"))
        rows, sessions, items = request[::6], session[::6], item.reshape(-1, 6)
        order = np.lexsort((rows, sessions))
        follows = np.diff(sessions[order]) == 0
        assert follows.mean() == pytest.approx(1 - 1 / 4.0, abs=0.03)  # geometric, mean 4
        now, previous = items[order][1:][follows], items[order][:-1][follows]
        kept = (now[:, :, None] == previous[:, None, :]).any(2).mean()
        assert kept == pytest.approx(carry, abs=0.02)
        user, shown = columns(world, "user", "item", days=1.0)
        shares.append(repeats(user, shown))
    assert shares[0] < 0.05 < shares[1] < shares[2]


def test_a_new_session_may_remember_the_last_one() -> None:
    shares = []
    for carry in (0.0, 0.7):
        traffic = {
            **PLAIN["traffic"],
            "candidates": 5,
            "shown": 5,
            "carry_sessions": carry,
            "impressions_per_day": 3000,
        }
        world = AdsWorld({**PLAIN, "items": {"initial": 2000, "zipf": 0.0}, "traffic": traffic}, seed=7)
        shares.append(repeats(*columns(world, "user", "item", days=5.0)))
    assert shares[0] < 0.05
    assert shares[1] > 0.6


def test_traffic_swings_over_the_day() -> None:
    world = AdsWorld({**PLAIN, "traffic": {**PLAIN["traffic"], "daily_swing": 0.8}}, seed=8)
    (hour,) = columns(world, "hour", days=3.0)
    counts = np.bincount(hour.astype(int), minlength=24)
    expected = 60_000 * 3 / 24 * (1 + 0.8 * np.cos(2 * np.pi * (np.arange(24) + 0.5 - 20) / 24))
    assert np.abs((counts - expected) / np.sqrt(expected)).max() < 5


@pytest.mark.parametrize("correlation", [1.0, 0.5, -0.5])
def test_tastes_of_two_domains_correlate_as_told(correlation: float) -> None:
    world = AdsWorld(
        {**PLAIN, "tastes": {"domain_correlation": correlation}, "advertisers": {"click_sd": 0.0}},
        seed=9,
    )
    user, item, domain, p = columns(world, "user", "item", "domain", "_p_click", days=2.0)
    sides = [pair_means(*(column[domain == d] for column in (user, item, logit(p)))) for d in (0, 1)]
    both = sorted(sides[0].keys() & sides[1].keys())
    found = np.corrcoef(*([side[pair] for pair in both] for side in sides))[0, 1]
    assert found == pytest.approx(correlation, abs=0.08)


def test_retrieval_prefers_what_a_segment_likes() -> None:
    means = []
    for retrieval in (0.0, 1.0):
        traffic = {**PLAIN["traffic"], "retrieval": retrieval}
        tastes = {"cluster": 0.8, "focus": 2.0}
        world = AdsWorld({**PLAIN, "tastes": tastes, "traffic": traffic, "items": {"initial": 2000}}, seed=10)
        sets = columns(world, "segment", "category", "_p_click", days=1.0)
        shares = np.bincount(sets[0] * 24 + sets[1], minlength=12 * 24).reshape(12, 24)
        means.append(float((shares / shares.sum(1, keepdims=True)).std(0).mean()))
    assert means[1] > 5 * means[0]


def test_histories_hold_the_clicks_before_the_tick_in_order() -> None:
    world = AdsWorld(
        {
            **PLAIN,
            "users": {"initial": 20, "zipf": 0.5},
            "traffic": {"impressions_per_day": 4000, "tick_minutes": 45.0},
            "clicks": {"delay": {"kind": "exponential", "mean": 1200.0}, "window_hours": 2.0},
            "history": 4,
        },
        seed=11,
    )
    table = pa.concat_tables(world.tables(days=1.0))
    rows = table.select(["time", "user", "item", "click", "click_delay", "history"]).to_pylist()
    start, tick = world.config.start_ms, 45 * 60_000
    longest = 0
    for row in rows[::7]:
        begin = start + (row["time"] - start) // tick * tick
        clicks = [
            (other["time"] + other["click_delay"] * 1000, other["item"])
            for other in rows
            if other["user"] == row["user"] and other["click"] and other["time"] < begin
        ]
        happened = [item for at, item in sorted(clicks) if at < begin]
        assert row["history"] == happened[-4:]
        longest = max(longest, len(happened))
    assert longest > 8  # the ring has gone round


def test_counts_are_those_of_earlier_impressions() -> None:
    world = AdsWorld({**PLAIN, "traffic": {"impressions_per_day": 20_000, "shown": 2, "candidates": 2}}, seed=12)
    time, user, item, user_events, item_events = columns(
        world, "time", "user", "item", "user_events", "item_events", days=1.0
    )
    for ids, counts in ((user, user_events), (item, item_events)):
        for name in np.unique(ids)[::7]:
            mine = ids == name
            assert (counts[mine] == np.searchsorted(time[mine], time[mine])).all()


def test_poison_reaches_the_inputs_it_names_in_its_days_and_never_the_outcomes() -> None:
    effects = {**PLAIN["effects"], "signals": 2, "signal_sd": 0.5, "price": -0.3}
    poison = {"share": 0.2, "from_day": 0.25, "until_day": 0.75}
    clean = pa.concat_tables(AdsWorld({**PLAIN, "effects": effects}, seed=13).tables(days=1.0))
    world = AdsWorld({**PLAIN, "effects": effects, "poison": poison}, seed=13)
    dirty = pa.concat_tables(world.tables(days=1.0))
    code, time = np.array(dirty.column("_poisoned")), np.array(dirty.column("time"))
    inside = (time >= world.time(0.25)) & (time < world.time(0.75))
    assert (code[~inside] == 0).all()
    assert (code[inside] > 0).mean() == pytest.approx(0.2, abs=0.01)
    kinds = np.bincount(code, minlength=5)[1:]
    assert kinds.min() > 0.9 * kinds.max()
    reached = {"price", "category", "signal_0", "signal_1", "_poisoned"}
    for name in dirty.column_names:
        if name not in reached:
            assert dirty.column(name).equals(clean.column(name)), name
    changed = {}
    for name in ("price", "category", "signal_0", "signal_1"):
        before, after = clean.column(name).to_numpy(), dirty.column(name).to_numpy()
        differs = ~(before == after)
        assert not differs[code == 0].any()
        changed[name] = [round(float(differs[code == kind].mean()), 1) for kind in range(1, 5)]
    assert changed["price"] == [1.0, 1.0, 1.0, 0.0]
    assert changed["signal_0"] == changed["signal_1"] == [1.0, 1.0, 0.0, 0.0]
    assert changed["category"] == [0.0, 0.0, 0.0, 1.0]
    scaled = code == 1
    np.testing.assert_allclose(
        dirty.column("price").to_numpy()[scaled], 1000 * clean.column("price").to_numpy()[scaled], rtol=1e-6
    )
    assert (np.isnan(dirty.column("price").to_numpy()) == (code == 3)).all()
    batch = encode_table(world.schema, dirty)
    assert np.isfinite(batch.dense.numpy()).all()
    assert "_poisoned" not in world.schema.columns()
    only = AdsWorld({**PLAIN, "effects": effects, "poison": {"share": 0.5, "kinds": ["null"]}}, seed=13)
    assert set(columns(only, "_poisoned", events=5000)[0].tolist()) == {0, 3}


def test_position_hour_price_and_signals_move_the_logit_as_told() -> None:
    effects = {
        "user_sd": 0.0,
        "item_sd": 0.0,
        "position": 0.3,
        "hour": 0.5,
        "price": -0.4,
        "signals": 3,
        "signal_sd": 0.6,
    }
    world = AdsWorld(
        {
            **PLAIN,
            "domains": [{"name": "feed", "ctr": 0.3}],
            "tastes": {"strength": 0.0},
            "advertisers": {"click_sd": 0.0},
            "effects": effects,
            "traffic": {"impressions_per_day": 30_000, "shown": 3, "candidates": 3, "daily_swing": 0.0},
        },
        seed=14,
    )
    names = [f"signal_{number}" for number in range(3)]
    time, position, price, p, *signals = columns(world, "time", "position", "price", "_p_click", *names, days=1.0)
    hour = np.cos(2 * np.pi * ((time / 3_600_000) % 24 - 20) / 24)
    inputs = np.stack([np.ones(len(p)), position, hour, np.log(price), *signals], axis=1).astype(float)
    found, _, _, _ = np.linalg.lstsq(inputs, logit(p), rcond=None)
    np.testing.assert_allclose(found[1:4], [-0.3, 0.5, -0.4 / 1.066], rtol=1e-3)
    assert np.abs(inputs @ found - logit(p)).max() < 1e-4
    assert np.linalg.norm(found[4:]) > 0.2


def test_users_never_seen_before_keep_coming() -> None:
    world = AdsWorld({**PLAIN, "users": {"initial": 300, "per_day": 500.0, "lifetime_days": 0.5}}, seed=15)
    (user,) = columns(world, "user", days=3.0)
    assert unseen(user) > 0.3
