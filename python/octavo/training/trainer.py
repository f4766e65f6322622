"""One streaming pass in event time: predict a batch, score the prediction, then train on it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

import octavo
from octavo import models
from octavo.config import RunConfig, config_hash
from octavo.data import Batch, EventLog, prefetched
from octavo.evaluation import Progressive
from octavo.training.checkpoint import Checkpoint, CheckpointError, list_checkpoints, write_checkpoint
from octavo.training.state import (
    TableTracker,
    copy_dense,
    dense_state,
    optimizer_tensors,
    restore_optimizer,
    table_states,
)

# What may change between a run and its resumption: it does not change what is learned.
_FREE = ("checkpoint_every", "keep_checkpoints", "full_every")


class TrainingError(RuntimeError):
    """Training cannot go on: says where in the log and why."""


class Trainer:
    """Trains ``config.model`` on all but the last ``holdout`` share of ``log``, once, in event time.

    Each batch is first predicted (``progressive`` collects the quality), then trained on. Checkpoints go to
    ``run_dir/checkpoints``; a new Trainer with the same configuration and log goes on from the newest one, bit for bit.
    Raises :class:`CheckpointError` when that checkpoint is damaged or of another configuration, schema or log, and
    :class:`TrainingError` when a loss is not finite.
    """

    def __init__(self, config: RunConfig, log: EventLog, run_dir: str | Path) -> None:
        self.config, self.log, self.run_dir = config, log, Path(run_dir)
        self.train_end = len(log) - round(config.training.holdout * len(log))
        if self.train_end == 0:
            raise TrainingError(f"log: {len(log)} events leave none to train on with holdout={config.training.holdout}")
        self.model = models.build(log.schema, config.model)
        self.tracker = TableTracker(self.model, config.training.full_every)
        self.progressive = Progressive(log.schema.tasks, config.training.window)
        self.position = 0
        self.step = 0
        self.seconds = 0.0
        named = list(self.model.named_parameters())
        self._names = [name for name, _ in named]
        self.optimizer = _optimizer([parameter for _, parameter in named], config)
        torch.manual_seed(config.training.seed)
        if config.training.threads is not None:
            torch.set_num_threads(config.training.threads)

    @property
    def checkpoints(self) -> Path:
        return self.run_dir / "checkpoints"

    def resume(self) -> bool:
        """Go on from the newest checkpoint. False when there is none."""
        found = list_checkpoints(self.checkpoints)
        if not found:
            return False
        checkpoint = Checkpoint(found[-1])
        meta = checkpoint.meta
        self._refuse_differences(checkpoint.path, meta)
        copy_dense(dense_state(self.model), checkpoint.group("dense"), str(checkpoint.path))
        for name, table in table_states(self.model).items():
            checkpoint.read_table(name, table)
        self.tracker.saved(checkpoint.path)
        restore_optimizer(self.optimizer, self._names, checkpoint.group("optimizer"))
        self.progressive.load_state_dict(checkpoint.group("progressive"))
        torch.set_rng_state(checkpoint.group("rng")["torch"])
        self.position, self.step, self.seconds = meta["position"], checkpoint.step, meta["seconds"]
        return True

    def run(self) -> Iterator[int]:
        """Train to the end of the training part. Yields the position after every batch."""
        size, every = self.config.training.batch_size, self.config.training.checkpoint_every
        start = time.perf_counter()
        before = self.seconds
        for batch in prefetched(self.log.batches(size, self.position, self.train_end)):
            self._train(batch)
            self.position += len(batch)
            self.step += 1
            self.seconds = before + time.perf_counter() - start
            if every and self.step % every == 0 and self.position < self.train_end:
                self.save()
            yield self.position
        self.progressive.flush()
        self.save()

    def save(self) -> Path:
        """Write a checkpoint of this moment."""
        meta = {
            "position": self.position,
            "seconds": self.seconds,
            "config": self.config.resolved(),
            "config_sha256": config_hash(self.config),
            "schema": self.log.schema.fingerprint,
            "log": self.log.fingerprint,
            "versions": {"octavo": octavo.__version__, "torch": torch.__version__},
        }
        groups = {
            "dense": dense_state(self.model),
            "optimizer": optimizer_tensors(self.optimizer, self._names),
            "progressive": self.progressive.state_dict(),
            "rng": {"torch": torch.get_rng_state()},
        }
        tables = table_states(self.model)
        keep = self.config.training.keep_checkpoints
        path = write_checkpoint(
            self.checkpoints, self.step, meta, groups, tables, keep, base=self.tracker.base()
        )
        self.tracker.saved(path)
        return path

    def _train(self, batch: Batch) -> None:
        training = self.config.training
        self.model.train()
        logits = self.model(batch)
        loss = _loss(logits, batch)
        if not bool(torch.isfinite(loss)):
            raise TrainingError(
                f"loss is {loss.item()} on events {self.position} to {self.position + len(batch) - 1}; the last "
                f"checkpoint is whole: lower training.optimizer.lr or set training.clip_norm and resume"
            )
        self.progressive.update(
            {task: z.detach() for task, z in logits.items()}, batch.labels, batch.time, batch.weight
        )
        warmed = min(1.0, (self.step + 1) / training.optimizer.warmup) if training.optimizer.warmup else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = training.optimizer.lr * warmed
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if training.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), training.clip_norm)
        self.optimizer.step()

    def _refuse_differences(self, path: Path, meta: dict[str, Any]) -> None:
        if meta["schema"] != self.log.schema.fingerprint:
            raise CheckpointError(f"{path}: was trained on a log with another schema; start afresh or use that log")
        if meta["log"] != self.log.fingerprint:
            raise CheckpointError(f"{path}: was trained on another log; start afresh or use that log")
        changed = [
            f"{section}.{key} was {was!r}, is {now!r}"
            for section in ("data", "model", "training")
            for key, now in self.config.resolved()[section].items()
            if key not in _FREE and (was := meta["config"][section].get(key)) != now
        ]
        if changed:
            raise CheckpointError(
                f"{path}: was trained with another configuration ({'; '.join(changed)}); start afresh"
            )


def _loss(logits: dict[str, torch.Tensor], batch: Batch) -> torch.Tensor:
    """Mean over tasks of the weighted mean BCE over events whose label is known; 0 where none is."""
    losses = []
    for task, z in logits.items():
        label = batch.labels[task]
        known = ~label.isnan()
        weight = batch.weight * known
        bce = functional.binary_cross_entropy_with_logits(z, label.nan_to_num(0.0), reduction="none")
        losses.append((bce * weight).sum() / weight.sum().clamp_min(1e-12))
    return torch.stack(losses).mean()


def _optimizer(parameters: list[torch.nn.Parameter], config: RunConfig) -> torch.optim.Optimizer:
    chosen = config.training.optimizer
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "adagrad": torch.optim.Adagrad}
    return kinds[chosen.kind](parameters, lr=chosen.lr, weight_decay=chosen.weight_decay)
