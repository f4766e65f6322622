"""The streaming trainer: it learns, scores before it trains, and resumes bit for bit after a kill."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from training_support import EVENTS, assert_same_bits, demo_log, everything, small_config

from octavo.data import EventLog
from octavo.evaluation import ne
from octavo.training import CheckpointError, Trainer, TrainingError, list_checkpoints


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> EventLog:
    return demo_log(tmp_path_factory.mktemp("trainer") / "log")


def _finish(trainer: Trainer) -> Trainer:
    for _ in trainer.run():
        pass
    return trainer


@pytest.fixture(scope="module")
def uninterrupted(log, tmp_path_factory) -> dict[str, torch.Tensor]:
    return everything(_finish(Trainer(small_config(), log, tmp_path_factory.mktemp("whole"))))


def test_it_learns(tmp_path_factory) -> None:
    log = demo_log(tmp_path_factory.mktemp("long") / "log", 30_000)
    config = small_config(model__embedding_dim=16, training__window=6000)
    trainer = _finish(Trainer(config, log, tmp_path_factory.mktemp("run")))
    points = [point.quality for point in trainer.progressive.points]
    assert trainer.position == trainer.train_end == 24_000
    assert points[-1].ne < 0.97
    assert points[-1].auc > 0.62
    assert points[-1].ne < points[0].ne
    labels = log.read(0, trainer.train_end).labels["click"]
    assert ne(torch.full_like(labels, float(labels.mean())), labels) == pytest.approx(1.0, abs=1e-6)


def test_predictions_are_made_before_training(log, tmp_path) -> None:
    trainer = Trainer(small_config(), log, tmp_path)
    first = log.read(0, 64)
    expected = trainer.model.train()(first)["click"].detach()
    steps = trainer.run()
    next(steps)
    state = trainer.progressive.state_dict()
    assert torch.equal(state["click/open"][0], expected)
    next(steps)
    untrained = Trainer(small_config(), log, tmp_path / "other").model(log.read(64, 128))["click"].detach()
    assert not torch.equal(trainer.progressive.state_dict()["click/open"][0, 64:], untrained)


def test_with_dropout_the_whole_network_is_scored_and_the_rest_trained(log, tmp_path) -> None:
    trainer = Trainer(small_config(model__dropout=0.5), log, tmp_path / "run")
    served, states = [], []
    steps = trainer.run()
    for first in (0, 64):
        with torch.no_grad():
            served.append(trainer.model.eval()(log.read(first, first + 64))["click"])
        before = torch.get_rng_state()
        next(steps)
        states.append(torch.equal(before, torch.get_rng_state()))
    assert torch.equal(trainer.progressive.state_dict()["click/open"][0], torch.cat(served))
    assert states == [False, False]  # training still leaves units out


def test_the_same_run_twice_gives_the_same_bits(log, tmp_path, uninterrupted) -> None:
    assert_same_bits(everything(_finish(Trainer(small_config(), log, tmp_path))), uninterrupted)


def test_resuming_between_batches_gives_the_same_bits(log, tmp_path, uninterrupted) -> None:
    for _ in range(4):
        trainer = Trainer(small_config(), log, tmp_path)
        trainer.resume()
        start = trainer.position
        for position in trainer.run():
            if position - start >= 64 * 25 and position < trainer.train_end:
                break  # dies five batches after its last checkpoint
        torch.rand(7)
    trainer = Trainer(small_config(), log, tmp_path)
    assert trainer.resume()
    assert_same_bits(everything(_finish(trainer)), uninterrupted)


_CHILD = """
import sys
sys.path.insert(0, sys.argv[3])
from training_support import demo_log, small_config
from pathlib import Path
from octavo.training import Trainer
trainer = Trainer(small_config(training__checkpoint_every=1), demo_log(Path(sys.argv[1])), sys.argv[2])
trainer.resume()
print("go", flush=True)
for position in trainer.run():
    pass
