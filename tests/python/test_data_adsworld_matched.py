"""Presets against the real sets they were matched to: both sides computed here. Skipped where a set is absent."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("pydantic")

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from adsworld_support import columns, repeats, skew, unseen

from octavo.data import AdsWorld, DataError, data_root
from octavo.data.adsworld.model import PRICE_LOG_MEAN, PRICE_LOG_SD


def real(name: str, *names: str) -> pa.Table:
    try:
        path = data_root() / name
    except DataError as error:
        pytest.skip(str(error))
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return pq.read_table(path, columns=list(names))


def array(table: pa.Table, name: str) -> npt.NDArray:
    return table.column(name).to_numpy()


@pytest.fixture(scope="module")
def reference() -> dict[str, npt.NDArray]:
    names = ("user", "item", "domain", "click", "conversion", "_conversion_wait", "price")
    return dict(zip(names, columns(AdsWorld("reference"), *names, days=1.0)))


def test_items_are_as_skewed_as_movies_and_goods(reference: dict[str, npt.NDArray]) -> None:
    for name, column in (
        ("movielens/ml1m_pairs_no_time.parquet", "item_id"),
        ("movielens/ml100k_ratings.parquet", "item_id"),
        ("online_retail/lines.parquet", "stock_code"),
    ):
        ids = real(name, column).column(column).combine_chunks().dictionary_encode().indices
        assert skew(ids.to_numpy()) == pytest.approx(0.785, abs=0.02), name
    assert skew(reference["item"]) == pytest.approx(0.785, abs=0.03)


def test_users_are_as_skewed_as_raters(reference: dict[str, npt.NDArray]) -> None:
    raters = skew(array(real("movielens/ml1m_pairs_no_time.parquet", "user_id"), "user_id"))
    assert raters == pytest.approx(0.68, abs=0.01)
    assert skew(reference["user"]) == pytest.approx(raters, abs=0.04)


def test_the_feeds_click_rate_is_criteos(reference: dict[str, npt.NDArray]) -> None:
    sample = real("ctr_schema_samples/criteo_display_4k.parquet", "Label", "split")
    label = array(sample.filter(pc.equal(sample.column("split"), "train")), "Label").astype(float)
    assert label.mean() == pytest.approx(0.209, abs=0.001)
    assert reference["click"][reference["domain"] == 0].mean() == pytest.approx(label.mean(), abs=0.01)


def test_conversions_come_as_deskdrops_likes(reference: dict[str, npt.NDArray]) -> None:
    views = real("deskdrop/view_outcomes.parquet", "first_view", "first_like")
    delay = array(views, "first_like").astype(float) - array(views, "first_view").astype(float)
    delay = delay[delay >= 0]  # nan: never liked; negative: liked before the first view
    rate = len(delay) / len(views)
    clicks = (reference["click"] == 1) & (reference["domain"] == 0)
    assert reference["conversion"][clicks].mean() == pytest.approx(rate, abs=0.01)
    wait = reference["_conversion_wait"]
    shares = [0.25, 0.5, 0.75, 0.9]
    ratio = np.quantile(wait[~np.isnan(wait)], shares) / np.quantile(delay, shares)
    assert np.abs(np.log(ratio)).max() < np.log(1.15)


def test_prices_are_those_of_a_shop() -> None:
    lines = real("online_retail/lines.parquet", "stock_code", "unit_price")
    lines = lines.filter(pc.greater(lines.column("unit_price"), 0))
    code = lines.column("stock_code").combine_chunks().dictionary_encode().indices.to_numpy()
    price = array(lines, "unit_price")
    order = np.lexsort((price, code))
    bounds = np.flatnonzero(np.diff(code[order], prepend=-1))
    logs = np.log([np.median(part) for part in np.split(price[order], bounds[1:])])
    assert (logs.mean(), logs.std()) == (
        pytest.approx(PRICE_LOG_MEAN, abs=0.002),
        pytest.approx(PRICE_LOG_SD, abs=0.002),
    )


def bookings(*names: str) -> dict[str, npt.NDArray]:
    table = real("hotel_bookings/bookings.parquet", "booking_date", "is_canceled", "cancel_delay_days", *names)
    found: dict[str, Any] = {name: array(table, name) for name in ("is_canceled", "cancel_delay_days", *names)}
    found["day"] = np.array(table.column("booking_date").cast(pa.date32()).cast(pa.int32()).to_numpy())
    inside = (found["day"] >= _day("2015-07-01")) & (found["day"] < _day("2017-06-01"))
    return {name: column[inside] for name, column in found.items()}


def _day(date: str) -> int:
    return int(np.datetime64(date, "D").astype(int))


def test_the_conversion_rate_swings_as_cancellations_did() -> None:
    hotel = bookings()
    quick = np.nan_to_num(hotel["cancel_delay_days"].astype(float), nan=1e9) <= 7
    ends = [
        quick[(hotel["day"] >= _day(a)) & (hotel["day"] < _day(b))].mean()
        for a, b in (("2015-10-01", "2016-01-01"), ("2017-04-01", "2017-06-01"))
    ]
    time, domain, click, conversion = columns(AdsWorld("drift"), "time", "domain", "click", "conversion", days=6.0)
    half_day = (time - time.min()) // 43_200_000
    feed = (domain == 0) & (click == 1)
    rates = np.bincount(half_day[feed], conversion[feed]) / np.bincount(half_day[feed])
    assert ends == [pytest.approx(0.055, abs=0.003), pytest.approx(0.175, abs=0.015)]
    assert rates.min() == pytest.approx(ends[0], abs=0.01)
    assert rates.max() == pytest.approx(ends[1], abs=0.015)


def test_delays_are_those_of_cancellations_ten_times_faster() -> None:
    hotel = bookings("agent")
    delay = hotel["cancel_delay_days"].astype(float)
    shares = [0.25, 0.5, 0.75, 0.9]
    expected = np.quantile(delay[~np.isnan(delay)], shares) / 10
    advertiser, wait = columns(AdsWorld("delay"), "advertiser", "_conversion_wait", days=10.0)
    known = ~np.isnan(wait)
    found = np.quantile(wait[known] / 86_400, shares)
    assert np.abs(np.log(found / expected)).max() < np.log(1.35)

    def spread(group: npt.NDArray, value: npt.NDArray, low: float) -> float:
        """sd of the log median over groups of 50 and more."""
        names, counts = np.unique(group, return_counts=True)
        medians = [np.median(value[group == name]) for name in names[counts >= 50]]
        return float(np.log(np.maximum(medians, low)).std(ddof=1))

    named = ~np.isnan(delay) & ~np.isnan(hotel["agent"].astype(float))
    agents = spread(hotel["agent"][named], delay[named], 0.5)
    assert agents == pytest.approx(1.12, abs=0.02)  # 20 agents: a standard error of 0.18
    assert spread(advertiser[known], wait[known], 0.0) == pytest.approx(agents, abs=0.3)


def test_pairs_come_again_as_in_deskdrop() -> None:
    events = real("deskdrop/events.parquet", "event", "person", "content", "session", "timestamp")
    views = events.filter(pc.equal(events.column("event"), "VIEW"))
    again = repeats(array(views, "person"), array(views, "content"))
    assert again == pytest.approx(0.276, abs=0.001)
    world = AdsWorld("rerequest")
    assert repeats(*columns(world, "user", "item", days=1.0)) == pytest.approx(again, abs=0.02)

    session, when = array(views, "session"), array(views, "timestamp").astype(float)
    visits, gaps = _sessions(session, when)
    time, request, number = columns(world, "time", "request", "session", days=2.0)
    first = np.unique(request, return_index=True)[1]
    early = np.isin(number[first], number[first][time[first] < world.time(1.0)])  # sessions that had time to end
    simulated_visits, simulated_gaps = _sessions(number[first][early], time[first][early] / 1000)
    assert simulated_visits == pytest.approx(visits, abs=0.05)
    assert np.abs(np.log(simulated_gaps / gaps)).max() < np.log(1.35)


def _sessions(session: npt.NDArray, seconds: npt.NDArray) -> tuple[float, npt.NDArray]:
    """Events a session, and the quartiles of the gaps between them."""
    order = np.lexsort((seconds, session))
    gaps = np.diff(seconds[order])[np.diff(session[order]) == 0]
    return len(session) / len(np.unique(session)), np.quantile(gaps, [0.25, 0.5, 0.75])


def test_as_many_rows_come_from_new_users_as_in_movielens() -> None:
    raters = unseen(array(real("movielens/ml100k_ratings.parquet", "user_id"), "user_id"))
    assert raters == pytest.approx(0.852, abs=0.001)
    assert unseen(*columns(AdsWorld("cold"), "user", days=7.0)) == pytest.approx(raters, abs=0.02)


def test_the_solaris_world_has_the_coverage_of_the_reference_simulation() -> None:
    """methods.md 2e (3): the share of a request's candidates whose embedding is in the cache, 20 computed a request,
    30 s each: recency at three times to live, popularity at six hours."""
    world = AdsWorld("solaris")
    sets = pa.concat_tables(world.candidates(days=0.75))
    time, user = (np.array(sets.column(name))[::30] for name in ("time", "user"))
    items = np.array(sets.column("item")).reshape(-1, 30)
    popular = np.argsort(-np.bincount(items.ravel()))[:20].tolist()
    assert _coverage(time, user, items, 300, None) == pytest.approx(0.226, abs=0.03)
    assert _coverage(time, user, items, 1800, None) == pytest.approx(0.344, abs=0.03)
    assert _coverage(time, user, items, 21_600, None) == pytest.approx(0.414, abs=0.03)
    assert _coverage(time, user, items, 21_600, popular) == pytest.approx(0.177, abs=0.03)


def _coverage(time: npt.NDArray, user: npt.NDArray, items: npt.NDArray, ttl: float, always: list[int] | None) -> float:
    cache: dict[int, dict[int, float]] = {}
    hits = 0
    for when, who, row in zip((time / 1000).tolist(), user.tolist(), items.tolist()):
        mine = cache.setdefault(who, {})
        hits += sum(1 for item in row if 0 <= when - mine.get(item, 1e18) <= ttl)
        budget = 20
        for item in always or row:
            if budget and when - mine.get(item, -1e18) > ttl:
                mine[item] = when + 30.0
                budget -= 1
    return hits / items.size


def test_the_exfm_world_is_the_one_described() -> None:
    world = AdsWorld("exfm")
    time, domain, user, item, p = columns(world, "time", "domain", "user", "item", "_p_click", events=2304 * 400)
    step = (time - world.config.start_ms) // 600_000
    assert step.max() == pytest.approx(400, abs=3)
    assert np.bincount(step[domain == 0])[:390].mean() == pytest.approx(256, abs=2)
    assert (len(np.unique(user)), len(np.unique(item))) == (3000, 400)
    assert skew(item) == pytest.approx(0.7, abs=0.03)
    assert p[domain == 0].mean() == pytest.approx(0.08, abs=0.003)
    click = world.truth.intercepts[0]
    assert click[1] - click[0] == pytest.approx(0.8)
