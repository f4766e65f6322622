"""The whole job: where its log comes from and what it leaves behind."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from training_support import small_config

from octavo.config import ConfigError, DataConfig
from octavo.data import AdsWorld, EventLog, Label, Schema, Sparse
from octavo.evaluation import ne
from octavo.training import Trainer, TrainingError, list_checkpoints, open_log, run
from octavo.training.run import evaluate


def test_a_world_is_simulated_once_and_reused(tmp_path) -> None:
    config = DataConfig(source="world", preset="delay", events=700, seed=2)
    log = open_log(config, tmp_path)
    expected = next(AdsWorld("delay", 2).tables(events=700, rows=700))
    assert log.columns(expected.column_names).combine_chunks().equals(expected)
    stamp = (log.path / "log.json").stat().st_mtime_ns
    again = open_log(config, tmp_path)
    assert (again.path, (again.path / "log.json").stat().st_mtime_ns) == (log.path, stamp)
    other = open_log(config.model_copy(update={"events": None, "days": 0.01}), tmp_path)
    assert other.path != log.path
    assert other.files[-1].last_time < AdsWorld("delay", 2).time(0.01)


def test_an_unknown_preset_is_named(tmp_path) -> None:
    config = small_config(data="{source: world, preset: dlay, events: 5}")
    with pytest.raises(ConfigError, match="preset 'dlay': there is none of this name; did you mean delay?"):
        open_log(config.data, tmp_path)


SCHEMA = Schema(sparse=(Sparse("group", 4),), labels=(Label("click"),))


def grouped(path, click: np.ndarray, p: np.ndarray, negatives: float = 1.0) -> EventLog:
    """Events of four groups in turn, with their labels and true probabilities."""
    n = len(click)
    columns = {"time": np.arange(n), "id": np.random.default_rng(1).permutation(n), "group": np.arange(n) % 4}
    return EventLog.write(path, SCHEMA, [pa.table(columns | {"click": click, "_p_true": p})], negatives=negatives)


def log_config(log: EventLog):
    return small_config(data=f"{{source: log, path: {log.path}}}")


def test_the_floor_is_on_the_scale_of_a_log_with_fewer_negatives(tmp_path) -> None:
    p = np.array([0.02, 0.05, 0.1, 0.3])[np.arange(12_000) % 4]
    click = (np.random.default_rng(5).random(len(p)) < p).astype(np.int8)
    log = grouped(tmp_path / "log", click, p, negatives=0.2)
    trainer = Trainer(log_config(log), log, tmp_path)
    found = evaluate(trainer, lambda *_: None)
    kept = log.columns(["_p_true"], trainer.train_end)["_p_true"].to_numpy()
    labels = log.read(trainer.train_end).labels["click"]
    odds = kept / (1 - kept) / 0.2
    assert found.floor_ne == pytest.approx(ne(odds / (1 + odds), labels), rel=1e-9)
    assert found.floor_ne < ne(kept, labels) - 0.1


def test_labels_of_one_class_leave_out_the_baseline(tmp_path) -> None:
    log = grouped(tmp_path / "log", np.zeros(600, np.int8), np.full(600, 0.1))
    results = run(log_config(log), tmp_path / "run")
    assert results.baselines == {}
    assert results.training["baseline"].startswith("none: the known labels of 'click' before the held-out events")
    assert results.heldout.ne is None
    assert [row.ne_difference for row in results.numerics] == [None] * len(results.numerics)
    assert (tmp_path / "run" / "report.html").stat().st_size > 1000


def test_a_label_between_0_and_1_is_refused_at_the_start(tmp_path) -> None:
    click = np.zeros(600, np.float32)
    click[:3], click[577] = (0, 1, np.nan), 0.5
    log = grouped(tmp_path / "log", click, np.full(600, 0.1))
    with pytest.raises(TrainingError, match=r"task 'click' is 0\.5 at event 577; a label must be 0, 1 or null"):
        Trainer(log_config(log), log, tmp_path / "run")
    Trainer(log_config(log), log.head(577), tmp_path / "run")


def test_what_a_kill_leaves_of_checkpoints_that_go_is_none(tmp_path, monkeypatch) -> None:
    config = small_config(data__events=1500)
    run(config, tmp_path)
    assert list_checkpoints(tmp_path / "checkpoints")

    def die(path, *_, **__) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("octavo.training.checkpoint.shutil.rmtree", die)
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path, fresh=True)
    assert not (tmp_path / "checkpoints").exists()
    run(config, tmp_path, fresh=True)
    assert not [path for path in tmp_path.iterdir() if ".tmp-" in path.name]
