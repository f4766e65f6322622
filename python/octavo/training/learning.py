"""One update: the loss over the tasks that are known, the gradients of every process, the optimizer's step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa
import torch
from torch.nn import functional

from octavo.config import OptimizerConfig
from octavo.data import Batch, EventLog
from octavo.training.distributed import Group

_EVENTS_AT_ONCE = 1 << 20


def check_outcomes(log: EventLog) -> None:
    """Raises ValueError for a label between 0 and 1: it could be learned, but not ranked against others."""
    for task in log.schema.tasks:
        kind = log.columns([task], 0, 0).schema.field(task).type
        if not (pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
            continue  # of whole numbers encoding takes 0 and 1 alone
        for first in range(0, len(log), _EVENTS_AT_ONCE):
            column = log.columns([task], first, min(first + _EVENTS_AT_ONCE, len(log)))[task]
            values = column.cast(pa.float64()).to_numpy()  # nan: not known
            between = (values > 0) & (values < 1)
            if between.any():
                at = int(between.argmax())
                raise ValueError(
                    f"{log.path}: task {task!r} is {values[at]:g} at event {first + at}; a label must be 0, 1 or null: "
                    "write the log with outcomes, not with probabilities"
                )


def total_weights(batch: Batch, tasks: Sequence[str]) -> dict[str, torch.Tensor]:
    """Sum of the weights of the events whose label is known, by task."""
    return {task: (batch.weight * ~batch.labels[task].isnan()).sum() for task in tasks}


def loss_of(logits: Mapping[str, torch.Tensor], batch: Batch, totals: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Mean over ``totals``' tasks of the weighted BCE over events whose label is known, divided by the task's total;
    0 where none is known. With totals of the whole batch, the losses of its parts add up to its own.
    """
    losses = []
    for task, total in totals.items():
        label = batch.labels[task]
        weight = batch.weight * ~label.isnan()
        bce = functional.binary_cross_entropy_with_logits(logits[task], label.nan_to_num(0.0), reduction="none")
        losses.append((bce * weight).sum() / total.clamp_min(1e-12))
    return torch.stack(losses).mean()


def build_optimizer(parameters: list[torch.nn.Parameter], chosen: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimizer of the dense parameters, one kernel for all of them."""
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "adagrad": torch.optim.Adagrad}
    return kinds[chosen.kind](parameters, lr=chosen.lr, weight_decay=chosen.weight_decay, fused=True)


def update(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: torch.Tensor,
    lr: float,
    clip_norm: float | None,
    group: Group,
) -> None:
    """Backward (which updates the tables) and a step of the dense parameters on the gradients of all processes.

    ``clip_norm``: of the gradient of all that ``optimizer`` learns, an objective's own parameters included.
    """
    for settings in optimizer.param_groups:
        settings["lr"] = lr
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    group.add_up(list(model.parameters()))
    if clip_norm is not None:
        learned = [parameter for settings in optimizer.param_groups for parameter in settings["params"]]
        torch.nn.utils.clip_grad_norm_(learned, clip_norm)
    optimizer.step()
