"""Two processes of a torchrun train as one: equal up to the order of sums, the same bits on both, any size resumes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_support import assert_same_bits, demo_log, everything, small_config

from octavo.config import build_config, save_config
from octavo.data import AdsWorld, EventLog
from octavo.training import Checkpoint, Trainer, list_checkpoints

# Order of sums alone: the parts of a batch are multiplied as matrices of other shapes and added up across processes.
# Relative to max(1, |value|); 4e-7 was measured, FP32's own step is 6e-8.
ATOL = 1e-5

_CHILD = """
import hashlib, json, sys
sys.path.insert(0, sys.argv[3])
from pathlib import Path
from octavo.config import load_config
from octavo.data import EventLog
from octavo.training import Group, Trainer
from training_support import everything
steps = int(sys.argv[4])
with Group.current() as group:
    trainer = Trainer(load_config(sys.argv[2] + "/config.yaml"), EventLog(sys.argv[1]), sys.argv[2], group)
    trainer.resume()
    for _ in trainer.run():
        if trainer.step == steps:
            break
    state = b"".join(tensor.contiguous().numpy().tobytes() for tensor in everything(trainer).values())
    digests = [None] * group.world
    import torch.distributed as dist
    dist.all_gather_object(digests, hashlib.sha256(state).hexdigest())
    if group.is_first:
        print(json.dumps({"world": group.world, "digests": digests, "position": trainer.position}))
"""


def torchrun(log: EventLog, run_dir: Path, steps: int = -1, processes: int = 2) -> dict:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}",
               "--no-python", sys.executable, "-c", _CHILD, str(log.path), str(run_dir), str(Path(__file__).parent),
               str(steps)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=170)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))


def close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest difference over everything that training changes."""
    assert one.keys() == other.keys()
    worst = 0.0
    for name, tensor in one.items():
        a, b = tensor.double().nan_to_num(nan=-7.0), other[name].double().nan_to_num(nan=-7.0)
        if "bucket" in name:  # a logit may cross the edge of its bucket
            continue
        worst = max(worst, float(((a - b).abs() / b.abs().clamp_min(1.0)).max()) if a.numel() else 0.0)
    return worst


def state_of(run_dir: Path, log: EventLog, config) -> dict[str, torch.Tensor]:
    trainer = Trainer(config, log, run_dir)
    assert trainer.resume()
    return everything(trainer)


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> EventLog:
    return demo_log(tmp_path_factory.mktemp("distributed") / "log")


def test_two_processes_train_as_one(log, tmp_path) -> None:
    config = small_config(training__clip_norm=1.0, training__batch_size=63)
    save_config(config, make(tmp_path / "two") / "config.yaml")
    found = torchrun(log, tmp_path / "two")
    assert found["world"] == 2
    assert found["digests"][0] == found["digests"][1]
    assert found["position"] == 4800
    alone = Trainer(config, log, tmp_path / "one")
    for _ in alone.run():
        pass
    assert close(state_of(tmp_path / "two", log, config), everything(alone)) < ATOL
    lines = [(tmp_path / name / "history.jsonl").read_text().splitlines() for name in ("one", "two")]
    for one, two in zip(*lines, strict=True):
        a, b = json.loads(one), json.loads(two)
        assert a["position"] == b["position"]
        assert a["heads"]["click"]["ne"] == pytest.approx(b["heads"]["click"]["ne"], abs=1e-4)


def test_any_world_size_goes_on_from_a_checkpoint(log, tmp_path) -> None:
    config = small_config()
    save_config(config, make(tmp_path / "run") / "config.yaml")
    torchrun(log, tmp_path / "run", steps=35)  # dies after its checkpoint of step 30
    assert [path.name for path in list_checkpoints(tmp_path / "run" / "checkpoints")][-1] == "step-00000030"
    resumed = Trainer(config, log, tmp_path / "run")
    assert resumed.resume()
    assert resumed.step == 30
    for _ in resumed.run():
        pass
    alone = Trainer(config, log, tmp_path / "one")
    for _ in alone.run():
        pass
    assert close(everything(resumed), everything(alone)) < ATOL
    assert Checkpoint(list_checkpoints(tmp_path / "run" / "checkpoints")[-1]).meta["position"] == 4800


