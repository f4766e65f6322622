"""Labels that arrive late: nothing is learned, or scored, before its label is known; kills change nothing."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from training_support import assert_same_bits, everything, finished, small_config

from octavo.config import ConfigError
from octavo.data import AdsWorld, EventLog, preset
from octavo.evaluation import ne
from octavo.training import Trainer, TrainingError
from octavo.training.late import as_known

HOUR = 3_600_000
WAIT = "{click: 1.0, conversion: 30.0}"


def world() -> AdsWorld:
    calm = preset("delay").traffic.model_copy(update={"impressions_per_day": 700.0})
    return AdsWorld(preset("delay").model_copy(update={"traffic": calm}), seed=4)


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> EventLog:
    return world().write(tmp_path_factory.mktemp("late") / "log", days=6)


def config(**overrides):
    values = {"training__labels": "known", "training__wait_hours": WAIT, "training__holdout": 0.25}
    return small_config(**{**values, **overrides})


def state_at(trainer: Trainer, moment: int) -> dict[str, torch.Tensor]:
    """Everything just before the first batch that begins after ``moment``."""
    for _ in trainer.run():
        upcoming = int(trainer.log.read(trainer.position, trainer.position + 1).time)
        if upcoming > moment:
            return everything(trainer)
    raise AssertionError("the log ends before the moment")


def planted(log: EventLog, path, moment: int) -> EventLog:
    """The same log, with every outcome that came after ``moment`` turned round."""
    table = log.columns(log.column_names)
    time = table["time"].to_numpy()
    for task in ("click", "conversion"):
        delay = table[f"{task}_delay"].to_numpy(zero_copy_only=False)
        label = table[task].to_numpy().copy()
        late = time + delay * 1000 > moment  # nan: none
        never = np.isnan(delay) & (time + (1 if task == "click" else 30) * HOUR > moment)
        label[late], label[never] = 0, 1
        delays = np.where(late, np.nan, np.where(never, np.maximum(moment - time, 0) / 1000 + 60, delay))
        assert late.sum() + never.sum() > 20
        for name, values in ((task, label), (f"{task}_delay", pa.array(delays, mask=np.isnan(delays)))):
            place = table.column_names.index(name)
            table = table.set_column(place, name, pa.array(values).cast(table.schema.field(name).type))
    return EventLog.write(path, log.schema, [table])


def test_no_label_from_the_future_is_used(log, tmp_path) -> None:
    moment = int(log.read(2000, 2001).time)
    other = planted(log, tmp_path / "other", moment)
    states = [state_at(Trainer(config(), each, tmp_path / each.path.name), moment) for each in (log, other)]
    assert_same_bits(*states)
    final = [
        state_at(Trainer(small_config(training__holdout=0.25), each, tmp_path / f"final-{each.path.name}"), moment)
        for each in (log, other)
    ]
    changed = [name for name, tensor in final[0].items() if not torch.equal(tensor, final[1][name])]
    assert len(changed) > 10  # the plant is seen by who looks
    later = [everything(finished(Trainer(config(), each, tmp_path / f"end-{each.path.name}"))) for each in (log, other)]
    assert any(not torch.equal(tensor, later[1][name]) for name, tensor in later[0].items())


def test_every_label_that_is_known_is_scored_and_learned_from(log, tmp_path) -> None:
    trainer = finished(Trainer(config(), log, tmp_path))
    end = int(log.read(trainer.train_end, trainer.train_end + 1).time)
    time = log.read(0, trainer.fit_end).time
    for lane, hours in zip(trainer._lanes, (1, 30), strict=True):
        blocks = [int(time[: begin + 64][-1]) + hours * HOUR <= end for begin in range(0, trainer.fit_end, 64)]
        assert lane.position == min(sum(blocks) * 64, trainer.fit_end)
        assert trainer.fit_end - lane.position > 0 or hours == 1
    seen = trainer.progressive.cumulative()
    assert seen["click"].events == trainer._lanes[0].position
    assert seen["conversion"].events == trainer._lanes[1].position < seen["click"].events
    points = {p.position for p in trainer.progressive.points if p.task == "conversion"}
    assert max(points) == trainer._lanes[1].position


def test_a_prediction_is_scored_as_it_was_made(log, tmp_path) -> None:
    trainer = Trainer(config(), log, tmp_path)
    before = trainer.model.train()(log.read(0, 64))["conversion"].detach()
    trainer = finished(trainer)
    part = as_known(log.read(0, 64), ["conversion"], 30 * HOUR)
    again = Trainer(config(training__window=64), log, tmp_path / "short")
    points = [p for p in finished(again).progressive.points if p.task == "conversion" and p.domain is None]
    assert points[0].quality.ne == pytest.approx(ne(before, part.labels["conversion"], logits=True), rel=1e-6)


def test_what_is_held_is_of_the_whole_network(log, tmp_path) -> None:
    trainer = Trainer(config(model__dropout=0.5), log, tmp_path)
    served = torch.cat([trainer.model.eval()(log.read(0, 64))[task].detach() for task in ("click", "conversion")])
    next(trainer.run())
    held = [lane.state_dict()[f"{lane.heads[0]}/held"].ravel() for lane in trainer._lanes]
    assert torch.equal(torch.cat(held), served)
    assert trainer.model.training


def test_what_comes_after_the_wait_had_not_happened(log) -> None:
    batch = log.read(0, 3000)
    known = as_known(batch, ["conversion"], 30 * HOUR)
    late = batch.delay["conversion"].double() > 30 * 3600
    assert late.sum() > 5
    assert torch.equal(known.labels["conversion"][late], torch.zeros(int(late.sum())))
    assert torch.equal(known.labels["conversion"][~late], batch.labels["conversion"][~late])
    assert torch.equal(known.labels["click"], batch.labels["click"])


def test_a_log_that_ends_when_it_was_collected_teaches_the_same(log, tmp_path) -> None:
    seen = world().write(tmp_path / "log", days=6, observed_until="end")
    opened = seen.read().labels["conversion"].isnan()
    assert opened.float().mean() > 0.1
    wait = 30 * HOUR
    waited = log.read().time + wait <= seen.observed_until
    labels = [
        as_known(each.read(), ["conversion"], wait, each.observed_until).labels["conversion"] for each in (log, seen)
    ]
    assert torch.equal(labels[0][waited], labels[1][waited])
    assert labels[1][waited & opened].numel() > 100  # whose 0 the log does not hold
    assert bool(labels[1][~waited & opened].isnan().all())
    states = [everything(finished(Trainer(config(), each, tmp_path / str(i)))) for i, each in enumerate((log, seen))]
    assert_same_bits(*states)  # base rates included


def test_a_kill_changes_nothing(log, tmp_path) -> None:
    whole = finished(Trainer(config(), log, tmp_path / "whole"))
    for stop in (700, 1900):
        trainer = Trainer(config(), log, tmp_path / "run")
        trainer.resume()
        for position in trainer.run():
            if position > stop:
                break
    resumed = finished(Trainer(config(), log, tmp_path / "run"))
    assert_same_bits(everything(resumed), everything(whole))
    assert resumed.updates == whole.updates
    lines = [(tmp_path / name / "history.jsonl").read_text().count("\n") for name in ("whole", "run")]
    assert lines[0] == lines[1] > 4


def test_refusals(log, tmp_path) -> None:
    with pytest.raises(TrainingError, match=r"training.wait_hours: the outcomes of task 'conversion' are late"):
        Trainer(config(training__wait_hours="{click: 1}"), log, tmp_path)
    with pytest.raises(TrainingError, match="wait_hours: the log has no task 'buy'; it has click, conversion"):
        Trainer(config(training__wait_hours="{buy: 1}"), log, tmp_path)
    with pytest.raises(ConfigError, match="wait_hours means nothing for labels=final"):
        small_config(training__wait_hours="{click: 1}")
