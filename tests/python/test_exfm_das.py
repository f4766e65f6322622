"""DAS: every example once, none lost, whatever dies on the way (methods.md 4b (1), 4e (8))."""

import multiprocessing
import os
import random
import signal
import time

import numpy as np
import pyarrow as pa
import pytest
import torch
from training_support import demo_log, small_config

from octavo import models
from octavo.data import Batch, DataError, EventLog, Schema, Sparse
from octavo.exfm import DAS, RankerTeacher, TeacherError
from octavo.exfm.merging import Merged, merged

ROWS = 200
HOUR = 3_600_000


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> EventLog:
    return demo_log(tmp_path_factory.mktemp("das") / "log", 3000)


def part_of(world: EventLog, path, keep, change=None) -> EventLog:
    """The world's events that ``keep`` [n] names, as a student's log."""
    table = world.columns(world.column_names).filter(pa.array(keep))
    return EventLog.write(path, world.schema, [table if change is None else change(table)])


@pytest.fixture(scope="module")
def students(world, tmp_path_factory) -> dict[str, EventLog]:
    """Two students whose logs share a third of the examples; together they have all."""
    folder = tmp_path_factory.mktemp("students")
    at = np.arange(len(world)) % 3
    return {"feed": part_of(world, folder / "feed", at != 0), "search": part_of(world, folder / "search", at != 1)}


def model(seed: int = 0) -> models.Ranker:
    world_schema = model.schema
    return models.build(world_schema, small_config(model__seed=seed, model__table_init=1.0).model).eval()


@pytest.fixture(autouse=True)
def _schema(world):
    model.schema = world.schema


CONFIG = small_config(model__table_init=1.0).model


def service(path, world, students, versions=(0.0, 0.4)) -> DAS:
    """A service with these logs, and snapshots of a teacher published at these shares of the log's time."""
    das = DAS.create(path, world.schema, rows=ROWS)
    das.ingest(students)
    times = world.read().time
    for number, share in enumerate(versions):
        until = int(times[0] + share * (times[-1] - times[0]))
        das.publish("fm", model(number), CONFIG, until, delay_ms=HOUR)
    return das


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


def expected(world, das, versions=2) -> dict[int, tuple[int, float, int]]:
    """By id: the version that was available, its logit, and its age, restated event by event."""
    batch, lineage = world.read(), das.lineage("fm")
    with torch.no_grad():
        logits = [model(number)(batch)["click"] for number in range(versions)]
    wanted = {}
    for at, (key, moment) in enumerate(zip(batch.id.tolist(), batch.time.tolist(), strict=True)):
        known = [v for v in lineage.versions if v.available_from < moment]
        spoke = known[-1] if known else None
        wanted[key] = (
            (0, float("nan"), 0)
            if spoke is None
            else (spoke.number, float(logits[spoke.number - 1][at]), moment - spoke.trained_until)
        )
    return wanted


def assert_annotated(world, das, wanted) -> None:
    records = das.soft_labels("fm")(world.read())
    for key, version, z, lag in zip(
        records.key.tolist(), records.version.tolist(), records.logits["click"].tolist(), records.lag.tolist(),
        strict=True,
    ):  # fmt: skip
        assert version == wanted[key][0]
        assert z == pytest.approx(wanted[key][1], rel=1e-4, abs=1e-6, nan_ok=True)
        assert lag == wanted[key][2]


def test_each_event_is_answered_by_the_version_of_its_time(tmp_path, world, students):
    das = service(tmp_path / "das", world, students)
    assert sum(das.annotate("fm")) == 3000
    wanted = expected(world, das)
    assert {version for version, _, _ in wanted.values()} == {0, 1, 2}
    assert_annotated(world, das, wanted)
    progress = das.progress("fm")
    assert (progress.parts, progress.of, progress.events, progress.versions) == (15, 15, 3000, 2)
    assert progress.silent == sum(version == 0 for version, _, _ in wanted.values())
    assert list(das.annotate("fm")) == []


