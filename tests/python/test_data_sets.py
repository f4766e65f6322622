"""Real data sets as logs: what they hold, against a brute-force re-statement; nothing comes from the future."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow")

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from octavo.data import SETS, DataError, EventLog, RealSet, data_root, movielens
from octavo.data.sets import deskdrop, hotel_bookings, online_retail

DAY = 86_400


def source(name: str) -> list[pa.Table]:
    found = SETS[name]
    try:
        root = data_root() / found.folder
    except DataError as error:
        pytest.skip(str(error))
    if not all((root / file).exists() for file in found.files):
        pytest.skip(f"{root}: {name} is not here")
    return [pq.read_table(root / file) for file in found.files]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sets")


def opened(name: str, cache: Path) -> EventLog:
    source(name)
    return SETS[name].open(cache=cache)


def sample(log: EventLog, count: int = 25) -> list[dict[str, Any]]:
    places = np.random.default_rng(1).choice(len(log), count, replace=False)
    return [log.columns(log.column_names, int(at), int(at) + 1).to_pylist()[0] for at in places]


@pytest.mark.parametrize(
    ("name", "events", "rates"),
    [
        ("deskdrop", 40_241, {"like": 5371 / 40_113, "bookmark": 1743 / 40_126, "follow": 1352 / 40_205}),
        ("hotel_bookings", 79_970, {}),
        ("online_retail", 15_676, {}),
        ("taobao_2h", 96_168, {}),
    ],
)
def test_is_whole_in_event_time_and_opened_the_second_time(
    cache: Path, name: str, events: int, rates: dict[str, float]
) -> None:
    log = opened(name, cache)
    batch = log.read()
    assert len(log) == events
    assert bool((batch.time.diff() >= 0).all())
    for task, rate in rates.items():
        assert batch.labels[task].nanmean().item() == pytest.approx(rate, abs=2e-5)
    inode = log.path.stat().st_ino
    assert SETS[name].open(cache=cache).path.stat().st_ino == inode
    assert float(batch.dense.abs().max()) < 60


def test_deskdrop_by_hand(cache: Path) -> None:
    log, events = opened("deskdrop", cache), source("deskdrop")[0].to_pylist()
    for event in sample(log):
        now, person, content = event["time"] // 1000, event["person"], event["content"]
        pair = [e for e in events if e["person"] == person and e["content"] == content]
        first = next(e for e in pair if e["event"] == "VIEW")
        assert (first["timestamp"], first["device"], first["country"]) == (now, event["device"], event["country"])
        past = [e for e in events if e["timestamp"] < now]
        for who, value in (("person", person), ("content", content)):
            own = [e for e in past if e[who] == value]
            views = sum(e["event"] == "VIEW" for e in own)
            assert event[f"{who}_views"] == views
            likes = sum(e["event"] == "LIKE" for e in own)
            assert event[f"{who}_like_rate"] == pytest.approx((likes + 1.3) / (views + 10))
        before = [e["timestamp"] for e in past if e["person"] == person]
        assert event["idle_hours"] == (pytest.approx((now - max(before)) / 3600) if before else None)
        for task in deskdrop.TASKS:
            times = [e["timestamp"] for e in pair if e["event"] == task.upper()]
            wanted = None if times and times[0] < now else bool(times)
            assert event[task] == wanted
            assert event[f"{task}_delay"] == (times[0] - now if wanted else None)
        seen: list[int] = []
        for e in past:
            if e["person"] == person and e["event"] == "VIEW" and e["content"] not in seen:
                seen.append(e["content"])
        assert event["viewed"] == seen[-20:]


def test_hotel_bookings_by_hand(cache: Path) -> None:
    log = opened("hotel_bookings", cache)
    table = log.columns(["time", "agent", "cancel", "cancel_delay", "cancel_7d", "lead_time", "hotel"])
    time, agent, delay = (np.array(table[n], np.float64) for n in ("time", "agent", "cancel_delay"))
    outcome = time / 1000 + np.nan_to_num(delay, nan=np.inf)
    for event in sample(log):
        mine = (agent == event["agent"]) & (time < event["time"])
        known = int((mine & (outcome < event["time"] / 1000)).sum())
        assert event["agent_bookings"] == mine.sum()
        assert event["agent_cancelled_rate"] == pytest.approx((known + 4) / (mine.sum() + 20))
        for days in hotel_bookings.WINDOWS:
            within = event["cancel"] == 1 and event["cancel_delay"] <= days * DAY
            assert event[f"cancel_{days}d"] == within
    leaking = {"assigned_room_type", "booking_changes", "deposit_type", "country", "adr", "reservation_status"}
    assert not leaking & set(log.column_names)
    late = table.filter(pc.greater_equal(table["time"], 17_136 * DAY * 1000))  # from 2016-12-01 on
    assert len(late) == 22_906  # the README's test set
    assert pc.mean(late["cancel"]).as_py() == pytest.approx(0.287, abs=5e-4)
    assert pc.mean(late["cancel_7d"]).as_py() == pytest.approx(0.144, abs=5e-4)


def test_online_retail_by_hand(cache: Path) -> None:
    log, lines = opened("online_retail", cache), source("online_retail")[0]
    for event in sample(log):
        own = lines.filter(pc.equal(lines["customer_id"], event["customer"] + 12_346)).to_pylist()
        now = event["time"] // 1000
        invoices: dict[str, list[dict[str, Any]]] = {}
        for line in own:
            if line["stock_code"][:5].isdigit() and (line["invoice"][0] == "C" or line["unit_price"] > 0):
                invoices.setdefault(line["invoice"], []).append(line)
        moment = {k: min(int(x["invoice_date"].timestamp()) for x in v) for k, v in invoices.items()}
        orders = [k for k in invoices if k[0] != "C"]
        this = next(
            k
            for k in orders
            if moment[k] == now and sorted(x["stock_code"] for x in invoices[k]) == sorted(event["basket"])
        )
        total = sum(x["quantity"] * x["unit_price"] for x in invoices[this])
        assert event["value"] == pytest.approx(total)
        past = [moment[k] for k in orders if moment[k] < now]
        assert event["orders_before"] == len(past)
        assert event["days_since_order"] == (pytest.approx((now - max(past)) / DAY) if past else None)
        returns = [k for k in invoices if k[0] == "C" and moment[k] < now]
        assert event["returns_before"] == len(returns)
        later = [moment[k] - now for k in orders if moment[k] > now]
        for days in online_retail.WINDOWS:
            came = bool(later) and min(later) <= days * DAY
            assert event[f"repurchase_{days}d"] == came
            assert event[f"repurchase_{days}d_delay"] == (min(later) if came else None)


def feature_columns(found: RealSet, table: pa.Table) -> dict[str, list[Any]]:
    schema = found.schema
    names = [f.name for f in (*schema.dense, *schema.sparse, *schema.sequences)]
    return {name: table.column(name).to_pylist() for name in names}


@pytest.mark.parametrize(
    ("name", "column", "size"),
    [
        ("deskdrop", "timestamp", 60_000),
        ("online_retail", "invoice_date", 541_909),
        ("taobao_2h", "timestamp", 60_000),
        ("movielens", "timestamp", 60_000),
    ],
)
def test_what_comes_later_changes_no_feature(name: str, column: str, size: int) -> None:
    """Without the source's later half, every event of the first half has the same features."""
    found, (lines, *rest) = SETS[name], source(name)
    order = pc.sort_indices(lines[column])
    lines = lines.take(order).slice(0, size)
    middle = lines[column][size // 2]
    early = lines.filter(pc.less(lines[column], middle))
    whole, cut = found.build(lines, *rest), found.build(early, *rest)
    count = len(cut)
    assert count > 100
    assert feature_columns(found, whole.slice(0, count)) == feature_columns(found, cut)


def test_hotel_histories_know_no_later_cancellation() -> None:
    """Bookings later than a day, and cancellations that come on it or after, change no feature up to that day."""
    found, (bookings,) = SETS["hotel_bookings"], source("hotel_bookings")
    booked = np.array(bookings["booking_date"].cast(pa.int32()))
    delay = np.array(pc.fill_null(bookings["cancel_delay_days"], 10_000))
    day = 16_900
    flip = booked + delay >= day  # not cancelled by the day: all of them cancel, at once or after it
    everyone = pa.array(np.ones(len(booked), np.int64))
    other = bookings.set_column(bookings.column_names.index("is_canceled"), "is_canceled", everyone)
    fresh = np.where(flip, np.maximum(day - booked, 0), delay).astype(np.int32)
    other = other.set_column(other.column_names.index("cancel_delay_days"), "cancel_delay_days", pa.array(fresh))
    before, after = found.build(bookings), found.build(other)
    count = int((np.array(before["time"]) <= day * DAY * 1000).sum())
    assert count > 10_000
    assert feature_columns(found, before.slice(0, count)) == feature_columns(found, after.slice(0, count))
    assert feature_columns(found, before) != feature_columns(found, after)


def test_movielens_by_user_ends_with_each_users_last_fifth(cache: Path) -> None:
    ratings = source("movielens")[0].to_pylist()
    log = movielens(cache=cache, split="user")
    batch = log.read()
    counts = {u: int(n) for u, n in zip(*np.unique([r["user_id"] for r in ratings], return_counts=True))}
    held = sum(n // 5 for n in counts.values())
    test = batch.rows(len(log) - held, len(log))
    found = {u: int(n) for u, n in zip(*np.unique(test.user.numpy(), return_counts=True))}
    assert found == {u: n // 5 for u, n in counts.items() if n >= 5}
    times: dict[int, list[int]] = {}
    for rating in ratings:
        times.setdefault(rating["user_id"], []).append(rating["timestamp"])
    shift = ratings[-1]["timestamp"] - ratings[0]["timestamp"] + 1
    for user in (1, 196, 943):
        mine = np.sort(test.time[test.user == user].numpy() // 1000 - shift)
        assert mine.tolist() == sorted(times[user])[-len(mine) :]


def test_an_absent_set_says_where_it_comes_from(tmp_path: Path) -> None:
    for name, words in {"deskdrop": "Kaggle", "online_retail": "UCI", "taobao_2h": "Tianchi"}.items():
        with pytest.raises(DataError, match=f"{name}/.*parquet: cannot be read .*{words}"):
            SETS[name].open(tmp_path, cache=tmp_path / "cache")


def test_a_stream_without_an_outcome_is_refused_by_training(cache: Path, tmp_path: Path) -> None:
    pytest.importorskip("pydantic")
    from octavo.config import load_config
    from octavo.training import TrainingError
    from octavo.training.trainer import Trainer

    config = load_config(Path(__file__).parents[2] / "examples" / "taobao_2h.yaml")
    with pytest.raises(TrainingError, match=r"taobao_2h-.*: has no label, so nothing can be learned"):
        Trainer(config, opened("taobao_2h", cache), tmp_path)
