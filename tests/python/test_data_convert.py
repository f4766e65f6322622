"""Raw files become logs: order, duplicates, bad files, and every repair counted."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.data import DataError, Dense, EventLog, Label, Made, Schema, Source, Sparse, convert, infer_schema
from octavo.data.seen_ids import SeenIds
from octavo.data.source import raw_tables

SCHEMA = Schema(dense=(Dense("x"),), sparse=(Sparse("s", rows=8),), labels=(Label("y"),))


def table_of(times: list[int], ids: list[int] | None = None) -> pa.Table:
    rows = len(times)
    return pa.table(
        {
            "time": pa.array(times, pa.int64()),
            "id": pa.array(range(rows) if ids is None else ids, pa.int64()),
            "x": np.arange(rows, dtype=np.float64),
            "s": pa.array(np.arange(rows) % 8, pa.int64()),
            "y": pa.array(np.arange(rows) % 2, pa.int64()),
        }
    )


def parquet_of(folder: Path, table: pa.Table, group: int = 4) -> Path:
    path = folder / "raw.parquet"
    pq.write_table(table, path, row_group_size=group)
    return path


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=40), st.integers(0, 40), st.integers(1, 9))
def test_order_is_that_of_a_stable_sort_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, times: list[int], window: int, group: int
) -> None:
    folder = tmp_path_factory.mktemp("sorting")
    raw = parquet_of(folder, table_of(times), group)
    newest = np.maximum.accumulate([0, *times])[:-1]
    late = newest - np.array(times)
    late[0] = 0
    if late.max() > window:
        at = int((late > window).argmax())
        with pytest.raises(DataError, match=f"row group {at // group}: column 'time': time falls from") as caught:
            convert(SCHEMA, [raw], folder / "log", max_lateness_ms=window)
        assert f"to {times[at]} ms at row {at % group}," in str(caught.value)
        assert not (folder / "log").exists()
        return
    log, done = convert(SCHEMA, [raw], folder / "log", max_lateness_ms=window, rows_per_file=7, rows_per_group=3)
    order = np.argsort(times, kind="stable")
    assert log.read().id.tolist() == order.tolist()
    assert log.read().time.tolist() == np.array(times)[order].tolist()
    assert (done.events, done.moved, done.dropped) == (len(times), int((late > 0).sum()), 0)


@given(st.lists(st.lists(st.integers(-5, 30), min_size=1, max_size=12), max_size=12))
def test_seen_ids_are_a_set(chunks: list[list[int]]) -> None:
    seen, known = SeenIds(), set[int]()
    for chunk in chunks:
        expected = [value in known or value in chunk[:at] for at, value in enumerate(chunk)]
        assert seen.add(np.array(chunk)).tolist() == expected
        known |= set(chunk)


def test_duplicates(tmp_path: Path) -> None:
    raw = parquet_of(tmp_path, table_of([1, 2, 3, 4, 5, 6], [5, 6, 5, 7, 6, 8]))
    with pytest.raises(DataError, match="row group 0: column 'id': id 5 at row 2 came before"):
        convert(SCHEMA, [raw], tmp_path / "log")
    log, done = convert(SCHEMA, [raw], tmp_path / "dropped", duplicates="drop")
    assert log.read().id.tolist() == [5, 6, 7, 8]
    assert log.read().time.tolist() == [1, 2, 4, 6]
    assert (done.events, done.dropped) == (4, 2)
    assert len(convert(SCHEMA, [raw], tmp_path / "kept", duplicates="keep")[0]) == 6
    with pytest.raises(ValueError, match="duplicates: expected one of"):
        convert(SCHEMA, [raw], tmp_path / "x", duplicates="any")  # type: ignore[arg-type]


def test_a_log_is_written_with_ids_that_differ(tmp_path: Path) -> None:
    tables = [table_of([1, 2, 3], [5, 6, 9]), table_of([4, 5], [10, 6])]
    with pytest.raises(DataError, match="table 1: column 'id': id 6 at row 1 came before; make ids distinct"):
        EventLog.write(tmp_path / "log", SCHEMA, tables)
    assert list(tmp_path.iterdir()) == []
    assert EventLog.write(tmp_path / "log", SCHEMA, tables, duplicates="keep").read().id.tolist() == [5, 6, 9, 10, 6]
    with pytest.raises(ValueError, match="duplicates: expected error or keep, found 'drop'"):
        EventLog.write(tmp_path / "x", SCHEMA, tables, duplicates="drop")  # type: ignore[arg-type]


def test_nulls_are_counted_by_column(tmp_path: Path) -> None:
    raw = tmp_path / "raw.csv"
    raw.write_text("time,id,x,s,user,y\n1,0,,0,7,1\n2,1,nan,,,\n3,2,1.5,1,,0\n")
    schema = Schema(dense=(Dense("x", missing=0.0),), sparse=(Sparse("s", 8),), user="user", labels=(Label("y"),))
    log, done = convert(schema, [raw], tmp_path / "log")
    assert done.nulls == {"user": 2, "x": 2, "s": 1}
    assert log.read().user.tolist() == [7, -1, -1]


def test_csv_and_parquet_and_uri_are_one_log(tmp_path: Path) -> None:
    table = table_of([1, 1, 2, 9])
    raw = parquet_of(tmp_path, table)
    csv.write_csv(table, tmp_path / "raw.csv")
    logs = [
        convert(SCHEMA, [name], tmp_path / f"log{number}", Source(types={"y": "int64"}))[0]
        for number, name in enumerate([raw, tmp_path / "raw.csv", raw.as_uri()])
    ]
    assert logs[0].fingerprint == logs[1].fingerprint == logs[2].fingerprint


def test_made_columns_by_hand(tmp_path: Path) -> None:
    raw = tmp_path / "raw.csv"
    raw.write_text("a\t14102101\t18446744073709551615\t4\t100\t160\nb\t14102102\t7\t3\t200\t-1\n")
    source = Source(
        delimiter="\t",
        names=("w", "hour", "big", "stars", "at", "bought"),
        types={"big": "uint64"},
        make={
            "time": Made("yymmddhh", "hour"),
            "id": Made("bits", "big"),
            "user": Made("text_key", "w"),
            "y": Made("at_least", "stars", value=4),
            "wait": Made("delay", "bought", value=-1, since="at"),
            "row": Made("row"),
            "sec": Made("s", "at"),
            "us": Made("us", "bought"),
        },
    )
    schema = Schema(user="user", item="row", labels=(Label("y", "wait"),))
    log, _ = convert(schema, [raw], tmp_path / "log", source)
    batch = log.read()
    assert batch.time.tolist() == [1413853200000, 1413856800000]  # 2014-10-21 01:00 and 02:00 UTC
    assert batch.id.tolist() == [-1, 7]
    assert batch.user[0] != batch.user[1]
    assert batch.labels["y"].tolist() == [1.0, 0.0]
    assert batch.delay["y"].isnan().tolist() == [False, True]
    assert batch.delay["y"][0] == 60
    assert batch.item.tolist() == [0, 1]
    assert log.columns(["sec"]).column("sec").to_pylist() == [100_000, 200_000]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "time,id,x,s,y\n1,0,1.5,0,1\n2,1,oops,0,1\n",
            "raw.csv row 1: column 'x': found 'oops', expected double",
        ),
        ("time,id,x,s\n1,0,1.5,0\n", "raw.csv rows from 0: column 'y' is missing"),
        ("time,id,x,s,y\n1,0,,0,1\n", "raw.csv rows from 0: dense column 'x': null or nan at row 0"),
        ("time,id,x,s,y\n1,0,inf,0,1\n", "raw.csv rows from 0: dense column 'x': inf at row 0"),
        ("time,id,x,s,y\n1,0,1.5,8,1\n", "raw.csv rows from 0: sparse column 's': id 8 is outside 0..7"),
        ("time,id,x,s,y\n1,0,1.5,0,3\n", "raw.csv rows from 0: column 'y': 3.0 at row 0 is outside 0..1"),
        ("time,id,x,s,y\n1,0,1.5\n", "raw.csv row 0: expected 5 columns, found 3: '1,0,1.5'"),
        ("time,id,x,s,y\n", "no events to write"),
        ("", "raw.csv rows from 0: not readable as CSV .*Empty CSV"),
    ],
)
def test_bad_csv_names_file_row_column_value(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "raw.csv").write_text(text)
    with pytest.raises(DataError, match=says):
        convert(SCHEMA, [tmp_path / "raw.csv"], tmp_path / "log")
    assert [entry.name for entry in tmp_path.iterdir()] == ["raw.csv"]


def test_bad_csv_rows_are_counted_over_blocks(tmp_path: Path) -> None:
    path, pad = tmp_path / "raw.csv", "p" * 1000
    rows = [f"{pad},1.5"] * 20_000  # two blocks of 16 MiB
    path.write_text("\n".join(["pad,x", *rows, f"{pad},oops"]))
    with pytest.raises(DataError, match="raw.csv row 20000: column 'x': found 'oops', expected double"):
        list(raw_tables(Source(), [str(path)]))
    path.write_text("\n".join(["pad,x", *rows, pad]))
    with pytest.raises(DataError, match="raw.csv row 20000: expected 2 columns, found 1: 'p{80}[.]{3}'"):
        list(raw_tables(Source(), [str(path)]))
    headless = Source(names=("pad", "x"))
    path.write_text("a,1\nb\n")
    with pytest.raises(DataError, match="raw.csv row 1: expected 2 columns, found 1: 'b'"):
        list(raw_tables(headless, [str(path)]))


def test_bad_files(tmp_path: Path) -> None:
    raw = parquet_of(tmp_path, table_of([1, 2, 3]))
    raw.write_bytes(raw.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"raw\.parquet: not readable as parquet"):
        convert(SCHEMA, [raw], tmp_path / "log")
    with pytest.raises(DataError, match=r"none\.csv: no such file"):
        convert(SCHEMA, [tmp_path / "none.csv"], tmp_path / "log")
    with pytest.raises(DataError, match=r"what://x: cannot be opened"):
        convert(SCHEMA, ["what://x"], tmp_path / "log")


def test_files_of_different_types(tmp_path: Path) -> None:
    pq.write_table(table_of([1, 2]), tmp_path / "a.parquet")
    other = table_of([3, 4], [7, 8])
    pq.write_table(other.set_column(4, "y", other["y"].cast("float")), tmp_path / "b.parquet")
    files = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    with pytest.raises(DataError, match=r"b\.parquet row group 0: column 'y' is float, was int64 before"):
        convert(SCHEMA, files, tmp_path / "log")
    log, _ = convert(SCHEMA, files, tmp_path / "log", Source(types={"y": "int64"}))
    assert len(log) == 4


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = table_of(list(range(40_000))).set_column(2, "x", pa.array(rng.random(40_000)))
    raw = parquet_of(tmp_path, table, 1 << 14)
    program = (
        "import resource, signal, sys\n"
        "from test_data_convert import SCHEMA\n"
        "from octavo.data import DataError, convert\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n    convert(SCHEMA, [sys.argv[1]], sys.argv[2])\n"
        "except DataError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, raw, tmp_path / "log"], capture_output=True, text=True,
                          cwd=Path(__file__).parent, check=True)  # fmt: skip
    assert "events-00000.parquet: cannot be written" in done.stdout
    assert [entry.name for entry in tmp_path.iterdir()] == ["raw.parquet"]


def test_delays_have_a_unit_and_stars_that_are_nan_are_not_known(tmp_path: Path) -> None:
    moment = pa.array([0, 0, 0], pa.timestamp("us"))
    table = pa.table(
        {
            "shown": pa.array([0, 0, 0], pa.int64()), "bought": pa.array([60_000, None, None], pa.int64()),
            "seen": moment, "paid": pa.array([60_000_000, None, None], pa.timestamp("us")),
            "stars": pa.array([5.0, 1.0, float("nan")]),
        }
    )  # fmt: skip
    pq.write_table(table, tmp_path / "raw.parquet")
    made = {"time": Made("row"), "id": Made("row"), "y": Made("at_least", "stars", value=4)}
    waits = {
        "numbers": Made("delay", "bought", since="shown", unit="ms"),
        "timestamps": Made("delay", "paid", since="seen"),
    }
    for name, wait in waits.items():
        source = Source(make={**made, "wait": wait})
        log, _ = convert(Schema(labels=(Label("y", "wait"),)), [tmp_path / "raw.parquet"], tmp_path / name, source)
        assert log.read().delay["y"][0] == 60
        assert log.read().labels["y"].isnan().tolist() == [False, False, True]
    with pytest.raises(DataError, match="unit: for kind 'delay' alone, one of s, ms, us, ns; found 'days'"):
        Made("delay", "bought", since="shown", unit="days")


def test_an_inferred_schema_learns_from_nothing_that_came_with_the_outcome() -> None:
    click = pa.array([1, 0, 0, 1], pa.int8())
    table = pa.table(
        {
            "time": pa.array([1, 2, 3, 4], pa.int64()), "click": click,
            "click_delay": [5.0, None, None, 7.0], "bought_what": ["a", None, None, None],
            "price": [1.0, 2.0, None, 4.0],
        }
    )  # fmt: skip
    found = infer_schema(table)
    assert found.schema.labels == (Label("click", "click_delay"),)
    assert [feature.name for feature in found.schema.dense] == ["price"]
    assert found.schema.sparse == ()
    assert "taken for its delay; DECIDE" in found.notes["click_delay"]
    assert "it came with the outcome" in found.notes["bought_what"]


CONVERTS = """
import sys
from octavo.data import Dense, Label, Schema, Sparse, convert