class Counting:
    """A teacher that remembers what it was asked about."""

    def __init__(self, version):
        self.inner = RankerTeacher(model(version.number - 1))

    asked: list[int] = []

    def __call__(self, batch):
        Counting.asked += batch.id.tolist()
        return self.inner(batch)


def test_the_teacher_is_asked_once_for_each_example(tmp_path, world, students):
    das = service(tmp_path / "das", world, students, versions=(-1.0,))
    Counting.asked = []
    assert sum(1 for _ in das.annotate("fm", Counting, parts=4)) == 4
    assert sum(das.annotate("fm", Counting)) == 3000 - 4 * ROWS
    assert sorted(Counting.asked) == sorted(world.read().id.tolist())


def test_students_read_their_own_events_in_any_order(tmp_path, world, students):
    das = service(tmp_path / "das", world, students, versions=(-1.0,))
    list(das.annotate("fm", parts=9))
    soft = das.soft_labels("fm")
    batch = students["search"].read()
    records = soft(batch)
    assert torch.equal(records.key, batch.id)
    known = records.version > 0
    assert 0 < known.sum() < len(batch)  # six parts are still to come
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(0))
    table = students["search"].columns(students["search"].column_names).take(pa.array(order.numpy()))
    shuffled = soft(students["search"].encode(table))
    assert torch.equal(shuffled.version, records.version[order])
    assert torch.equal(shuffled.logits["click"].nan_to_num(9.0), records.logits["click"][order].nan_to_num(9.0))
    list(das.annotate("fm"))
    assert (soft(batch).version > 0).all()  # late predictions are taken up
    stranger = soft(
        world.encode(
            world.columns(world.column_names, 0, 2).set_column(
                world.column_names.index("id"), "id", pa.array([10**12, 10**12 + 1])
            )
        )
    )
    assert stranger.version.tolist() == [0, 0]
    assert len(soft(batch.rows(0, 0))) == 0


def test_soft_labels_take_up_what_other_processes_add(tmp_path, world, students):
    das = service(tmp_path / "das", world, {"feed": students["feed"]}, versions=(-1.0,))
    early = DAS(tmp_path / "das")
    list(das.annotate("fm"))
    soft = early.soft_labels("fm")
    assert (soft(students["feed"].read()).version > 0).all()
    das.ingest({"search": students["search"]})
    list(das.annotate("fm"))
    early.shared.reload()
    assert (soft(students["search"].read()).version > 0).all()


