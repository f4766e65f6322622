"""A run's own Probe in its checkpoints; plans of all three directions while it trains, from it or a file; the valve."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training_support import assert_same_bits, demo_log, everything, finished, small_config

from octavo import loka
from octavo.config import ConfigError, save_config
from octavo.data import EventLog
from octavo.ops.dispatch import Plan, Requirement
from octavo.training import Checkpoint, Trainer, TrainingError, list_checkpoints, planning, probe_run
from octavo.training.evaluate import load_trained
from octavo.training.numerics import linear_layers

PROBED = {"training__probe__every": 4, "training__probe__after": 6}
PLANNED = {**PROBED, "training__precision": "plan", "training__plan_from": "probe", "training__plan_after": 15,
           "plan__min_sqnr_db": 10}  # fmt: skip


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> EventLog:
    return demo_log(tmp_path_factory.mktemp("planned") / "log", 3000)


@pytest.fixture(autouse=True)
def _any_speed(monkeypatch) -> None:
    """Layers this small gain no speed; what is tested is what a plan does."""
    solve = loka.solve
    monkeypatch.setattr(loka, "solve", lambda report, requirement, min_speedup=0.0, training=False: solve(
        report, requirement, 1e-6, training))  # fmt: skip


def _stopped(trainer: Trainer, step: int) -> Trainer:
    """The trainer, left after ``step``."""
    for _ in trainer.run():
        if trainer.step == step:
            break
    return trainer


@pytest.mark.parametrize("values", [PROBED, {**PROBED, "training__epochs": 2, "training__validation": 0.1}])
def test_statistics_are_resumed_with_the_checkpoint(log, tmp_path, values) -> None:
    config = small_config(**values)
    whole = finished(Trainer(config, log, tmp_path / "whole"))
    _stopped(Trainer(config, log, tmp_path / "run"), 25)
    resumed = finished(Trainer(config, log, tmp_path / "run"))
    assert_same_bits(resumed.probe.state_dict(), whole.probe.state_dict())
    assert whole.probe.steps == whole.updates - 6
    assert whole.probe.observed == whole.probe.steps // 4
    rows = {site.input.rows for site in whole.probe.sites.values()}
    assert max(rows) <= whole.probe.observed * 64  # no row of the validation slice
    unwatched = finished(
        Trainer(small_config(**{k: v for k, v in values.items() if k not in PROBED}), log, tmp_path / "no")
    )
    assert_same_bits(everything(whole), everything(unwatched))
    assert not any(module._forward_hooks for module in whole.model.modules())


@pytest.mark.parametrize("labels", ["final", "known"])
def test_octavo_probe_takes_what_the_run_gathered(log, tmp_path, labels) -> None:
    config = small_config(data__events=3000, training__labels=labels, **PROBED)
    run_dir = tmp_path / "run"
    log_path = run_dir / "log-3000-0"
    demo_log(log_path, 3000)
    trainer = finished(Trainer(config, EventLog(log_path), run_dir))
    before = len(list_checkpoints(trainer.checkpoints))
    results = probe_run(config, run_dir, Requirement(max_post_norm=0.05), steps=3, every=1, draws=4)
    assert results.report.steps == trainer.probe.steps
    assert results.report.settings["observed"] == trainer.probe.observed
    assert "what the run's own Probe saw" in results.facts["Probe"]
    assert f"events up to {trainer.position:,}" in results.facts["trained"]
    assert len(list_checkpoints(trainer.checkpoints)) == before


def test_a_probed_plan_has_all_directions_and_resumes_to_the_same_bits(log, tmp_path) -> None:
    config = small_config(**PLANNED)
    trainer = _stopped(Trainer(config, log, tmp_path / "run"), 25)
    assert {entry.direction for entry in trainer.plan} == set(loka.DIRECTIONS)
    low = [entry for entry in trainer.plan if entry.numerics != "fp32"]
    assert {entry.direction for entry in low} == set(loka.DIRECTIONS)
    assert trainer.valve is not None
    state = Checkpoint(list_checkpoints(trainer.checkpoints)[-1]).meta
    assert Plan.from_json(state["plan"]) == trainer.plan
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())
    at_20 = Trainer(config, log, tmp_path / "run")
    assert at_20.resume()
    assert at_20.step == 20
    for _ in at_20.run():  # the run that went on
        if at_20.step == 35:
            break
    expected = everything(at_20)
    again = Trainer(config, log, tmp_path / "run")
    assert again.resume()
    assert again.step == 30
    assert_same_bits(again.valve.recent(), Checkpoint(list_checkpoints(again.checkpoints)[-1]).group("valve"))
    for _ in again.run():
        if again.step == 35:
            break
    assert_same_bits(everything(again), expected)
    assert_same_bits(again.valve.recent(), at_20.valve.recent())
    assert again.plan == at_20.plan == trainer.plan


def _plan(log: EventLog, folder: Path) -> Path:
    """What another run's Probe gives."""
    other = finished(Trainer(small_config(**PROBED), log, folder))
    path = folder / "plan.json"
    requirement = Requirement(min_sqnr_db=10)
    loka.solve(other.probe.evaluate(draws=4), requirement, 1e-6, training=True).save(path)
    return path


