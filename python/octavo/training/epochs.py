"""Several passes over a fixed set: an order per epoch, a validation slice, the best weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from octavo.data import Batch, EventLog
from octavo.evaluation import Quality, quality
from octavo.training.checkpoint import Checkpoint, CheckpointError, TableState, list_checkpoints, write_checkpoint
from octavo.training.slices import predict
from octavo.training.state import copy_dense, dense_state, table_states


class Shuffled:
    """The log's first ``stop`` events in memory, each epoch in an order that depends on (``seed``, epoch) alone."""

    def __init__(self, log: EventLog, stop: int, seed: int) -> None:
        self._log, self._seed = log, seed
        self._table = log.columns(log.schema.columns(), 0, stop).combine_chunks()

    def batches(self, batch_size: int, epoch: int, start: int) -> Iterator[Batch]:
        """The epoch's batches from its position ``start`` on."""
        order = np.random.default_rng((self._seed, epoch)).permutation(len(self._table))
        for begin in range(start, len(order), batch_size):
            part = self._table.take(pa.array(order[begin : begin + batch_size]))
            yield self._log.encode(part)


@dataclass
class Progress:
    """Where early stopping stands: the best epoch's value (smaller is better), its step, epochs without a better one
    since, and how many such epochs there were in all."""

    best: float | None = None
    step: int | None = None
    stale: int = 0
    plateaus: int = 0

    def take(self, value: float, step: int) -> bool:
        """Whether ``value`` is the best so far; a value that is not defined never is."""
        if not math.isnan(value) and (self.best is None or value < self.best):
            self.best, self.step, self.stale = value, step, 0
            return True
        self.stale += 1
        self.plateaus += 1
        return False


def validate(model: torch.nn.Module, log: EventLog, start: int, stop: int) -> dict[str, Quality]:
    """Quality by task on the events from ``start`` to ``stop`` (exclusive), in evaluation mode."""
    found = predict(model, log, start, stop)
    return {
        task: quality(z, found.labels[task], found.weight, logits=True, group=found.user)
        for task, z in found.logits.items()
    }


def stopping_value(found: dict[str, Quality], metric: str) -> float:
    """Mean over the tasks where it is defined of NE, or of 1 - AUC: smaller is better. nan where it is nowhere."""
    values = [q.ne if metric == "ne" else (None if q.auc is None else 1 - q.auc) for q in found.values()]
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else math.nan


def save_best(root: Path, step: int, model: torch.nn.Module) -> None:
    """Keep the weights of this moment beside the checkpoints. Two are kept: a run killed here may go on from a
    checkpoint that still knows the one before as its best."""
    write_checkpoint(root, step, {}, {"dense": dense_state(model)}, _kept(model), keep=2)


def load_best(root: Path, step: int, model: torch.nn.Module) -> None:
    """Put back what :func:`save_best` kept at ``step``."""
    path = next((path for path in list_checkpoints(root) if path.name == f"step-{step:08d}"), None)
    if path is None:
        raise CheckpointError(f"{root}: has no step-{step:08d}, the best epoch's weights; start afresh")
    best = Checkpoint(path)
    copy_dense(dense_state(model), best.group("dense"), str(path))
    for name, table in _kept(model).items():
        best.read_table(name, table)


def _kept(model: torch.nn.Module) -> dict[str, TableState]:
    """Fixed tables without the optimizer's state; in dynamic ones it belongs to the ids."""

    def kept(table: TableState) -> TableState:
        slots = {slot: value for slot, value in table.slots.items() if slot == "scale" or table.dynamic is not None}
        return TableState(table.rows, slots, table.dynamic)

    return {name: kept(table) for name, table in table_states(model).items()}