def test_a_copy_with_an_earlier_time_does_not_hear_of_the_future(tmp_path, world):
    head = world.head(500)

    def sooner(table):
        at = table.column_names.index("time")
        return table.set_column(at, "time", pa.array(table["time"].to_numpy() - HOUR // 2))

    das = DAS.create(tmp_path / "das", world.schema, rows=ROWS)
    das.ingest({"a": part_of(head, tmp_path / "a", np.ones(500, bool))})
    until = int(head.read().time[250])
    das.publish("fm", model(), CONFIG, until)
    list(das.annotate("fm"))
    copy = part_of(head, tmp_path / "b", np.ones(500, bool), sooner)
    assert das.ingest({"b": copy}).known == 500
    batch = copy.read()
    assert torch.equal(das.soft_labels("fm")(batch).version > 0, batch.time > until)


def test_a_model_that_its_configuration_does_not_make_is_not_published(tmp_path, world):
    das = DAS.create(tmp_path / "das", world.schema)
    with pytest.raises(TeacherError, match="model, config: the snapshot cannot be read back"):
        das.publish("fm", model(), small_config(model__top=[64]).model, 0)
    assert len(das.lineage("fm")) == 0


def test_an_embedding_that_is_not_finite_is_no_answer(tmp_path, world, students):
    class Halves:
        def __call__(self, batch):
            logits, embedding = RankerTeacher(model(), True)(batch)
            embedding = embedding.clone()
            embedding[::4, 0] = float("inf")
            return logits, embedding

    das = DAS.create(tmp_path / "das", world.schema, rows=ROWS, codec="int8")
    das.ingest(students)
    das.publish("fm", model(), CONFIG, 0, embeddings=True)
    list(das.annotate("fm", lambda version: Halves()))
    assert das.progress("fm").silent == 750
    records = das.soft_labels("fm")(world.read())
    assert torch.equal(records.version == 0, records.logits["click"].isnan())
    assert torch.equal(records.version == 0, records.embedding.isnan().all(1))


def test_embeddings_come_with_the_records(tmp_path, world, students):
    das = DAS.create(tmp_path / "das", world.schema, rows=ROWS, codec="bf16")
    das.ingest(students)
    das.publish("fm", model(), CONFIG, 0, embeddings=True)
    list(das.annotate("fm"))
    batch = world.head(50).read()
    with torch.no_grad():
        wanted = model().embed(batch)
    found = das.soft_labels("fm")(batch).embedding
    assert torch.allclose(found, wanted.bfloat16().float(), rtol=1e-2, atol=1e-4)


def test_a_new_version_is_taken_up_without_stopping(tmp_path, world, students):
    das = service(tmp_path / "das", world, students, versions=(-1.0,))
    running = das.annotate("fm")
    for _ in range(5):
        next(running)
    das.publish("fm", model(1), CONFIG, int(world.read().time[0]), delay_ms=0)
    list(running)
    versions = [
        int(das.soft_labels("fm")(das.shared.log(das.shared.segments[0]).read(at, at + 1)).version)
        for at in (0, 999, 1000, 2999)
    ]
    assert versions == [1, 1, 2, 2]


class Broken:
    def __init__(self, how):
        self.how, self.calls = how, 0
        self.inner = RankerTeacher(model())

    def __call__(self, batch: Batch):
        self.calls += 1
        logits = dict(self.inner(batch)[0])
        if self.how == "dies" and self.calls == 3:
            raise MemoryError("out of memory")
        if self.how == "shape":
            logits["click"] = logits["click"][:-1]
        if self.how == "task":
            logits = {"other": logits["click"]}
        if self.how == "nan":
            logits["click"] = logits["click"].clone()
            logits["click"][::10] = float("nan")
        return logits, None


def test_a_teacher_that_dies_leaves_what_was_done(tmp_path, world, students):
    das = service(tmp_path / "das", world, students, versions=(-1.0,))
    broken = Broken("dies")
    with pytest.raises(MemoryError):
        list(das.annotate("fm", lambda version: broken))
    assert das.progress("fm").parts == 2
    assert sum(das.annotate("fm")) == 3000 - 2 * ROWS
    assert_annotated(world, das, expected(world, das, versions=1))


@pytest.mark.parametrize(
    ("how", "words"), [("shape", r"shape \[199\], expected \[200\]"), ("task", "no logits of 'click', only of other")]
)
def test_answers_that_are_none_are_named_and_not_kept(tmp_path, world, students, how, words):
    das = service(tmp_path / "das", world, students, versions=(-1.0,))
    with pytest.raises(TeacherError, match=words):
        list(das.annotate("fm", lambda version: Broken(how)))
    assert das.progress("fm").parts == 0


def test_nan_is_no_answer_and_is_counted(tmp_path, world, students):
    das = service(tmp_path / "das", world, students, versions=(-1.0,))
    list(das.annotate("fm", lambda version: Broken("nan")))
    assert das.progress("fm").silent == 300
    records = das.soft_labels("fm")(world.read())
    assert int((records.version == 0).sum()) == int(records.logits["click"].isnan().sum()) == 300


def test_a_teacher_that_was_not_published_is_named(tmp_path, world, students):
    das = DAS.create(tmp_path / "das", world.schema)
    das.ingest(students)
    with pytest.raises(TeacherError, match="'fm' has no published version"):
        next(das.annotate("fm"))
    with pytest.raises(TeacherError, match="'fm' has no published version"):
        das.soft_labels("fm")
    with pytest.raises(ValueError, match="a directory is named after it"):
        das.publish("../fm", model(), CONFIG, 0)
    assert das.progress("fm").of == 1


def test_a_snapshot_that_was_exchanged_is_refused(tmp_path, world, students):
    das = service(tmp_path / "das", world, students, versions=(-1.0, -0.5))
    snapshots = das.path / "teachers" / "fm" / "snapshots"
    one, two = sorted(snapshots.iterdir())
    one.rename(snapshots / "away")
    two.rename(one)
    with pytest.raises(TeacherError, match="is not what was published as version 1"):
        list(
            das.annotate(
                "fm",
                load=lambda version: __import__("octavo.exfm.teacher", fromlist=["x"]).load_snapshot(
                    das.path / "teachers" / "fm" / das.lineage("fm")[1].path, das.lineage("fm")[1]
                ),
            )
        )


def test_a_damaged_or_strange_service_is_named(tmp_path, world):
    with pytest.raises(DataError, match=r"is no data augmentation service; DAS.create"):
        DAS(tmp_path / "none")
    das = DAS.create(tmp_path / "das", world.schema)
    other = world.with_labels()
    with pytest.raises(DataError, match="its teachers read another schema"):
        DAS.create(tmp_path / "das", other.schema)
    file = das.path / "das.json"
    file.write_text(file.read_text().replace('"rows": 16384', '"rows": 5'))
    with pytest.raises(DataError, match="was changed"):
        DAS(tmp_path / "das")
    with pytest.raises(ValueError, match="rows, skew_ms"):
        DAS.create(tmp_path / "other", world.schema, rows=0)


def _run_all(path, logs, threads=1):
    torch.set_num_threads(threads)
    das = DAS(path)
    das.ingest({name: EventLog(log) for name, log in logs.items()})
    for _ in das.annotate("fm"):
        pass


def test_killed_anywhere_it_ends_as_a_clean_run(tmp_path, world, students):
    """SIGKILL at random moments of ingesting and annotating, by two processes at once; then all is compared."""
    clean = service(tmp_path / "clean", world, students)
    list(clean.annotate("fm"))
    das = DAS.create(tmp_path / "das", world.schema, rows=ROWS)
    times = world.read().time
    for number, share in enumerate((0.0, 0.4)):
        until = int(times[0] + share * (times[-1] - times[0]))
        das.publish("fm", model(number), CONFIG, until, delay_ms=HOUR)
    context = multiprocessing.get_context("fork")
    logs = {name: str(log.path) for name, log in students.items()}
    drawn = random.Random(4)
    for _ in range(12):
        workers = [context.Process(target=_run_all, args=(das.path, logs)) for _ in range(2)]
        for worker in workers:
            worker.start()
        for worker in drawn.sample(workers, 2):
            time.sleep(drawn.random() * 0.12)
            os.kill(worker.pid, signal.SIGKILL)
            worker.join()
    _run_all(das.path, logs, torch.get_num_threads())
    assert das.progress("fm") == clean.progress("fm")
    das.shared.reload()
    (segment,) = das.shared.segments
    assert torch.equal(das.shared.log(segment).read().id, clean.shared.log(segment).read().id)
    found, wanted = das.soft_labels("fm")(world.read()), clean.soft_labels("fm")(world.read())
    for name in ("key", "version", "written", "lag"):
        assert torch.equal(getattr(found, name), getattr(wanted, name)), name
    assert torch.equal(found.logits["click"].nan_to_num(9.0), wanted.logits["click"].nan_to_num(9.0))


def test_several_processes_share_the_work(tmp_path, world, students):
    das = service(tmp_path / "das", world, students)
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_run_all, args=(das.path, {})) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    assert_annotated(world, das, expected(world, das))
    left = [file.name for file in (das.path / "teachers" / "fm" / "records" / "00000").iterdir()]
    assert sorted(left) == sorted([f"part-{part:08d}.parquet" for part in range(15)] + ["records.json"])