def test_a_plan_from_a_file_trains_from_the_first_update_on(log, tmp_path) -> None:
    path = _plan(log, tmp_path / "other")
    values = {"training__precision": "plan", "training__plan_from": "file", "training__plan_file": str(path)}
    config = small_config(**values)
    whole = finished(Trainer(config, log, tmp_path / "whole"))
    assert whole.plan == Plan.load(path)
    _stopped(Trainer(config, log, tmp_path / "run"), 25)
    resumed = finished(Trainer(config, log, tmp_path / "run"))
    assert_same_bits(everything(resumed), everything(whole))
    assert resumed.valve.state_dict() == whole.valve.state_dict()
    model, _ = load_trained(tmp_path / "whole", config, log)
    forward = {entry.site: entry.numerics for entry in whole.plan.of_direction("forward")}
    assert {site: layer.numerics for site, layer in linear_layers(model).items()} == forward
    wrong = small_config(model__top="[24]", **values)
    with pytest.raises(TrainingError, match=r"training\.plan_file: "):
        finished(Trainer(wrong, log, tmp_path / "wrong"))


def test_a_plan_that_came_too_late_is_told(log, tmp_path) -> None:
    late = Trainer(small_config(**{**PLANNED, "training__plan_after": 10_000}), log, tmp_path / "late")
    with pytest.warns(UserWarning, match=r"the plan is made after 10000 updates, the run had \d+: all FP32"):
        finished(late)
    broken = small_config(training__precision="plan", training__plan_from="file", training__plan_file="/nowhere.json")
    with pytest.raises(TrainingError, match=r"training.plan_file: .*/nowhere.json"):
        finished(Trainer(broken, log, tmp_path / "file"))


def test_the_valve_closes_and_stays_closed(log, tmp_path) -> None:
    path = _plan(log, tmp_path / "other")
    values = {"training__precision": "plan", "training__plan_from": "file", "training__plan_file": str(path),
              "training__valve__every": 4, "training__valve__limit": 1.0001}  # fmt: skip
    config = small_config(**values)
    whole = finished(Trainer(config, log, tmp_path / "whole"))
    assert whole.valve.closed  # inputs move by a ten-thousandth
    _stopped(Trainer(config, log, tmp_path / "run"), 25)
    resumed = finished(Trainer(config, log, tmp_path / "run"))
    assert [str(c) for c in resumed.valve.closed] == [str(c) for c in whole.valve.closed]
    assert_same_bits(everything(resumed), everything(whole))
    forced = planning.in_force(whole.plan, whole.valve.state_dict())
    closed = {closing.site for closing in whole.valve.closed}
    assert {entry.site for entry in forced if entry.numerics == "fp32"} >= closed


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"training__plan_from": "probe"}, "plan_from=probe means nothing for precision=fp32"),
        ({"training__precision": "plan", "training__plan_from": "probe"}, "plan_from=probe needs probe"),
        ({"training__precision": "plan", "training__plan_from": "file"}, "plan_from=file and plan_file go together"),
        ({**PLANNED, "training__plan_after": 9}, "plan_after=9: the probe looks first at update 10"),
    ],
)
def test_what_does_not_fit_is_refused(values, words) -> None:
    with pytest.raises(ConfigError, match=words):
        small_config(**values)


_CHILD = """
import hashlib, json, sys
import torch, torch.distributed as dist
sys.path.insert(0, sys.argv[3])
from octavo import loka
from octavo.config import load_config
from octavo.data import EventLog
from octavo.training import Group, Trainer
from training_support import everything
solve = loka.solve
loka.solve = lambda report, requirement, min_speedup=0.0, training=False: solve(report, requirement, 1e-6, training)
with Group.current() as group:
    trainer = Trainer(load_config(sys.argv[2] + "/config.yaml"), EventLog(sys.argv[1]), sys.argv[2], group)
    for _ in trainer.run():
        pass
    state = b"".join(tensor.contiguous().numpy().tobytes() for tensor in everything(trainer).values())
    found = [None] * group.world
    digest = hashlib.sha256(state).hexdigest()
    mine = [digest, trainer.plan.to_json(), len(trainer.valve.closed), trainer.probe.observed]
    dist.all_gather_object(found, mine)
    if group.is_first:
        print(json.dumps(found))
"""


def test_two_processes_make_one_plan_and_one_probe(log, tmp_path) -> None:
    save_config(small_config(**PLANNED), tmp_path / "config.yaml")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python",
               sys.executable, "-c", _CHILD, str(log.path), str(tmp_path), str(Path(__file__).parent)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=170)
    assert done.returncode == 0, done.stderr[-3000:]
    one, other = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("[")))
    assert one == other
    alone = Trainer(small_config(**PLANNED), log, tmp_path)
    assert alone.resume()
    assert alone.probe.observed == 2 * one[3]
    assert alone.plan.to_json() == one[1]
