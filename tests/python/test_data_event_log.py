"""EventLog: any position goes on where a pass would have, damage is named, writing is all or nothing."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("pyarrow")

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo._files import content_hash, temporary_directory
from octavo.data import Batch, DataError, Dense, EventLog, Label, Schema, Sparse, encode_table

SCHEMA = Schema(
    dense=(Dense("x"),),
    sparse=(Sparse("kind", rows=5), Sparse("tags", rows=9, multi=True)),
    sequences=(Sparse("recent", rows=9, multi=True),),
    labels=(Label("click", delay="after"),),
    user="user",
)
EVENTS = 103


def events(count: int = EVENTS, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    lists = [rng.integers(0, 9, rng.integers(0, 4)).tolist() for _ in range(count)]
    click, unknown = rng.integers(0, 2, count), rng.random(count) < 0.2
    return pa.table(
        {
            "id": np.arange(count),
            "time": np.sort(rng.integers(0, 40, count)),
            "x": rng.normal(size=count),
            "kind": pa.array(rng.integers(0, 5, count), mask=rng.random(count) < 0.2),
            "tags": pa.array(lists, pa.list_(pa.int64())),
            "recent": pa.array(lists[::-1], pa.list_(pa.int64())),
            "click": pa.array(click, mask=unknown),
            "after": pa.array(rng.random(count), mask=unknown | (click == 0)),
            "user": rng.integers(0, 7, count),
            "_p": rng.random(count),
        }
    )


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> EventLog:
    """103 events in files of 40, 40, 23 and row groups of 16."""
    path = tmp_path_factory.mktemp("log") / "log"
    parts = [events().slice(first, 29) for first in range(0, EVENTS, 29)]
    return EventLog.write(path, SCHEMA, parts, rows_per_file=40, rows_per_group=16)


def columns_of(batch: Batch) -> dict[str, Any]:
    """Per-event values that compare exactly, nan as None."""

    def plain(tensor: torch.Tensor) -> list[Any]:
        return [None if value != value else value for value in tensor.tolist()]

    count = len(batch)
    offsets = batch.sparse.offsets.tolist()
    values = batch.sparse.values.tolist()
    bags = [values[first:last] for first, last in itertools.pairwise(offsets)]
    recent = batch.sequences["recent"]
    order = recent.values.tolist()
    return {
        "dense": batch.dense.tolist(),
        "kind": bags[:count],
        "tags": bags[count:],
        "recent": [order[first:last] for first, last in itertools.pairwise(recent.offsets.tolist())],
        "click": plain(batch.labels["click"]),
        "after": plain(batch.delay["click"]),
        "user": batch.user.tolist(),
        "time": batch.time.tolist(),
        "id": batch.id.tolist(),
    }


def joined(batches: Iterable[Batch]) -> dict[str, list[Any]]:
    parts = [columns_of(batch) for batch in batches]
    return {name: [value for part in parts for value in part[name]] for name in parts[0]}


def test_files_and_index(log: EventLog) -> None:
    assert len(log) == EVENTS
    assert [file.rows for file in log.files] == [40, 40, 23]
    assert log.schema == SCHEMA
    time = events().column("time").to_pylist()
    assert [(file.first_time, file.last_time) for file in log.files] == [
        (time[0], time[39]), (time[40], time[79]), (time[80], time[102])
    ]  # fmt: skip
    assert sorted(entry.name for entry in log.path.iterdir()) == [
        "events-00000.parquet", "events-00001.parquet", "events-00002.parquet", "log.json"
    ]  # fmt: skip
    assert [entry.name for entry in log.path.parent.iterdir()] == ["log"]


def test_one_pass_is_the_table(log: EventLog) -> None:
    wanted = columns_of(encode_table(SCHEMA, events()))
    assert joined(log.batches(10)) == wanted
    assert columns_of(log.read()) == wanted
    assert [len(batch) for batch in log.batches(10)] == [10] * 10 + [3]
    assert [len(batch) for batch in log.batches(1000)] == [EVENTS]


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_position_goes_on_as_one_pass(log: EventLog, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 120))
    start = data.draw(st.integers(0, EVENTS))
    stop = data.draw(st.integers(start, EVENTS))
    wanted = {name: values[start:stop] for name, values in columns_of(encode_table(SCHEMA, events())).items()}
    batches = list(log.batches(size, start=start, stop=stop))
    assert all(len(batch) == size for batch in batches[:-1])
    assert sum(map(len, batches)) == stop - start
    if batches:
        assert joined(batches) == wanted
    assert columns_of(log.read(start, stop)) == wanted


def test_columns_outside_the_schema(log: EventLog) -> None:
    assert log.columns(["_p"], 37, 83).column("_p").to_pylist() == events().column("_p").to_pylist()[37:83]
    assert len(log.columns(["_p"], 5, 5)) == 0
    with pytest.raises(DataError, match=r"events-00000\.parquet: column '_q' is missing; it has id, time"):
        log.columns(["_q"])


def test_reads_only_the_row_groups_it_needs(log: EventLog, monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[int] = []
    read = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_group", lambda self, n, **kw: (groups.append(n), read(self, n, **kw))[1]
    )
    assert [len(batch) for batch in log.batches(8, start=60, stop=75)] == [8, 7]
    assert groups == [1, 2]


@pytest.mark.parametrize(("start", "stop"), [(-1, None), (5, 4), (0, EVENTS + 1), (EVENTS + 1, None)])
def test_refuses_positions_outside(log: EventLog, start: int, stop: int | None) -> None:
    for read in (
        lambda: log.batches(8, start, stop),
        lambda: log.read(start, stop),
        lambda: log.columns(["id"], start, stop),
    ):
        with pytest.raises(ValueError, match=f"expected 0 <= start <= stop <= {EVENTS} events"):
            read()
    with pytest.raises(ValueError, match="batch_size: expected at least 1, found 0"):
        log.batches(0)


def test_equal_events_have_equal_fingerprints(log: EventLog, tmp_path: Path) -> None:
    cut = {"rows_per_file": 40, "rows_per_group": 16}
    assert EventLog.write(tmp_path / "same", SCHEMA, [events()], **cut).fingerprint == log.fingerprint
    assert EventLog.write(tmp_path / "other", SCHEMA, [events(seed=1)], **cut).fingerprint != log.fingerprint


def test_writes_from_parquet_files(log: EventLog, tmp_path: Path) -> None:
    for number, first in enumerate((0, 50)):
        pq.write_table(
            events().slice(first, 50 if first == 0 else 53), tmp_path / f"{number}.parquet", row_group_size=20
        )
    again = EventLog.write(tmp_path / "log", SCHEMA, [tmp_path / "0.parquet", str(tmp_path / "1.parquet")])
    assert columns_of(again.read()) == columns_of(log.read())


# What is damaged after writing.


@pytest.fixture
def copy(log: EventLog, tmp_path: Path) -> Path:
    return Path(shutil.copytree(log.path, tmp_path / "copy"))


def failing(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        for _ in EventLog(path).batches(16):
            pass
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_log_is_read_from_any_file_system(copy: Path) -> None:
    near, far = EventLog(copy), EventLog(copy.as_uri())
    assert far.path == copy.as_uri()
    assert far.fingerprint == near.fingerprint
    pairs = zip(near.batches(16), far.batches(16), strict=True)
    assert all(columns_of(one) == columns_of(other) for one, other in pairs)
    (copy / "events-00001.parquet").unlink()
    with pytest.raises(DataError, match=r"file:///.*/events-00001\.parquet: missing from the log"):
        EventLog(copy.as_uri())
    with pytest.raises(DataError, match="nowhere://bucket/log: cannot be opened"):
        EventLog("nowhere://bucket/log")


def test_missing_file(copy: Path) -> None:
    (copy / "events-00001.parquet").unlink()
    assert failing(copy) == f"{copy}/events-00001.parquet: missing from the log; write the log again"


@pytest.mark.parametrize("kept", [0, 7, 1000])
def test_truncated_file(copy: Path, kept: int) -> None:
    path = copy / "events-00002.parquet"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:kept])
    assert failing(copy).startswith(f"{path}: truncated or changed: {kept} bytes, {size} were written")


@pytest.mark.parametrize("place", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_one_flipped_bit(copy: Path, place: float) -> None:
    path = copy / "events-00001.parquet"
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    path.write_bytes(content)
    assert failing(copy) == f"{path}: corrupt: its sha256 is not the one in log.json; write the log again"


def test_file_damaged_between_batches(copy: Path) -> None:
    log = EventLog(copy)
    batches = log.batches(16)
    next(batches)
    (copy / "events-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"events-00001\.parquet: truncated or changed: 4 bytes"):
        list(batches)


def test_missing_index(tmp_path: Path) -> None:
    assert failing(tmp_path) == f"{tmp_path}/log.json: not found; expected a directory written by EventLog.write"


@pytest.mark.parametrize(
    ("content", "text"), [("{", "damaged"), ("[]", "log format 'list'"), ('{"format": 9}', "log format 9")]
)
def test_damaged_index(copy: Path, content: str, text: str) -> None:
    (copy / "log.json").write_text(content)
    assert failing(copy).startswith(f"{copy}/log.json: {text}")


def test_changed_schema(copy: Path) -> None:
    index = json.loads((copy / "log.json").read_text())
    index["schema"]["sparse"][0]["rows"] = 4
    (copy / "log.json").write_text(json.dumps(index))
    assert failing(copy) == f"{copy}/log.json: damaged or edited (its own sha256 does not match); write the log again"


def test_index_whose_files_lack_a_column(copy: Path) -> None:
    index = json.loads((copy / "log.json").read_text())
    index["schema"]["dense"][0]["name"] = "y"
    (copy / "log.json").write_text(json.dumps({**index, "sha256": content_hash(index)}))
    assert failing(copy).startswith(f"{copy}/events-00000.parquet: column 'y' is missing; it has id, time, x")


# What is refused before anything is written.


def refused(path: Path, tables: list[Any]) -> str:
    with pytest.raises(DataError) as caught:
        EventLog.write(path / "log", SCHEMA, tables)
    assert "\n" not in str(caught.value)
    assert [entry.name for entry in path.iterdir() if entry.suffix != ".parquet"] == []
    return str(caught.value)


def replaced(name: str, values: Any) -> pa.Table:
    table = events(4)
    return table.set_column(table.column_names.index(name), name, pa.array(values))


def test_refuses_unsorted_time(tmp_path: Path) -> None:
    inside = replaced("time", [1, 3, 2, 4])
    assert refused(tmp_path, [inside]) == "table 0: time falls from 3 to 2 ms; sort the events by time"
    late, early = replaced("time", [5, 6, 7, 8]), replaced("time", [1, 2, 3, 4])
    assert refused(tmp_path, [late, early]) == "table 1: time falls from 8 to 1 ms; sort the events by time"
    pq.write_table(inside, tmp_path / "raw.parquet")
    assert refused(tmp_path, [tmp_path / "raw.parquet"]).startswith(f"{tmp_path}/raw.parquet row group 0: time falls")


def test_refuses_raw_files_it_cannot_read(tmp_path: Path) -> None:
    path = tmp_path / "raw.parquet"
    assert refused(tmp_path, [path]).startswith(f"{path}: not a readable parquet file")
    pq.write_table(events(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert refused(tmp_path, [path]).startswith(f"{path}: not a readable parquet file")
    path.write_bytes(b"")
    assert refused(tmp_path, [path]).startswith(f"{path}: not a readable parquet file")


@pytest.mark.parametrize(
    ("name", "values", "text"),
    [
        ("time", [1, None, 2, 3], "table 0: column 'time': null at row 1"),
        ("kind", [1, 2, 5, 0], "table 0: sparse column 'kind': id 5 is outside 0..4"),
        ("user", [0.5, 1, 2, 3], "table 0: column 'user': expected integers, found double"),
        ("x", [0.5, None, 2, 3], "table 0: dense column 'x': null or nan at row 1"),
    ],
)
def test_refuses_events_the_schema_does_not_take(tmp_path: Path, name: str, values: list[Any], text: str) -> None:
    assert refused(tmp_path, [replaced(name, values)]).startswith(text)


def test_refuses_tables_that_differ(tmp_path: Path) -> None:
    later = replaced("time", [90, 91, 92, 93])
    assert refused(tmp_path, [events(), later.drop_columns("_p")]).startswith(
        "table 1: column '_p' differs from the first"
    )
    assert refused(tmp_path, [events(), later.select(later.column_names[::-1])]).startswith(
        "table 1: their order differs"
    )
    assert refused(tmp_path, [events(), later.drop_columns("x")]).startswith("table 1: column 'x' is missing")


def test_refuses_no_events_and_a_path_that_exists(tmp_path: Path) -> None:
    assert "no events to write" in refused(tmp_path, [])
    assert "no events to write" in refused(tmp_path, [events(0)])
    (tmp_path / "log").mkdir()
    with pytest.raises(DataError, match=r"log: exists; remove it or choose another path"):
        EventLog.write(tmp_path / "log", SCHEMA, [events()])
    with pytest.raises(ValueError, match="rows_per_file, rows_per_group: expected at least 1, found 0"):
        EventLog.write(tmp_path / "new", SCHEMA, [events()], rows_per_file=0)


KILLED = """
import os, signal, sys
import pyarrow as pa
from octavo.data import EventLog, Schema

