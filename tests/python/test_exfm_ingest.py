"""Students' logs become one set of examples: in event time, each once (methods.md 4b (1))."""

import os

import numpy as np
import pyarrow as pa
import pytest
import torch
from exfm_support import HOUR, part_of, two_students
from training_support import demo_log

from octavo.data import DataError, EventLog, Schema, Sparse
from octavo.exfm import DAS
from octavo.exfm.merging import Merged, merged


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> EventLog:
    return demo_log(tmp_path_factory.mktemp("das") / "log", 3000)


@pytest.fixture(scope="module")
def students(world, tmp_path_factory) -> dict[str, EventLog]:
    return two_students(world, tmp_path_factory.mktemp("students"))


def test_an_index_is_on_the_disk_before_the_list_names_it(tmp_path, world, monkeypatch):
    synced, fsync = [], os.fsync

    def watched(descriptor):
        synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    das = DAS.create(tmp_path / "das", world.schema)
    monkeypatch.setattr(os, "fsync", watched)
    das.ingest({"a": world})
    listed = next(at for at, name in enumerate(synced) if "segments.json" in name)
    assert {"ids.npy", "places.npy", "times.npy", "00000-index"} <= set(synced[:listed])
    assert synced[listed + 1 :] == ["shared"]


def test_the_shared_set_holds_every_example_once_in_event_time(tmp_path, world, students):
    das = DAS.create(tmp_path / "das", world.schema)
    segment = das.ingest(students)
    assert (segment.events, segment.duplicates, segment.conflicts, segment.skewed) == (3000, 1000, 0, 0)
    shared, whole = das.shared.log(segment).read(), world.read()
    assert torch.equal(shared.id.sort().values, whole.id.sort().values)
    assert (shared.time[1:] >= shared.time[:-1]).all()
    place = torch.argsort(whole.id)[torch.searchsorted(whole.id.sort().values, shared.id)]
    assert torch.equal(shared.dense, whole.dense[place])
    assert torch.equal(shared.labels["click"], whole.labels["click"][place])
    where, position = das.shared.places(whole.id)
    assert (where == 0).all()
    assert torch.equal(shared.id[torch.from_numpy(position)], whole.id)
    assert das.shared.places(torch.tensor([-5]))[0].tolist() == [-1]


def test_ingesting_again_adds_nothing_and_later_logs_add_what_is_new(tmp_path, world, students):
    das = DAS.create(tmp_path / "das", world.schema)
    das.ingest({"feed": students["feed"]})
    assert das.ingest({"feed": students["feed"]}) is None
    second = DAS(tmp_path / "das").ingest(students)
    assert (second.events, second.known) == (1000, 1000)
    assert sorted(second.sources) == ["search"]
    das.shared.reload()
    ids = torch.cat([das.shared.log(segment).read().id for segment in das.shared.segments])
    assert torch.equal(ids.sort().values, world.read().id.sort().values)


def test_nulls_are_filled_from_copies_and_conflicts_counted(tmp_path, world):
    at = np.arange(600)
    head = world.head(600)

    def without(table):
        label = table["click"].to_pylist()
        return table.set_column(
            table.column_names.index("click"), "click", pa.array([None if i % 2 else v for i, v in enumerate(label)])
        )

    def other(table):
        column = table["hour"] if "hour" in table.column_names else table[world.schema.dense[0].name]
        name = "hour" if "hour" in table.column_names else world.schema.dense[0].name
        return table.set_column(
            table.column_names.index(name), name, pa.array(column.to_numpy() + (np.arange(600) < 7))
        )

    logs = {
        "a": part_of(head, tmp_path / "a", at >= 0, without),
        "b": part_of(head, tmp_path / "b", at >= 0, other),
    }
    das = DAS.create(tmp_path / "das", world.schema)
    segment = das.ingest(logs)
    assert (segment.events, segment.duplicates, segment.conflicts) == (600, 600, 7)
    shared, wanted = das.shared.log(segment).read(), head.read()
    assert torch.equal(shared.labels["click"], wanted.labels["click"])
    assert torch.equal(shared.dense, wanted.dense)  # the first log's values are kept


