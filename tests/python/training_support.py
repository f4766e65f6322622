"""What the tests of training share: a small demo log and a small configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from octavo.config import RunConfig, build_config
from octavo.data import EventLog, write_demo_log
from octavo.training import Trainer
from octavo.training.state import dense_state, optimizer_tensors, table_states

EVENTS = 6000


def small_config(**overrides: Any) -> RunConfig:
    """A few seconds of training; overrides as ``training__batch_size=32``."""
    values: dict[str, Any] = {
        "name": "small",
        "data": {"source": "demo", "events": EVENTS},
        "model": {"embedding_dim": 8, "bottom": [16], "top": [32, 16]},
        "training": {"batch_size": 64, "window": 1000, "checkpoint_every": 10},
        "plan": {"batch_sizes": [64], "rounds": 3, "bootstrap": 100, "calibration_events": 256},
    }
    return build_config(values, [f"{key.replace('__', '.')}={value}" for key, value in overrides.items()])


def demo_log(path: Path, events: int = EVENTS) -> EventLog:
    """The demo log at ``path``, written on first use."""
    return EventLog(path) if path.exists() else write_demo_log(path, events, seed=3)


def finished(trainer: Trainer) -> Trainer:
    """The trainer, gone on from where it was to the end."""
    trainer.resume()
    for _ in trainer.run():
        pass
    return trainer


def everything(trainer: Trainer) -> dict[str, torch.Tensor]:
    """All that training changes, by name."""
    found = dict(dense_state(trainer.model))
    for name, table in table_states(trainer.model).items():
        found |= {f"{name}.rows": table.rows} | {f"{name}.{slot}": value for slot, value in table.slots.items()}
    found |= optimizer_tensors(trainer.optimizer, trainer._names)
    found |= trainer.progressive.state_dict()
    return {name: tensor.clone() for name, tensor in found.items()}


def assert_same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    """Every tensor equal, NaN where NaN."""
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert torch.equal(tensor.nan_to_num(nan=-1e30), b[name].nan_to_num(nan=-1e30)), name