def tables():
    yield pa.table({"id": [1, 2], "time": [1, 2]})
    os.kill(os.getpid(), signal.SIGKILL)

EventLog.write(sys.argv[1], Schema(), tables(), rows_per_file=1)
"""


WRITES = KILLED.replace("os.kill(os.getpid(), signal.SIGKILL)", "pass")


def test_a_kill_while_writing_leaves_nothing_that_looks_like_a_log(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False).returncode == -9
    assert not path.exists()
    left = [entry for entry in tmp_path.iterdir() if entry.name.startswith(".log.tmp-")]
    assert [sorted(file.name for file in entry.iterdir()) for entry in left] == [
        ["events-00000.parquet", "events-00001.parquet"]
    ]
    assert len(EventLog.write(path, SCHEMA, [events()])) == EVENTS
    assert [entry.name for entry in tmp_path.iterdir()] == ["log"]


def test_two_writers_of_one_path_do_not_disturb_each_other(tmp_path: Path) -> None:
    with temporary_directory(tmp_path / "log") as held:
        (held / "half").touch()
        done = subprocess.run([sys.executable, "-c", WRITES, str(tmp_path / "log")], capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        assert (held / "half").exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["log"]


def test_memory_is_one_row_group_whatever_the_log(tmp_path: Path) -> None:
    count, group = 64_000, 1000
    wide = events(count)
    log = EventLog.write(tmp_path / "log", SCHEMA, [wide], rows_per_group=group)
    del wide
    whole = log.columns(SCHEMA.columns()).nbytes
    base = pa.total_allocated_bytes()
    held = max(pa.total_allocated_bytes() - base for _ in log.batches(64))
    assert held < whole / 8


def test_errors_name_the_file_and_row_group_of_a_joined_batch(tmp_path: Path) -> None:
    delays = [-1.0 if at == 13 else delay for at, delay in enumerate(events(40)["after"].to_pylist())]
    table = events(40).append_column("wait", pa.array(delays))
    log = EventLog.write(tmp_path / "log", SCHEMA, [table], rows_per_file=10, rows_per_group=5)
    log = log.with_labels(Label("click", "wait"))
    place = f"{log.path}/events-00001.parquet row group 0"
    for start in (0, 11):
        for read in (lambda start=start: log.read(start), lambda start=start: [*log.batches(12, start)]):
            with pytest.raises(DataError) as caught:
                read()
            found = re.match(rf"{place}(?: rows from (\d))?: column 'wait': -1.0 at row (\d) is", str(caught.value))
            assert found is not None
            assert sum(int(row or 0) for row in found.groups()) == 3
    assert log.read(0, 0).labels["click"].tolist() == []