print("done", flush=True)
"""


def test_sigkill_at_any_moment_loses_nothing(log, tmp_path, uninterrupted) -> None:
    rng = np.random.default_rng(7)
    kills = 0
    command = [sys.executable, "-c", _CHILD, str(log.path), str(tmp_path), str(Path(__file__).parent)]
    for delay in (0.02, 0.1, 0.25, *rng.uniform(0.0, 0.5, 4)):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "go\n"
            time.sleep(delay)
            child.send_signal(signal.SIGKILL)
            kills += child.wait() == -signal.SIGKILL
        for path in list_checkpoints(tmp_path / "checkpoints"):
            assert (path / "manifest.json").exists()
    assert kills >= 3
    trainer = Trainer(small_config(training__checkpoint_every=1), log, tmp_path)
    assert trainer.resume()
    assert_same_bits(everything(_finish(trainer)), uninterrupted)


def test_only_the_newest_checkpoints_stay(log, tmp_path) -> None:
    trainer = _finish(Trainer(small_config(), log, tmp_path))
    kept = list_checkpoints(trainer.checkpoints)
    assert [path.name for path in kept] == ["step-00000070", "step-00000075"]
    again = Trainer(small_config(), log, tmp_path)
    assert again.resume()
    assert again.position == again.train_end


def test_resume_refuses_what_would_change_the_result(log, tmp_path) -> None:
    _finish(Trainer(small_config(), log, tmp_path))
    with pytest.raises(CheckpointError, match=r"training.batch_size was 64, is 32.*start afresh"):
        Trainer(small_config(training__batch_size=32), log, tmp_path).resume()
    with pytest.raises(CheckpointError, match=r"model.top was \[32, 16\], is \[32, 8\]"):
        Trainer(small_config(model__top="[32, 8]"), log, tmp_path).resume()
    other = demo_log(tmp_path / "other", EVENTS + 1)
    with pytest.raises(CheckpointError, match="was trained on another log"):
        Trainer(small_config(), other, tmp_path).resume()
    assert Trainer(small_config(training__checkpoint_every=3, plan__min_sqnr_db=30), log, tmp_path).resume()


def test_resume_refuses_another_demand_on_the_plan_in_training(log, tmp_path) -> None:
    short = log.head(200)
    planned = {"training__precision": "plan"}
    with pytest.warns(UserWarning, match="the plan is made after 20 updates, the run had 3"):
        _finish(Trainer(small_config(**planned), short, tmp_path))
    with pytest.raises(CheckpointError, match=r"plan.min_sqnr_db was 25.0, is 30.0\); start afresh"):
        Trainer(small_config(plan__min_sqnr_db=30, **planned), short, tmp_path).resume()
    with pytest.raises(CheckpointError, match=r"plan.calibration_events was 256, is 128"):
        Trainer(small_config(plan__calibration_events=128, **planned), short, tmp_path).resume()
    assert Trainer(small_config(plan__rounds=4, **planned), short, tmp_path).resume()


@pytest.mark.parametrize("victim", ["manifest.json", "dense.safetensors", "table-000.rows-0-64.safetensors"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "delete"])
def test_a_damaged_checkpoint_is_named(log, tmp_path, victim, damage) -> None:
    _finish(Trainer(small_config(), log, tmp_path))
    newest = list_checkpoints(tmp_path / "checkpoints")[-1]
    path = newest / victim
    if not path.exists():
        path = next(p for p in newest.iterdir() if p.name.startswith("table-000"))
    content = path.read_bytes()
    if damage == "truncate":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        path.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])
    else:
        path.unlink()
    with pytest.raises(CheckpointError) as error:
        Trainer(small_config(), log, tmp_path).resume()
    assert str(newest) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_loss_that_is_not_finite_stops_with_its_place(log, tmp_path) -> None:
    trainer = Trainer(small_config(), log, tmp_path)
    steps = trainer.run()
    next(steps)
    with torch.no_grad():
        trainer.model.heads["click"].bias.fill_(float("nan"))
    with pytest.raises(
        TrainingError, match=r"loss is nan on events 64 to 127; .* start afresh \(--fresh\) with a lower"
    ):
        next(steps)


def test_warmup_and_clipping(log, tmp_path) -> None:
    config = small_config(training__optimizer__warmup=10, training__optimizer__lr=0.01, training__clip_norm=0.001)
    trainer = Trainer(config, log, tmp_path)
    rates = []
    for _, _ in zip(range(12), trainer.run(), strict=False):
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    assert rates[:3] == pytest.approx([0.001, 0.002, 0.003])
    assert rates[9:] == pytest.approx([0.01] * 3)
    norm = torch.stack([p.grad.norm() for p in trainer.model.parameters() if p.grad is not None]).norm()
    assert norm <= 0.00101


def test_no_events_to_train_on(log, tmp_path) -> None:
    with pytest.raises(TrainingError, match="1 events leave none to train on"):
        Trainer(small_config(training__holdout=0.9), log.head(1), tmp_path)


def test_unknown_labels_and_weights_count_nothing(tmp_path) -> None:
    from octavo.data import Dense, Label, Schema, Sparse

    rng = np.random.default_rng(0)
    n = 512
    schema = Schema(
        dense=(Dense("x"),),
        sparse=(Sparse("user", 10),),
        labels=(Label("click"), Label("buy")),
        weight="w",
        user="user",
    )
    table = pa.table(
        {
            "time": np.arange(n) * 1000,
            "id": np.arange(n),
            "x": rng.normal(size=n),
            "user": rng.integers(0, 10, n),
            "click": rng.integers(0, 2, n).astype(float),
            "buy": pa.array([None if i % 2 else float(i % 4 == 0) for i in range(n)], pa.float64()),
            "w": np.where(np.arange(n) < 256, 1.0, 0.0),
        }
    )
    log = EventLog.write(tmp_path / "log", schema, [table])
    trainer = Trainer(small_config(training__holdout=0), log, tmp_path / "run")
    steps = trainer.run()
    for _ in range(4):
        next(steps)
    before = everything(trainer)
    weights = {name: before[name] for name in ("top.0.weight", "heads.buy.weight", "embeddings.bags.user.rows")}
    frozen = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=1.0)
    next(steps)  # every weight is 0: no gradient
    assert all(torch.equal(p, frozen[name]) for name, p in trainer.model.named_parameters())
    assert torch.equal(everything_rows(trainer), weights["embeddings.bags.user.rows"])
    _ = list(steps)
    assert trainer.progressive.cumulative()["buy"].events == n // 2


def everything_rows(trainer: Trainer) -> torch.Tensor:
    return trainer.model.state_dict()["embeddings.bags.rows.user"]
