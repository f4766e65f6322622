"""Training: one streaming pass in event time, checkpoints, and the comparison of numerics after it."""

from __future__ import annotations

from octavo.training.checkpoint import Checkpoint, CheckpointError, list_checkpoints
from octavo.training.run import open_log, run
from octavo.training.state import load_state_dict
from octavo.training.trainer import Trainer, TrainingError

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Trainer",
    "TrainingError",
    "list_checkpoints",
    "load_state_dict",
    "open_log",
    "run",
]