def test_clocks_may_differ_up_to_the_skew(tmp_path, world):
    head = world.head(500)

    def later(ms):
        def change(table):
            at = table.column_names.index("time")
            return table.set_column(at, "time", pa.array(table["time"].to_numpy() + ms))

        return change

    all_of = np.ones(500, bool)
    logs = {
        "a": part_of(head, tmp_path / "a", all_of),
        "b": part_of(head, tmp_path / "b", all_of, later(60_000)),
        "c": part_of(head, tmp_path / "c", all_of, later(3 * HOUR)),
    }
    das = DAS.create(tmp_path / "das", world.schema)
    segment = das.ingest({"a": logs["a"], "b": logs["b"]})
    assert (segment.events, segment.duplicates, segment.skewed) == (500, 500, 500)
    assert torch.equal(das.shared.log(segment).read().time, head.read().time)


def test_copies_further_apart_than_the_skew_are_an_error_in_one_ingestion_or_two(tmp_path, world):
    head = world.head(500)
    first = part_of(head, tmp_path / "a", np.ones(500, bool))

    def later(table):
        at = table.column_names.index("time")
        return table.set_column(at, "time", pa.array(table["time"].to_numpy() + 5 * HOUR))

    other = part_of(head, tmp_path / "b", np.ones(500, bool), later)
    with pytest.raises(DataError, match=r"example \d+ is at \d+ ms and at \d+ ms, more than skew_ms=3600000 apart"):
        DAS.create(tmp_path / "one", world.schema).ingest({"a": first, "b": other})
    das = DAS.create(tmp_path / "two", world.schema)
    das.ingest({"a": first})
    with pytest.raises(DataError, match="more than skew_ms=3600000 apart"):
        das.ingest({"b": other})
    assert das.ingest({"a": first, "c": part_of(world, tmp_path / "c", np.arange(3000) < 600)}).events == 100


@pytest.mark.parametrize("rows", [3, 50, 1 << 16])
def test_merging_in_pieces_is_merging_at_once(tmp_path, world, students, rows, monkeypatch):
    monkeypatch.setattr("octavo.exfm.merging._ROWS", rows)
    head = {name: log.head(300) for name, log in students.items()}
    found = Merged()
    names = world.schema.columns()
    tables = list(merged(head, names, "id", "time", 1000, found))
    ids = np.concatenate([table["id"].to_numpy() for table in tables])
    times = np.concatenate([table["time"].to_numpy() for table in tables])
    assert (np.diff(times) >= 0).all()
    wanted = np.unique(np.concatenate([log.read().id.numpy() for log in head.values()]))
    assert np.array_equal(np.sort(ids), wanted)
    assert found.duplicates == 600 - len(wanted)


def test_columns_that_no_log_has_or_that_differ_are_named(tmp_path, world):
    name = world.schema.sparse[0].name
    all_of = np.ones(200, bool)
    head = world.head(200)
    first = part_of(head, tmp_path / "a", all_of)
    second = part_of(head, tmp_path / "b", all_of)
    words = EventLog.write(
        tmp_path / "words",
        Schema(sparse=(Sparse(name, 7, "hash_text"),), labels=()),
        [second.columns(["time", "id", name]).set_column(2, name, pa.array(["word"] * 200))],
    )
    with pytest.raises(DataError, match=f"column '{name}' is .* in b's log"):
        DAS.create(tmp_path / "das", world.schema).ingest({"a": first, "b": words})
    with pytest.raises(DataError, match="column 'nowhere', which the teacher reads, is in no log of a"):
        list(merged({"a": first}, [*world.schema.columns(), "nowhere"], "id", "time", 0, Merged()))
