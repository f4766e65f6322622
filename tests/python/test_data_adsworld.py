"""AdsWorld as a stream and as a log: what depends on what, what it writes, what it refuses."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("pydantic")

import pyarrow as pa
import pyarrow.parquet as pq

from octavo.config import ConfigError
from octavo.config.sections import Section
from octavo.data import PRESETS, AdsWorld, AdsWorldConfig, DataError, EventLog, bayes_optimum, encode_table

SMALL: dict[str, Any] = {
    "users": {"initial": 500, "per_day": 100.0, "lifetime_days": 5.0},
    "items": {"initial": 120, "per_day": 30.0, "lifetime_days": 3.0},
    "advertisers": {"count": 17},
    "domains": [{"name": "feed", "ctr": 0.2, "cvr": 0.3}, {"name": "search", "offset": 0.5, "share": 0.5}],
    "traffic": {
        "impressions_per_day": 30_000,
        "tick_minutes": 37.0,
        "requests_per_session": 2.5,
        "shown": 3,
        "candidates": 7,
        "carry": 0.5,
        "carry_sessions": 0.4,
        "retrieval": 0.5,
        "ranking": 1.0,
        "loyalty": 0.3,
    },
    "effects": {"signals": 3, "signal_sd": 0.5, "position": 0.2, "hour": 0.2, "price": -0.2},
    "drift": {"rotation": 0.3, "click_amplitude": 0.2},
    "shifts": [{"day": 0.4, "reshuffle": 0.5, "delay_factor": 3.0, "advertisers": 0.5, "click": 0.1}],
    "poison": {"share": 0.1},
    "history": 5,
}


NEVER = {"kind": "lognormal", "median": 1e9, "sigma": 0.1}


def table_of(world: AdsWorld, **length: Any) -> pa.Table:
    return pa.concat_tables(list(world.tables(**length))).combine_chunks()


def digest(table: pa.Table) -> str:
    content = hashlib.sha256()
    for name, column in zip(table.column_names, table.combine_chunks().columns):
        content.update(f"{name} {column.type} {column.to_pylist()!r}".encode())
    return content.hexdigest()


def test_equal_seeds_give_equal_bytes_and_others_do_not(tmp_path: Path) -> None:
    one, two = (AdsWorld(SMALL, seed=3).write(tmp_path / name, events=9000) for name in "ab")
    assert one.fingerprint == two.fingerprint
    for first, second in zip(one.files, two.files, strict=True):
        assert (one.path / first.name).read_bytes() == (two.path / second.name).read_bytes()
    other = AdsWorld(SMALL, seed=4).write(tmp_path / "c", events=9000)
    assert other.fingerprint != one.fingerprint
    a, b = np.array(one.columns(["user"])["user"]), np.array(other.columns(["user"])["user"])
    assert (a == b).mean() < 0.1


def test_a_world_may_be_played_again() -> None:
    world = AdsWorld(SMALL, seed=1)
    first = table_of(world, events=5000)
    running = world.tables(events=20_000, rows=100)
    next(running)
    assert table_of(world, events=5000).equals(first)


def test_the_first_events_do_not_depend_on_how_many_follow() -> None:
    world = AdsWorld(SMALL, seed=2)
    whole = table_of(world, events=25_000)
    for events in (1, 2, 331, 7919):
        assert table_of(world, events=events).equals(whole.slice(0, events).combine_chunks())
    day = table_of(world, days=0.7)
    assert len(day) < len(whole)
    assert day.equals(whole.slice(0, len(day)).combine_chunks())
    later = np.array(whole.column("time"))[len(day) :]
    assert later.min() >= world.time(0.7) > np.array(day.column("time")).max()


def test_the_size_of_the_tables_changes_nothing() -> None:
    world = AdsWorld(SMALL, seed=2)
    whole = table_of(world, events=6000)
    for rows in (1, 997, 4096, 100_000):
        events = 200 if rows == 1 else 6000
        parts = list(world.tables(events=events, rows=rows))
        assert [len(part) for part in parts[:-1]] == [rows] * (len(parts) - 1)
        assert 1 <= len(parts[-1]) <= rows
        assert pa.concat_tables(parts).combine_chunks().equals(whole.slice(0, events).combine_chunks())


def test_a_knob_of_one_stage_leaves_the_others_random_numbers_alone() -> None:
    """Worlds of one seed that differ in a knob are paired: the same people ask the same things at the same times."""
    plain = table_of(AdsWorld(SMALL, seed=5), events=8000)
    for change in ({"poison": {"share": 0.5}}, {"history": 0}, {"effects": {**SMALL["effects"], "signals": 1}}):
        changed = table_of(AdsWorld({**SMALL, **change}, seed=5), events=8000)
        for name in ("time", "session", "user", "item", "position"):
            assert changed.column(name).equals(plain.column(name)), (change, name)


def test_the_log_is_what_reality_writes(tmp_path: Path) -> None:
    world = AdsWorld(SMALL, seed=0)
    log = world.write(tmp_path / "log", events=10_007)
    assert len(log) == 10_007
    assert log.schema == world.schema
    assert log.schema.tasks == ["click", "conversion"]
    table = log.columns(log.column_names)
    assert table.equals(table_of(world, events=10_007).cast(table.schema))
    truth = [name for name in log.column_names if name.startswith("_")]
    assert truth == ["_p_click", "_p_conversion", "_conversion_wait", "_law", "_wait_p50", "_wait_p90", "_poisoned"]
    assert not set(truth) & set(log.schema.columns())
    assert "session" not in log.schema.columns()
    assert (np.array(table.column("id")) == np.arange(10_007)).all()
    times, request = np.array(table.column("time")), np.array(table.column("request"))
    assert (np.diff(times) >= 0).all()
    assert set(np.diff(request).tolist()) == {0, 1}
    assert np.unique(request, return_counts=True)[1][:-1].tolist() == [3] * int(request[-1])
    batch = log.read()
    assert batch.dense.shape == (10_007, 8)
    assert float(batch.dense.abs().max()) < 20
    assert batch.sparse.bags == 7 * 10_007
    assert batch.sequences["history"].values.numel() > 0
    for task in ("click", "conversion"):
        happened = batch.labels[task].numpy() == 1
        assert (np.isnan(batch.delay[task].numpy()) == ~happened).all()
    click, conversion = (batch.labels[task].numpy() for task in ("click", "conversion"))
    assert (conversion <= click).all()
    assert 0 < conversion.sum() < click.sum() < len(click)
    converted = conversion == 1
    assert (batch.delay["conversion"].numpy()[converted] >= batch.delay["click"].numpy()[converted]).all()


def test_candidate_sets_go_with_the_log(tmp_path: Path) -> None:
    world = AdsWorld(SMALL, seed=6)
    log = world.write(tmp_path / "log", events=5000, candidates=tmp_path / "sets" / "candidates.parquet")
    assert log.fingerprint == world.write(tmp_path / "alone", events=5000).fingerprint
    found = pq.read_table(tmp_path / "sets" / "candidates.parquet")
    assert found.equals(pa.concat_tables(world.candidates(events=5000)).combine_chunks())
    requests = -(-5000 // 3)
    assert len(found) == 7 * requests
    assert [path.name for path in (tmp_path / "sets").iterdir()] == ["candidates.parquet"]
    items = np.array(found.column("item")).reshape(-1, 7)
    assert (np.diff(np.sort(items, axis=1), axis=1) > 0).all()  # nothing twice in one set
    position = found.column("position").to_numpy().reshape(-1, 7)
    shown = ~np.isnan(position)
    assert (shown.sum(1) == 3).all()
    names = ("request", "position", "item", "user", "advertiser")
    seen = log.columns(names).to_pydict()
    rows = {(request, place): rest for request, place, *rest in zip(*(seen[name] for name in names))}
    listed = found.to_pydict()
    for at in np.flatnonzero(shown.ravel()).tolist():
        key = (listed["request"][at], listed["position"][at])
        if key in rows:
            assert rows.pop(key) == [listed[name][at] for name in names[2:]]
    assert not rows
    affinity = np.array(found.column("_affinity")).reshape(-1, 7)
    assert affinity[shown].mean() > affinity[~shown].mean() + 0.3  # ranking prefers what is liked
    with pytest.raises(DataError, match=r"candidates\.parquet: exists; remove it"):
        world.write(tmp_path / "again", events=10, candidates=tmp_path / "sets" / "candidates.parquet")
    with pytest.raises(DataError, match="log: exists"):
        world.write(tmp_path / "log", events=10, candidates=tmp_path / "sets" / "new.parquet")
    retried = world.write(tmp_path / "retried", events=5000, candidates=tmp_path / "sets" / "candidates.parquet")
    assert retried.fingerprint == log.fingerprint  # as after a kill between the sets and the log
    for paths in ({"path": "file:///log"}, {"path": tmp_path / "x", "candidates": "file:///sets.parquet"}):
        with pytest.raises(DataError, match="a URI, but logs are written on this machine"):
            world.write(events=10, **paths)
    assert [path.name for path in (tmp_path / "sets").iterdir()] == ["candidates.parquet"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"users": {"initial": 0}}, r"users\.initial: .*greater than 0.*, found 0"),
        ({"itmes": {}}, r"unknown key 'itmes'; did you mean items or tastes\?"),
        ({"traffic": {"carri": 0.5}}, r"unknown key 'traffic\.carri'; did you mean traffic\.carry"),
        ({"shifts": [{"day": 1.0, "clik": 1.0}]}, r"unknown key 'shifts\.0\.clik'; did you mean shifts\.0\.click\?"),
        (
            {"traffic": {"gap": {"kind": "lognormal", "mean": 3.0}}},
            r"unknown key 'traffic\.gap\.mean'.*median",
        ),
        ({"clicks": {"delay": {"kind": "gamma"}}}, r"clicks\.delay: .*'gamma'.*'exponential'"),
        ({"traffic": {"shown": 3}}, r"traffic: shown: 3 of 1 candidates; raise candidates or lower shown"),
        ({"traffic": {"impressions_per_day": 1e9}}, r"tick_minutes: a tick would hold 4.17e\+07.*lower it"),
        ({"traffic": {"tick_minutes": 1e-9}}, r"tick_minutes: 1e-09 is below a millisecond; raise it"),
        ({"traffic": {"carry": 1.5}}, r"traffic\.carry: .*less than or equal to 1, found 1\.5"),
        ({"tastes": {"dim": 5}}, r"tastes: dim: expected an even number"),
        ({"domains": []}, r"domains: .*at least 1"),
        ({"domains": [{"name": "a", "offset": 1.0}]}, r"domains: the first, 'a', needs ctr"),
        ({"domains": [{"name": "a"}]}, r"domain 'a': give ctr or offset, one of them"),
        ({"domains": [{"name": "a", "ctr": 0.1}] * 2}, r"domains: 'a' is there twice; names must differ"),
        ({"shifts": [{"day": 1.0, "domain": "x"}]}, r"shifts\.0\.domain: no domain 'x'; there are feed"),
        ({"items": {"initial": 9}, "traffic": {"candidates": 5}}, r"items\.initial: 9 items for 5 candidates"),
        ({"poison": {"from_day": 2.0, "until_day": 1.0}}, r"until_day: 1\.0 is not after from_day 2\.0; raise it"),
        ({"conversions": {"laws": []}}, r"conversions\.laws: .*at least 1"),
        (
            {
                "conversions": {
                    "window_days": 1e-3,
                    "laws": [{"law": {"kind": "lognormal", "median": 1e9, "sigma": 0.1}}],
                }
            },
            r"conversions\.window_days: advertiser 0 has no conversions within 0\.001 days; raise it",
        ),
        (
            {"clicks": {"window_hours": 1e-3, "delay": NEVER}},
            r"clicks: window_hours: no click comes within 0\.001 hours; raise it or shorten delay",
        ),
        ({"drift": {"rotation": float("nan")}}, r"drift\.rotation: .*finite number"),
    ],
)
def test_configurations_that_cannot_be_used_say_why(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AdsWorld(change)


def test_other_refusals(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"preset 'referense': .*mean reference\? \(there are reference, drift"):
        AdsWorld("referense")
    with pytest.raises(ValueError, match="seed: expected 0 or more, found -1"):
        AdsWorld(SMALL, seed=-1)
    world = AdsWorld(SMALL)
    for length in ({}, {"events": 5, "days": 1.0}):
        with pytest.raises(ValueError, match="events, days: give one of them"):
            world.tables(**length)
        with pytest.raises(ValueError, match="events, days: give one of them"):
            world.candidates(**length)
    with pytest.raises(ValueError, match="events: expected at least 1, found 0"):
        world.tables(events=0)
    with pytest.raises(ValueError, match="days: expected a number above 0, found nan"):
        world.tables(days=float("nan"))
    with pytest.raises(ValueError, match="rows: expected at least 1, found 0"):
        world.tables(events=5, rows=0)
    with pytest.raises(ValueError, match='observed_until="end" needs days'):
        world.write(tmp_path / "log", events=5, observed_until="end")
    dying = {**SMALL, "items": {"initial": 120, "lifetime_days": 0.05}}
    with pytest.raises(DataError, match=r"items: \d+ alive on day 0\.\d+, 14 needed; raise items\.per_day or lifetime"):
        list(AdsWorld(dying).tables(days=1.0))


@pytest.mark.parametrize(
    "change",
    [
        {"users": {"initial": 1}},
        {"items": {"initial": 2}, "advertisers": {"count": 1}},
        {"tastes": {"dim": 2, "segments": 1, "categories": 1, "cluster": 1.0, "strength": 0.0}},
        {"traffic": {"impressions_per_day": 3.0, "tick_minutes": 30.0}},  # nearly every tick is empty
        {"traffic": {"candidates": 64, "shown": 64}, "items": {"initial": 128, "zipf": 2.0}},
        {"history": 1, "users": {"initial": 3}},
        {"start_ms": 0},
        {"conversions": {"window_days": 1e-4}, "clicks": {"window_hours": 1e-4}},
    ],
)
def test_edges_of_the_knobs(change: dict[str, Any]) -> None:
    world = AdsWorld(change, seed=1)
    table = table_of(world, events=40)
    assert len(table) == 40
    batch = encode_table(world.schema, table)
    assert (np.diff(batch.time.numpy()) >= 0).all()
    assert np.isfinite(batch.dense.numpy()).all()


def test_the_configuration_reads_back() -> None:
    config = AdsWorld(SMALL).config
    assert AdsWorldConfig.model_validate(config.model_dump(mode="json")) == config
    assert AdsWorld(config).config is config


def test_hundreds_of_thousands_a_second() -> None:
    world = AdsWorld("reference")
    best = 0.0
    for _ in range(3):  # the best: other processes may share the core
        begin, events = time.process_time(), 0
        for table in world.tables(events=300_000):
            events += len(table)
        best = max(best, events / (time.process_time() - begin))
    assert best > 100_000, f"{best:.0f} impressions/s"


def test_memory_is_bounded_by_the_tick() -> None:
    """Five days take no more than one, beyond what the ids born meanwhile take."""
    world = AdsWorld({**SMALL, "traffic": {**SMALL["traffic"], "impressions_per_day": 60_000}})
    peaks = []
    for days in (1.0, 5.0):
        tracemalloc.start()
        for _ in world.tables(days=days, rows=4096):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]


def test_opening_a_written_log_again(tmp_path: Path) -> None:
    AdsWorld(SMALL).write(tmp_path / "log", days=0.2)
    log = EventLog(tmp_path / "log")
    assert 0.5 < bayes_optimum(log.columns(["_p_click"])["_p_click"]).auc < 1
    assert sum(len(batch) for batch in log.batches(512)) == len(log)


def test_the_page_names_every_knob() -> None:
    page = (Path(__file__).parents[2] / "docs" / "adsworld.md").read_text(encoding="utf-8")
    pending: list[Any] = [AdsWorldConfig]
    for section in pending:
        for name, field in section.model_fields.items():
            assert f"`{name}`" in page, f"{section.__name__}.{name}"
            inner = [*get_args(field.annotation), field.annotation]
            pending += [kind for kind in inner if isinstance(kind, type) and issubclass(kind, Section)]
    assert len(pending) > 12
    for name in PRESETS:
        assert f"| `{name}` |" in page


KILLED = """
import os, signal, sys
from octavo.data import AdsWorld, log_writer

