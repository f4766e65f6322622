"""Epochs over a fixed set: order, early stopping, the best weights, and kills in the middle."""

from __future__ import annotations

import json

import pytest
import torch
from training_support import assert_same_bits, demo_log, everything, finished, small_config

from octavo import nn
from octavo.config import ConfigError
from octavo.data import EventLog
from octavo.training import Trainer, TrainingError
from octavo.training.epochs import Progress, Shuffled, stopping_value, validate
from octavo.training.history import epoch_rows


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> EventLog:
    return demo_log(tmp_path_factory.mktemp("epochs") / "log", 3000)


def config(**overrides):
    values = {"training__epochs": 4, "training__validation": 0.25, "training__patience": 2, "training__shuffle": "true"}
    return small_config(**{**values, **overrides})


def epoch_lines(run_dir) -> list[dict]:
    found = [json.loads(line) for line in (run_dir / "history.jsonl").read_text().splitlines()]
    lines = [line for line in found if "validation" in line]
    for line in lines:
        line.pop("rows_per_s")  # of the machine, not of the run
    return lines


def test_an_epoch_is_every_event_once_in_an_order_of_its_own(log) -> None:
    shuffled = Shuffled(log, 500, seed=3)
    orders = [torch.cat([batch.id for batch in shuffled.batches(64, epoch, 0)]) for epoch in (0, 1, 0)]
    assert torch.equal(orders[0].sort().values, torch.arange(500))
    assert torch.equal(orders[0], orders[2])
    assert not torch.equal(orders[0], orders[1])
    rest = torch.cat([batch.id for batch in shuffled.batches(64, 1, 128)])
    assert torch.equal(rest, orders[1][128:])


def test_the_best_epoch_is_kept_and_patience_ends_training(log, tmp_path) -> None:
    trainer = finished(Trainer(config(training__epochs=30, model__table_optimizer__lr=0.5), log, tmp_path))
    found = epoch_lines(tmp_path)
    values = [line["validation"]["click"]["ne"] for line in found]
    best = values.index(min(values))
    assert len(found) == best + 1 + 2 < 30  # two epochs without a better one
    assert [line["best"] for line in found] == [v == min(values[: i + 1]) for i, v in enumerate(values)]
    again = validate(trainer.model, log, trainer.fit_end, trainer.train_end)
    assert again["click"].ne == values[best]
    assert (trainer.fit_end, trainer.train_end) == (1800, 2400)
    resumed = Trainer(config(training__epochs=30, model__table_optimizer__lr=0.5), log, tmp_path)
    assert resumed.resume()
    assert list(resumed.run()) == []
    assert_same_bits(everything(resumed), everything(trainer))


def test_plateaus_slow_learning_down_and_a_kill_changes_nothing(log, tmp_path) -> None:
    chosen = config(training__epochs=5, training__plateau_factor=0.25, training__patience=4,
                    model__table_optimizer__lr=0.5)  # fmt: skip
    whole = finished(Trainer(chosen, log, tmp_path / "whole"))
    lines = epoch_lines(tmp_path / "whole")
    full, stale = chosen.training.optimizer.lr, 0
    for line in lines:
        assert line["lr"] == full * 0.25**stale  # of the epoch; what it brought tells in the next
        stale += not line["best"]
    assert whole.stopping.plateaus == stale > 1
    assert [row.lr for row in epoch_rows(tmp_path / "whole" / "history.jsonl")] == [line["lr"] for line in lines]
    assert {m.lr for m in whole.model.modules() if isinstance(m, nn.EmbeddingBags)} == {0.5 * 0.25**stale}
    trainer = Trainer(chosen, log, tmp_path / "run")
    for seen in trainer.run():
        if seen >= 1800 * 4 + 64 * 7:
            break
    assert_same_bits(everything(finished(Trainer(chosen, log, tmp_path / "run"))), everything(whole))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"training__validation": 0}, "needs several epochs that are scored"),
        ({"training__epochs": 1}, "needs several epochs that are scored"),
        ({"training__patience": 1}, "patience=1 ends training at the first epoch without a better one"),
    ],
)
def test_a_plateau_factor_that_could_do_nothing_is_refused(overrides, said) -> None:
    with pytest.raises(ConfigError, match=f"plateau_factor=0.1.*{said}"):
        config(training__plateau_factor=0.1, **overrides)


def test_progressive_points_are_of_the_first_epoch(log, tmp_path) -> None:
    trainer = finished(Trainer(config(training__epochs=2, training__shuffle="false"), log, tmp_path / "in-order"))
    assert trainer.progressive.position == trainer.fit_end == 1800
    shuffled = finished(Trainer(config(training__epochs=2), log, tmp_path / "shuffled"))
    assert shuffled.progressive.position == 0  # no order of time, no progress over it


@pytest.mark.parametrize("stop_at", [1800 + 64 * 7, 1800 * 2 - 1, 1800 * 2])
def test_a_kill_in_a_later_epoch_changes_nothing(log, tmp_path, stop_at) -> None:
    whole = finished(Trainer(config(), log, tmp_path / "whole"))
    trainer = Trainer(config(), log, tmp_path / "run")
    for seen in trainer.run():
        if seen >= stop_at:
            break
    assert_same_bits(everything(finished(Trainer(config(), log, tmp_path / "run"))), everything(whole))
    assert epoch_lines(tmp_path / "run") == epoch_lines(tmp_path / "whole")
    rows = epoch_rows(tmp_path / "run" / "history.jsonl")
    assert [(row.epoch, row.quality.ne) for row in rows] == [
        (line["epoch"], line["validation"]["click"]["ne"]) for line in epoch_lines(tmp_path / "run")
    ]
    assert all(0.3 < row.loss < 0.8 for row in rows)


def test_epochs_in_time_order_see_the_log_as_it_is(log, tmp_path) -> None:
    trainer = Trainer(config(training__shuffle="false", training__epochs=2, training__validation=0), log, tmp_path)
    seen = list(trainer.run())
    assert seen[-1] == trainer.total == 4800
    once = finished(Trainer(small_config(), log, tmp_path / "once"))
    assert_same_bits(once.progressive.state_dict(), trainer.progressive.state_dict())


def test_progress() -> None:
    progress = Progress()
    assert [progress.take(v, s) for s, v in enumerate([0.9, 0.8, float("nan"), 0.8, 0.7])] == [
        True,
        True,
        False,
        False,
        True,
    ]
    assert (progress.best, progress.step, progress.stale, progress.plateaus) == (0.7, 4, 0, 2)


def test_the_stopping_metric_is_the_mean_over_tasks_that_have_it() -> None:
    from octavo.evaluation import Quality

    found = {"a": Quality(9, 0.9, 0.7, 1.0), "b": Quality(9, 0.5, 0.8, 1.0), "c": Quality(0, None, None, None)}
    assert stopping_value(found, "ne") == pytest.approx(0.7)
    assert stopping_value(found, "auc") == pytest.approx(0.25)


def test_refusals(log, tmp_path) -> None:
    with pytest.raises(ConfigError, match="labels=known is one pass in event time"):
        small_config(training__labels="known", training__epochs=2)
    with pytest.raises(TrainingError, match="leave none to train on with holdout=0.2 and validation=0.99"):
        Trainer(small_config(training__validation=0.99), log.head(3), tmp_path)