def test_gradients_in_eight_bits_resume_bit_for_bit(log, tmp_path) -> None:
    """What rounding took is in the checkpoint, so a run that died goes on as if it had not."""
    config = small_config(training__communication="e4m3")
    for name in ("cut", "whole"):
        save_config(config, make(tmp_path / name) / "config.yaml")
    torchrun(log, tmp_path / "cut", steps=35)  # dies after its checkpoint of step 30
    [checkpoint] = list_checkpoints(tmp_path / "cut" / "checkpoints")[-1:]
    owed = Checkpoint(checkpoint).group("communication")
    names = dict(Trainer(config, log, tmp_path / "new").model.named_parameters())
    assert {name: tuple(error.shape) for name, error in owed.items()} == {
        name: (2, *parameter.shape) for name, parameter in names.items()
    }
    assert all(bool((error != 0).any(tuple(range(1, error.dim()))).all()) for error in owed.values() if error.dim() > 2)
    for name in ("cut", "whole"):
        assert len(set(torchrun(log, tmp_path / name)["digests"])) == 1
    cut, whole = (state_of(tmp_path / name, log, config) for name in ("cut", "whole"))
    assert_same_bits(cut, whole)
    ends = [list_checkpoints(tmp_path / name / "checkpoints")[-1] for name in ("cut", "whole")]
    assert_same_bits(*(Checkpoint(path).group("communication") for path in ends))
    fp32 = Trainer(small_config(), log, tmp_path / "fp32")
    for _ in fp32.run():
        pass
    assert close(whole, everything(fp32)) > ATOL  # it was in eight bits


def test_what_two_processes_owe_is_the_first_of_fours(log, tmp_path) -> None:
    config = small_config(training__communication="e4m3")
    save_config(config, make(tmp_path / "run") / "config.yaml")
    torchrun(log, tmp_path / "run", steps=35)
    found = torchrun(log, tmp_path / "run", steps=40, processes=4)  # dies after its checkpoint of step 40
    assert len(set(found["digests"])) == 1
    before, after = list_checkpoints(tmp_path / "run" / "checkpoints")[-2:]
    two, four = (Checkpoint(path).group("communication") for path in (before, after))
    assert {len(error) for error in two.values()} == {2}
    assert {len(error) for error in four.values()} == {4}
    alone = Trainer(config, log, tmp_path / "run")
    assert alone.resume()  # one process sends nothing


def test_every_process_leaves_out_units_of_its_own(log, tmp_path) -> None:
    config = small_config(model__dropout=0.5)
    for name in ("cut", "whole"):
        save_config(config, make(tmp_path / name) / "config.yaml")
    torchrun(log, tmp_path / "cut", steps=35)  # dies after its checkpoint of step 30
    drawn = Checkpoint(list_checkpoints(tmp_path / "cut" / "checkpoints")[-1]).group("rng")["torch"]
    assert len(drawn) == 2
    assert not torch.equal(drawn[0], drawn[1])
    for name in ("cut", "whole"):
        assert len(set(torchrun(log, tmp_path / name)["digests"])) == 1
    assert_same_bits(*(state_of(tmp_path / name, log, config) for name in ("cut", "whole")))


def test_attention_over_histories_in_parallel(tmp_path) -> None:
    """DIN: a table read row by row and shared by two features; late labels; a last batch with fewer events than
    processes."""
    world = AdsWorld("reference", 3)
    [history] = world.schema.sequences
    schema = replace(world.schema, sequences=(replace(history, table="item"),))
    log = EventLog.write(tmp_path / "log", schema, world.tables(events=1201))
    config = build_config(
        {
            "name": "din",
            "data": {"source": "log", "path": str(log.path)},
            "model": {"kind": "din", "embedding_dim": 8, "attention": [10, 6], "top": [16]},
            "training": {
                "batch_size": 100,
                "holdout": 0,
                "window": 400,
                "checkpoint_every": 0,
                "labels": "known",
                "wait_hours": {"click": 0.002, "conversion": 0.004},
            },
        }
    )
    save_config(config, make(tmp_path / "two") / "config.yaml")
    found = torchrun(log, tmp_path / "two")
    assert found["digests"][0] == found["digests"][1]
    alone = Trainer(config, log, tmp_path / "one")
    for _ in alone.run():
        pass
    assert close(state_of(tmp_path / "two", log, config), everything(alone)) < ATOL


def make(path: Path) -> Path:
    path.mkdir()
    return path
