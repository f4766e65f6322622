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
from exfm_support import CONFIG, HOUR, ROWS, model, part_of, publish_at, service, two_students
from training_support import demo_log, small_config

from octavo.data import Batch, DataError, EventLog
from octavo.exfm import DAS, RankerTeacher, TeacherError


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> EventLog:
    return demo_log(tmp_path_factory.mktemp("das") / "log", 3000)


@pytest.fixture(scope="module")
def students(world, tmp_path_factory) -> dict[str, EventLog]:
    return two_students(world, tmp_path_factory.mktemp("students"))


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
        assert batch.labels == {}  # nobody tells it what came of them
        assert len(batch) <= 1024
        Counting.asked += batch.id.tolist()
        return self.inner(batch)


def test_the_teacher_is_asked_once_for_each_example(tmp_path, world, students):
    das = service(tmp_path / "das", world, students, versions=(-1.0,))
    Counting.asked = []
    assert sum(1 for _ in das.annotate("fm", Counting, parts=4)) == 4
    assert sum(das.annotate("fm", Counting)) == 3000 - 4 * ROWS
    assert sorted(Counting.asked) == sorted(world.read().id.tolist())


def test_a_large_part_is_asked_in_small_batches(tmp_path, world, students):
    das = DAS.create(tmp_path / "das", world.schema)
    das.ingest(students)
    publish_at(das, world, (-1.0, 0.4))
    Counting.asked = []
    assert list(das.annotate("fm", Counting)) == [3000]
    assert sorted(Counting.asked) == sorted(world.read().id.tolist())
    assert_annotated(world, das, expected(world, das))


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


def test_the_same_snapshot_again_is_the_version_that_is_there(tmp_path, world):
    das = DAS.create(tmp_path / "das", world.schema)
    snapshots = das.path / "teachers" / "fm" / "snapshots"
    first = das.publish("fm", model(), CONFIG, 1000, HOUR, run="a")
    assert das.publish("fm", model(), CONFIG, 1000, HOUR, run="again") == first
    later = das.publish("fm", model(), CONFIG, 2000, HOUR)  # unchanged, but it may speak of other events
    assert (later.number, later.sha256) == (2, first.sha256)
    other = das.publish("fm", model(1), CONFIG, 2000, HOUR)
    assert other.number == 3
    assert other.sha256 != first.sha256
    assert das.publish("fm", model(), CONFIG, 2000, HOUR) == later
    assert das.lineage("fm").versions == (first, later, other)
    assert sorted(path.name for path in snapshots.iterdir()) == [f"step-{n:08d}" for n in (1, 2, 3)]


def test_other_settings_than_the_services_are_refused(tmp_path, world):
    das = DAS.create(tmp_path / "das", world.schema, rows=ROWS, skew_ms=5, codec="int8")
    same = DAS.create(tmp_path / "das", world.schema)  # none given: what it has
    assert (same.id, same.rows, same.skew_ms, same.codec) == (das.id, ROWS, 5, "int8")
    assert DAS.create(tmp_path / "das", world.schema, rows=ROWS, codec="int8").id == das.id
    for change, words in (
        ({"rows": 7}, f"has rows={ROWS}, not 7; leave rows out"),
        ({"skew_ms": 0}, "has skew_ms=5, not 0"),
        ({"codec": "fp32"}, "has codec=int8, not fp32"),
    ):
        with pytest.raises(DataError, match=words):
            DAS.create(tmp_path / "das", world.schema, **change)
    with pytest.raises(ValueError, match="codec: found 'zip'"):
        DAS.create(tmp_path / "new", world.schema, codec="zip")
    assert not (tmp_path / "new").exists()
    fresh = DAS.create(tmp_path / "new", world.schema)
    assert (fresh.rows, fresh.skew_ms, fresh.codec) == (16_384, HOUR, "fp32")
    assert fresh.id != das.id


def test_a_snapshot_that_was_exchanged_is_refused(tmp_path, world, students):
    das = service(tmp_path / "das", world, students, versions=(-1.0, -0.5))
    one, two = sorted((das.path / "teachers" / "fm" / "snapshots").iterdir())
    one.rename(tmp_path / "away")
    two.rename(one)
    (tmp_path / "away").rename(two)
    with pytest.raises(TeacherError, match="is not the snapshot that was published"):
        list(das.annotate("fm"))


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
    publish_at(das, world, (0.0, 0.4))
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