schema = Schema(dense=(Dense("x"),), sparse=(Sparse("s", rows=8),), labels=(Label("y"),))
print("ready", flush=True)
convert(schema, [sys.argv[1]], sys.argv[2], max_lateness_ms=50, rows_per_file=500, rows_per_group=100)
"""


def test_sigkill_at_any_moment_leaves_the_whole_log_or_none(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    times = np.arange(20_000) + generator.integers(0, 40, 20_000)
    raw, path = parquet_of(tmp_path, table_of(times.tolist()), 1000), tmp_path / "log"
    command = [sys.executable, "-c", CONVERTS, str(raw), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        start = time.perf_counter()
        assert child.wait() == 0
        seconds = time.perf_counter() - start
    whole, killed = EventLog(path).fingerprint, 0
    for share in (0.0, 0.05, 0.1, 0.2, 0.4):
        shutil.rmtree(path, ignore_errors=True)
        with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            child.stdout.readline()
            time.sleep(share * seconds)
            child.kill()
        killed += not path.exists()
        assert not path.exists() or EventLog(path).fingerprint == whole
    assert killed >= 2
    shutil.rmtree(path, ignore_errors=True)
    convert(SCHEMA, [raw], path, max_lateness_ms=50, rows_per_file=500, rows_per_group=100)
    assert EventLog(path).fingerprint == whole
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["log", "raw.parquet"]


def test_files_in_another_order_or_without_nulls_are_the_same_columns(tmp_path: Path) -> None:
    lists = pa.array([[1], [2, 3]], pa.list_(pa.int64()))
    first, second = (table_of(t, i).append_column("l", lists) for t, i in (([1, 2], [0, 1]), ([3, 4], [2, 3])))
    strict = pa.list_(pa.field("item", pa.int64(), nullable=False))
    kinds = [pa.field(f.name, strict if f.name == "l" else f.type, nullable=False) for f in second.schema]
    second = pa.table([second[f.name].cast(f.type) for f in kinds], schema=pa.schema(kinds))
    paths = [tmp_path / "first.parquet", tmp_path / "second.parquet"]
    for table, path in zip((first, second.select(second.column_names[::-1])), paths, strict=True):
        pq.write_table(table, path)
    for number, inputs in enumerate((paths, paths[::-1])):
        log, _ = convert(SCHEMA, inputs, tmp_path / f"log{number}", max_lateness_ms=10)
        assert log.read().id.tolist() == [0, 1, 2, 3]
        assert log.columns(["l"])["l"].to_pylist() == [[1], [2, 3]] * 2
    for other, says in (
        (second.append_column("z", [[1, 2]]), "'z' is new"),
        (second.drop_columns(["l"]), "'l' is missing"),
    ):
        pq.write_table(other, paths[1])
        with pytest.raises(DataError, match=rf"second\.parquet row group 0: column {says}; all inputs must have"):
            convert(SCHEMA, paths, tmp_path / "log")


def test_times_at_the_ends_of_64_bits(tmp_path: Path) -> None:
    far = 2**62 + 2**61
    raw = parquet_of(tmp_path, table_of([far, -far - 5]))
    with pytest.raises(DataError, match=f"time falls from {far} to {-far - 5} ms at row 1, by more"):
        convert(SCHEMA, [raw], tmp_path / "log")
    log, done = convert(SCHEMA, [raw], tmp_path / "log", max_lateness_ms=2 * far + 5)
    assert log.read().time.tolist() == [-far - 5, far]
    assert done.moved == 1
    rising = parquet_of(tmp_path, table_of([-far, far, far + 1]), 1)
    assert convert(SCHEMA, [rising], tmp_path / "rising")[1].moved == 0


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    raw = tmp_path / "raw.csv"
    raw.write_text("time,id,x,x,s,y\n1,0,1.5,2.5,0,1\n")
    table = table_of([1]).append_column("x", [[1.0]])
    pq.write_table(table, tmp_path / "raw.parquet")
    for path in (raw, tmp_path / "raw.parquet"):
        says = rf"{path.name} r.* 0: 2 columns are named 'x'; rename or remove all but one"
        with pytest.raises(DataError, match=says):
            convert(SCHEMA, [path], tmp_path / "log")
        with pytest.raises(DataError, match=says):
            infer_schema(str(path))
    with pytest.raises(DataError, match="table: 2 columns are named 'x'"):
        infer_schema(table)
    with pytest.raises(DataError, match="table 0: 2 columns are named 'x'"):
        EventLog.write(tmp_path / "log", SCHEMA, [table])


def test_times_before_1970_have_a_unit() -> None:
    for first, unit in ((-5, "s"), (-5 * 10**12, None), (-5 * 10**15, "us")):
        found = infer_schema(table_of([first, first + 1]))
        assert (found.source.make["time"].kind if "time" in found.source.make else None) == unit
