"""Windows, anchors and maturation: a label is what was known at the time asked."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings

from octavo.data import AdsWorld, DataError, EventLog, Label, Schema, encode_events, encode_table
from octavo.data.durations import parse_duration
from octavo.data.labels import labels_as_of
from octavo.data.schema_file import load_schema, save_schema

HOUR, DAY = 3_600, 86_400
CLICK = Label("click", "click_delay", windows=("2h",))
BUY = Label("buy", "buy_delay", anchor="click", windows=("1d", "7d"))
SCHEMA = Schema(labels=(CLICK, BUY))
NONE = None


def table(rows: list[tuple], time: int = 0) -> pa.Table:
    """Rows of (click, its delay, buy, its delay) in seconds, all at ``time`` ms."""
    click, click_delay, buy, buy_delay = (list(column) for column in zip(*rows, strict=True))
    return pa.table(
        {
            "time": pa.array([time] * len(rows), pa.int64()),
            "id": pa.array(range(len(rows)), pa.int64()),
            "click": pa.array(click, pa.int8()),
            "click_delay": pa.array(click_delay, pa.float64()),
            "buy": pa.array(buy, pa.int8()),
            "buy_delay": pa.array(buy_delay, pa.float64()),
        }
    )


ROWS = [
    (1, 60.0, 1, 60.0 + DAY),  # exactly a day after its click
    (1, 60.0, 1, 61.0 + DAY),
    (1, 60.0, 1, 60.0 + 8 * DAY),  # beyond every window
    (1, 60.0, 0, NONE),
    (0, NONE, 0, NONE),
    (1, 3.0 * HOUR, 1, 4.0 * HOUR),  # clicked after the click's own window
    (None, NONE, None, NONE),
]


def lists(labels) -> dict[str, list]:
    return {head: [None if np.isnan(v) else v for v in column.tolist()] for head, column in labels.items()}


def test_windows_count_from_the_anchor() -> None:
    assert SCHEMA.heads == ["click@2h", "buy@1d", "buy@7d"]
    assert SCHEMA.tasks == ["click", "buy"]
    batch = encode_table(SCHEMA, table(ROWS))
    assert lists(batch.labels) == {
        "click@2h": [1, 1, 1, 1, 0, 0, None],
        "buy@1d": [1, 0, 0, 0, 0, 0, None],
        "buy@7d": [1, 1, 0, 0, 0, 0, None],
    }
    assert sorted(batch.delay) == ["buy", "click"]
    from_the_event = Schema(labels=(Label("buy", "buy_delay", windows=("1d",)),))
    assert lists(encode_table(from_the_event, table(ROWS)).labels) == {"buy@1d": [0, 0, 0, 0, 0, 1, None]}


def test_a_label_is_what_was_known_when_asked() -> None:
    def seen(seconds: float) -> dict[str, list]:
        return lists(encode_table(SCHEMA, table(ROWS), as_of=round(seconds * 1000)).labels)

    nothing = [None] * 7
    assert seen(59) == {"click@2h": nothing, "buy@1d": nothing, "buy@7d": nothing}
    assert seen(60)["click@2h"] == [1, 1, 1, 1, None, None, None]
    closed = seen(2 * HOUR)  # no click came, so no purchase counts
    assert closed["click@2h"] == [1, 1, 1, 1, 0, 0, None]
    assert closed["buy@1d"] == closed["buy@7d"] == [None, None, None, None, 0, 0, None]
    assert seen(60 + DAY)["buy@1d"] == [1, 0, 0, 0, 0, 0, None]
    assert seen(60 + DAY)["buy@7d"] == [1, None, None, None, 0, 0, None]
    assert seen(60 + 7 * DAY)["buy@7d"] == [1, 1, 0, 0, 0, 0, None]
    delay = encode_table(SCHEMA, table(ROWS), as_of=(60 + DAY) * 1000).delay["buy"]
    assert lists({"buy": delay})["buy"] == [60 + DAY, None, None, None, None, 4 * HOUR, None]
    with pytest.raises(DataError, match="event at row 0 is of 5000 ms, after as_of=4999"):
        encode_table(SCHEMA, table(ROWS, time=5000), as_of=4999)


def test_an_outcome_without_a_window_is_never_known_not_to_come() -> None:
    schema = Schema(labels=(Label("click", "click_delay"), Label("buy")))
    assert lists(encode_table(schema, table(ROWS), as_of=10**12).labels)["click"] == [1, 1, 1, 1, None, 1, None]
    assert lists(encode_table(schema, table(ROWS)).labels)["click"] == [1, 1, 1, 1, 0, 1, None]
    assert lists(encode_table(schema, table(ROWS), as_of=0).labels)["buy"] == [1, 1, 1, 0, 0, 1, None]  # known at once
    assert schema.wait_ms("click") is None
    assert schema.wait_ms("buy") == 0


def test_how_long_a_head_waits() -> None:
    assert SCHEMA.wait_ms("click@2h") == 2 * HOUR * 1000
    assert SCHEMA.wait_ms("buy@7d") == (2 * HOUR + 7 * DAY) * 1000
    unbounded = Schema(labels=(Label("click", "click_delay"), BUY))
    assert unbounded.wait_ms("buy@1d") is None
    with pytest.raises(KeyError):
        SCHEMA.wait_ms("buy")


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_known_label_never_changes_and_the_last_is_final(data) -> None:
    events = data.draw(st.integers(1, 12))
    g = np.random.default_rng(data.draw(st.integers(0, 1 << 30)))
    click = g.choice([0.0, 1.0, np.nan], events, p=[0.3, 0.6, 0.1])
    click_delay = np.where(click > 0, g.exponential(HOUR, events), np.nan)
    buy = np.where(click > 0, g.integers(0, 2, events), np.where(np.isnan(click), np.nan, 0.0))
    buy_delay = np.where(buy > 0, click_delay + g.exponential(2 * DAY, events), np.nan)
    outcomes, delays = {"click": click, "buy": buy}, {"click": click_delay, "buy": buy_delay}
    click_windows = data.draw(st.sampled_from([(), ("1h",), ("30m", "2h")]))
    schema = Schema(labels=(Label("click", "click_delay", windows=click_windows), BUY))
    final, _ = labels_as_of(schema, outcomes, delays, None, "test")
    moments = np.sort(g.exponential(2 * DAY, 6))
    before: dict[str, np.ndarray] = {head: np.full(events, np.nan) for head in schema.heads}
    for moment in moments:
        now, known_delays = labels_as_of(schema, outcomes, delays, np.full(events, moment), "test")
        for head in schema.heads:
            known = ~np.isnan(before[head])
            assert np.array_equal(now[head][known], before[head][known])
            known = ~np.isnan(now[head])
            assert np.array_equal(now[head][known], final[head][known])
        for task, delay in known_delays.items():
            assert np.array_equal(delay, np.where(delays[task] <= moment, delays[task], np.nan), equal_nan=True)
        before = now
    for head in schema.heads:
        wait = schema.wait_ms(head)
        if wait is not None:
            at_last, _ = labels_as_of(schema, outcomes, delays, np.full(events, wait / 1000), "test")
            assert np.array_equal(at_last[head], final[head], equal_nan=True)


BAD_ROWS = [
    ((1, 60.0, 1, NONE), "column 'buy_delay': null at row 1, where 'buy' is 1"),
    ((1, 60.0, 0, 70.0), "column 'buy_delay': 70 s at row 1, where 'buy' is 0"),
    ((1, 60.0, NONE, 70.0), "column 'buy_delay': 70 s at row 1, where 'buy' is null"),
    ((0, NONE, 1, 70.0), "'buy' is 1 at row 1, but its anchor 'click' is 0"),
    ((None, NONE, 1, 70.0), "'buy' is 1 at row 1, but its anchor 'click' is null"),
    ((1, NONE, 0, NONE), "column 'click_delay': null at row 1, where 'click' is 1"),
    ((1, 60.0, 1, 59.0), r"column 'buy_delay': 59 s at row 1 is before the anchor 'click' \(60 s\)"),
]


@pytest.mark.parametrize(("row", "message"), BAD_ROWS, ids=range(len(BAD_ROWS)))
def test_outcomes_that_contradict_their_delays(row, message) -> None:
    with pytest.raises(DataError, match=f"somewhere: {message}"):
        encode_table(SCHEMA, table([ROWS[0], row]), "somewhere")


BAD_LABELS = [
    (lambda: Label("a", windows=("1d",)), "label 'a': windows need delay"),
    (lambda: Label("a", "d", anchor="b"), "label 'a': an anchor starts the clock of windows"),
    (lambda: Label("a", "d", windows=("24h", "1d")), "label 'a': windows 24h, 1d: expected distinct ones above 0"),
    (lambda: Label("a", "d", windows=("0d",)), "label 'a': windows 0d: expected distinct ones above 0"),
    (lambda: Label("a", "d", windows=("1 day",)), "label 'a': windows: found '1 day'; expected a number and a unit"),
    (lambda: Schema(labels=(BUY,)), "label 'buy': anchor 'click' is not a task; expected one of: buy"),
    (lambda: Schema(labels=(Label("click"), BUY)), "label 'buy': anchor 'click' has no delay"),
    (
        lambda: Schema(labels=(Label("a", "d", "b", ("1d",)), Label("b", "e", "a", ("1d",)))),
        "label 'b': anchor 'a' leads back to it",
    ),
]


@pytest.mark.parametrize(("make", "message"), BAD_LABELS, ids=range(len(BAD_LABELS)))
def test_labels_that_make_no_sense(make, message) -> None:
    with pytest.raises(DataError, match=message):
        make()


def test_durations() -> None:
    for text, ms in (("500ms", 500), ("90s", 90_000), ("30m", 1_800_000), ("12h", 43_200_000), ("7d", 7 * DAY * 1000)):
        assert parse_duration(text, "x") == ms
    for text in ("-1d", "1.5h", "d", "", 7):
        with pytest.raises(DataError, match="x: found"):
            parse_duration(text, "x")  # type: ignore[arg-type]


def test_schemas_round_trip_and_old_ones_keep_their_fingerprint(tmp_path) -> None:
    assert Schema.from_json(SCHEMA.to_json()) == SCHEMA
    save_schema(SCHEMA, tmp_path / "schema.yaml")
    assert load_schema(tmp_path / "schema.yaml")[0] == SCHEMA
    plain = Schema(labels=(Label("click", "click_delay"),))
    assert plain.to_json()["labels"] == [{"task": "click", "delay": "click_delay"}]
    assert plain.fingerprint != Schema(labels=(CLICK,)).fingerprint


def test_serving_needs_no_labels() -> None:
    batch = encode_events(SCHEMA, [{}, {"id": 3}])
    assert all(bool(column.isnan().all()) for column in batch.labels.values())


def test_a_log_knows_until_when_it_was_observed(tmp_path) -> None:
    world = AdsWorld("delay", seed=3)
    end = world.time(0.05)
    log = EventLog.write(tmp_path / "log", world.schema, world.tables(days=0.05), observed_until=end)
    assert log.observed_until == EventLog(log.path).observed_until == end
    assert world.write(tmp_path / "hidden", days=0.01, observed_until="end").observed_until == world.time(0.01)
    windowed = log.with_labels(
        Label("click", "click_delay", windows=("1m", "1h")),
        Label("conversion", "conversion_delay", anchor="click", windows=("1m",)),
    )
    batch = windowed.read()
    age = log.observed_until - batch.time
    assert bool(batch.labels["click@1m"][age >= 60_000].isfinite().all())
    young = batch.labels["click@1m"][age < 60_000]
    assert bool((young.isnan() | (young == 1)).all())
    assert bool(young.isnan().any())
    middle = int(batch.time[len(batch) // 2])
    at = int((batch.time <= middle).sum())
    earlier = windowed.read(0, at, as_of=middle)
    for head, column in earlier.labels.items():
        known = column.isfinite()
        assert bool((column[known] == batch.labels[head][:at][known]).all())
    streamed = np.concatenate([b.labels["click@1m"] for b in windowed.batches(64, 0, at, as_of=middle)])
    assert np.array_equal(streamed, earlier.labels["click@1m"].numpy(), equal_nan=True)
    with pytest.raises(DataError, match="the log was collected at .* and knows nothing later"):
        windowed.read(0, 1, as_of=log.observed_until + 1)
    with pytest.raises(DataError, match="after as_of="):
        windowed.read(as_of=middle)
    with pytest.raises(DataError, match="column 'sale' is missing"):
        log.with_labels(Label("sale"))
    with pytest.raises(DataError, match="observed_until: 5 ms is before the last event"):
        EventLog.write(tmp_path / "early", log.schema, [log.columns(log.column_names)], observed_until=5)


def test_an_outcome_without_its_delay_is_refused_without_windows_too() -> None:
    schema = Schema(labels=(Label("sale", "sale_delay"),))
    nan = float("nan")
    for outcome, delay, says in (
        ([0.0, 1.0], [nan, nan], "column 'sale_delay': null at row 1, where 'sale' is 1"),
        ([0.0, 1.0], [4.0, 5.0], "column 'sale_delay': 4 s at row 0, where 'sale' is 0"),
    ):
        with pytest.raises(DataError, match=says):
            labels_as_of(schema, {"sale": np.array(outcome)}, {"sale": np.array(delay)}, None, "log")


def test_a_window_on_one_task_leaves_the_others_as_they_were_collected(tmp_path) -> None:
    rows = [(0, NONE, 0, NONE), (1, 2.0, 1, 3.0), (NONE, NONE, NONE, NONE), (1, 2.0, 0, NONE)]
    plain = Schema(labels=(Label("click", "click_delay"), Label("buy", "buy_delay")))
    log = EventLog.write(tmp_path / "log", plain, [table(rows)], observed_until=2 * HOUR * 1000)
    clicks = [0, 1, None, 1]
    assert lists(log.read().labels) == {"click": clicks, "buy": [0, 1, None, 0]}
    windowed = log.with_labels(Label("click", "click_delay"), Label("buy", "buy_delay", windows=("1h", "1d")))
    assert lists(windowed.read().labels) == {
        "click": clicks,
        "buy@1h": [0, 1, None, 0],
        "buy@1d": [None, 1, None, None],
    }
    anchored = log.with_labels(Label("click", "click_delay"), Label("buy", "buy_delay", "click", ("1h", "1d")))
    assert lists(anchored.read().labels)["buy@1d"] == [0, 1, None, None]  # no click ever came: none can follow
    assert lists(anchored.read(as_of=HOUR * 1000).labels)["click"] == [None, 1, None, 1]