def kill(path):
    os.kill(os.getpid(), signal.SIGKILL)

log_writer.sync_directory = kill  # with the log's last file written, before it is put in place
AdsWorld("reference").write(sys.argv[1], events=200, candidates=sys.argv[2])
"""


def test_a_kill_leaves_nothing_that_blocks_a_retry(tmp_path: Path) -> None:
    log, sets = tmp_path / "log", tmp_path / "sets.parquet"
    assert subprocess.run([sys.executable, "-c", KILLED, log, sets], check=False).returncode == -signal.SIGKILL
    assert sets.exists()
    assert not log.exists()
    assert len(AdsWorld("reference").write(log, events=200, candidates=sets)) == 200
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "sets.parquet"]


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    program = (
        "import resource, signal, sys\n"
        "from octavo.data import AdsWorld\n"
        "world = AdsWorld('reference')\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "try:\n    world.write(sys.argv[1], events=20_000, candidates=sys.argv[2])\n"
        "except OSError as error:\n    print(error)\n"
    )
    sets = tmp_path / "sets.parquet"
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "log", sets], capture_output=True, text=True,
                          check=True)  # fmt: skip
    assert done.stdout == f"{sets}: cannot be written (File too large); make room and try again\n"
    assert list(tmp_path.iterdir()) == []
