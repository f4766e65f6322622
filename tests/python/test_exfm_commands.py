"""Teachers and students by command: what the configuration's sections do, and ``octavo das``."""

import dataclasses
import re

import numpy as np
import pyarrow as pa
import pytest
import torch
from training_support import demo_log, small_config
from typer.testing import CliRunner

from octavo.cli.main import app
from octavo.config import ConfigError, build_config, save_config
from octavo.data import DataError, EventLog, Label
from octavo.exfm import DAS, TeacherError, run
from octavo.store import LineageError
from octavo.training import CheckpointError, list_checkpoints

RUNNER = CliRunner(env={"COLUMNS": "200"})


@pytest.fixture(scope="module")
def logs(tmp_path_factory) -> dict[str, EventLog]:
    """The teacher's log with everything, and two students' parts of it."""
    folder = tmp_path_factory.mktemp("logs")
    world = demo_log(folder / "world", 3000)
    table, at = world.columns(world.column_names), np.arange(len(world)) % 3
    parts = {
        name: EventLog.write(folder / name, world.schema, [table.filter(pa.array(at != left))])
        for name, left in (("feed", 0), ("search", 1))
    }
    return {"world": world, **parts}


def config(log: EventLog, *changes: str):
    common = ["data.source=log", f"data.path={log.path}", "training.batch_size=100", "training.holdout=0"]
    values = small_config().resolved()
    values["data"] = {}
    return build_config(values, [*common, *changes])


def publishing(das):
    return ["name=fm", f"publish.das={das}", "publish.every=5", "publish.delay_hours=6"]


def teacher_config(logs, das):
    return config(logs["world"], *publishing(das))


def student_config(log, das, name, *changes):
    return config(log, f"name={name}", f"distillation.das={das}", "distillation.teachers.teacher.weight=2", *changes)


def test_a_teacher_publishes_while_it_trains_and_nothing_twice(logs, tmp_path):
    chosen = teacher_config(logs, tmp_path / "das")
    run(chosen, tmp_path / "run")
    das = DAS(tmp_path / "das")
    versions = das.lineage("teacher").versions
    times = logs["world"].read().time
    assert [v.trained_until for v in versions] == [int(times[at - 1]) for at in range(500, 3001, 500)]
    assert all(v.available_from == v.trained_until + 6 * 3_600_000 for v in versions)
    run(chosen, tmp_path / "again")  # the same events: no version follows from the newest
    assert len(das.lineage("teacher")) == len(versions)


def test_a_kill_between_checkpoint_and_publication_loses_no_version(logs, tmp_path, monkeypatch):
    run(teacher_config(logs, tmp_path / "whole"), tmp_path / "clean")
    publish, asked = DAS.publish, []

    def killed(self, *args, **named):
        asked.append(args)
        if len(asked) == 2:  # of step 10, whose checkpoint is there
            raise KeyboardInterrupt
        return publish(self, *args, **named)

    monkeypatch.setattr(DAS, "publish", killed)
    chosen = teacher_config(logs, tmp_path / "das")
    with pytest.raises(KeyboardInterrupt):
        run(chosen, tmp_path / "run")
    monkeypatch.undo()
    assert [path.name for path in list_checkpoints(tmp_path / "run" / "checkpoints")] == ["step-00000010"]
    assert len(DAS(tmp_path / "das").lineage("teacher")) == 1
    run(chosen, tmp_path / "run")

    def published(path):
        return [(v.sha256, v.trained_until) for v in DAS(path).lineage("teacher").versions]

    assert published(tmp_path / "das") == published(tmp_path / "whole")


def test_a_students_report_says_what_it_heard(logs, tmp_path):
    run(teacher_config(logs, tmp_path / "das"), tmp_path / "teacher")
    das = DAS(tmp_path / "das")
    results = run(student_config(logs["feed"], das.path, "feed"), tmp_path / "feed")
    records = das.soft_labels("teacher")(logs["feed"].read())
    known = records.version > 0
    (row,) = results.teachers
    assert (row.teacher, row.service, row.method) == ("teacher", das.id, "auxiliary_head")
    assert (row.events, row.silent) == (2000, int((~known).sum()))
    assert row.versions == {n: c for n, c in enumerate(records.version.bincount().tolist()) if n and c}
    lags = records.lag[known].double() / 3_600_000
    assert row.lag_hours == pytest.approx((lags.min().item(), lags.mean().item(), lags.max().item()))
    assert 0 < row.losses["teacher"] < 2  # twice a cross-entropy
    page = (tmp_path / "feed" / "report.html").read_text()
    for text in ("<h2>Teachers</h2>", das.id, f"{row.silent:,}", f"{len(row.versions)}: 1 to {max(row.versions)}"):
        assert text in page
    assert "<h2>Teachers</h2>" not in (tmp_path / "teacher" / "report.html").read_text()
    moved = tmp_path / "moved"
    das.path.rename(moved)
    run(student_config(logs["feed"], moved, "feed"), tmp_path / "feed")  # the same service in another place
    run(teacher_config(logs, tmp_path / "das"), tmp_path / "again")
    with pytest.raises(CheckpointError, match=f"service {das.id}.*now it would learn"):
        run(student_config(logs["feed"], tmp_path / "das", "feed"), tmp_path / "feed")


