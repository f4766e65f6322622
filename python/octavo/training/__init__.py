"""Training: a stream in event time or epochs, checkpoints, and what came of it."""

from __future__ import annotations

from octavo.training.checkpoint import Checkpoint, CheckpointError, list_checkpoints
from octavo.training.delayed import DEFER, DFM, ESDFM, FNC, FNW, BucketHazard, DelayedLoss, ExampleBatch, Examples
from octavo.training.distributed import Group
from octavo.training.evaluate import Evaluation, evaluate_run
from octavo.training.objective import Objective
from octavo.training.probing import probe_run
from octavo.training.run import open_log, run
from octavo.training.state import load_state_dict
from octavo.training.trainer import Trainer, TrainingError

__all__ = [
    "DEFER",
    "DFM",
    "ESDFM",
    "FNC",
    "FNW",
    "BucketHazard",
    "Checkpoint",
    "CheckpointError",
    "DelayedLoss",
    "Evaluation",
    "ExampleBatch",
    "Examples",
    "Group",
    "Objective",
    "Trainer",
    "TrainingError",
    "evaluate_run",
    "list_checkpoints",
    "load_state_dict",
    "open_log",
    "probe_run",
    "run",
]