def test_students_ask_what_nobody_asked_and_learn_from_it(logs, tmp_path):
    run(teacher_config(logs, tmp_path / "das"), tmp_path / "teacher")
    das = DAS(tmp_path / "das")
    run(student_config(logs["feed"], das.path, "feed"), tmp_path / "feed")
    assert das.progress("teacher").events == 2000
    run(student_config(logs["search"], das.path, "search"), tmp_path / "search")
    assert das.progress("teacher").events == 3000  # a third was there
    records = das.soft_labels("teacher")(logs["world"].read())
    first = das.lineage("teacher")[1].available_from
    assert torch.equal(records.version > 0, logs["world"].read().time > first)
    run(config(logs["search"], "name=alone"), tmp_path / "alone")
    results = [(tmp_path / name / "history.jsonl").read_text().splitlines()[-1] for name in ("search", "alone")]
    assert results[0] != results[1]


def test_another_teacher_of_the_same_name_is_refused(logs, tmp_path):
    run(teacher_config(logs, tmp_path / "das"), tmp_path / "run")
    with pytest.raises(LineageError, match="did another publisher overtake this one"):
        run(config(logs["world"], *publishing(tmp_path / "das"), "model.seed=5"), tmp_path / "other")


def test_a_teacher_does_not_learn_the_future(logs, tmp_path):
    with pytest.raises(ConfigError, match="goes through its log once, in event time"):
        config(logs["world"], *publishing(tmp_path / "das"), "training.shuffle=true")
    delay = pa.array([60.0 if clicked else None for clicked in logs["world"].columns(["click"])["click"].to_pylist()])
    late = EventLog.write(
        tmp_path / "late",
        dataclasses.replace(logs["world"].schema, labels=(Label("click", "delay"),)),
        [logs["world"].columns(logs["world"].column_names).append_column("delay", delay)],
    )
    with pytest.raises(ConfigError, match=r"outcomes of 'click' come late.*training.labels=known"):
        run(config(late, *publishing(tmp_path / "das")), tmp_path / "run")
    run(
        config(late, *publishing(tmp_path / "das"), "training.labels=known", "training.wait_hours={click: 1}"),
        tmp_path / "r",
    )
    assert len(DAS(tmp_path / "das").lineage("teacher")) == 6
    windows = config(
        late, *publishing(tmp_path / "two"), "data.labels=[{task: click, delay: delay, windows: [1h, 6h]}]"
    )
    run(windows, tmp_path / "w")  # the delay of six hours is as long as the longest window
    assert len(DAS(tmp_path / "two").lineage("teacher")) == 6


def test_a_student_without_service_or_teacher_says_so(logs, tmp_path):
    with pytest.raises(DataError, match="is no data augmentation service"):
        run(student_config(logs["feed"], tmp_path / "nowhere", "feed"), tmp_path / "run")
    DAS.create(tmp_path / "das", logs["world"].schema)
    with pytest.raises(TeacherError, match="'teacher' has no published version"):
        run(student_config(logs["feed"], tmp_path / "das", "feed"), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"distillation.teachers.teacher.method"):
        student_config(logs["feed"], tmp_path / "das", "feed", "distillation.teachers.teacher.method=magic")
    with pytest.raises(ConfigError, match="distillation.teachers"):
        config(logs["feed"], "distillation.das=das", "distillation.teachers={}")


def test_das_by_command(logs, tmp_path):
    save_config(config(logs["world"], "name=fm", "training.holdout=0.5"), tmp_path / "fm.yaml")
    trained = RUNNER.invoke(app, ["train", str(tmp_path / "fm.yaml"), "--run-dir", str(tmp_path / "fm")])
    assert trained.exit_code == 0, trained.output
    das = str(tmp_path / "das")
    published = RUNNER.invoke(app, ["das", "publish", das, str(tmp_path / "fm"), "--delay", "6h"])
    assert published.exit_code == 0, published.output
    assert "version 1 of teacher: had seen events until" in published.output
    until = int(logs["world"].read(1499, 1500).time)
    assert DAS(das).lineage("teacher")[1].trained_until == until
    added = RUNNER.invoke(app, ["das", "run", das, f"feed={logs['feed'].path}", f"search={logs['search'].path}"])
    assert added.exit_code == 0, added.output
    assert "added 3,000 examples; 0 were there, 1,000 copies in several logs (0 with another time" in added.output
    silent = int((logs["world"].read().time <= until + 6 * 3_600_000).sum())
    for text in ("3,000 examples of feed, search", "1 of 1", f"{silent:,}"):
        assert text in added.output
    again = RUNNER.invoke(app, ["das", "run", das, f"feed={logs['feed'].path}", "--workers", "2"])
    assert again.exit_code == 0, again.output
    assert "nothing new: these logs were added before" in again.output
    assert RUNNER.invoke(app, ["das", "status", das]).output in again.output
    for arguments, words in (
        (["das", "run", das, "feed"], "feed: expected STUDENT=LOG"),
        (["das", "run", das, "--teacher", "other"], "'other' has no published version"),
        (["das", "status", str(tmp_path / "none")], "is no data augmentation service"),
        (["das", "publish", das, str(tmp_path)], "is .* a directory that octavo train left"),
    ):
        refused = RUNNER.invoke(app, arguments)
        assert refused.exit_code != 0
        said = " ".join((refused.output + str(refused.exception)).split())
        assert re.search(words, said), said
