"""How a student learns from one teacher: which head, which target, how strongly (ExFM, equations 2 to 5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.nn import functional

METHODS = ("auxiliary_head", "one_head")
ADAPTED = ("replaces", "adds")
ByTask = float | Mapping[str, float]


@dataclass(frozen=True)
class Adapter:
    """A Student Adapter for one teacher (ExFM, Algorithm 1).

    ``mode``: its output ``replaces`` the teacher's prediction as target, or ``adds`` a target with a head of its own.
    ``hidden``: units of its hidden layer; None: no hidden layer, an online Platt calibrator. ``lr``: of its Adam.
    """

    mode: str = "replaces"
    hidden: int | None = 8
    lr: float = 1e-2

    def __post_init__(self) -> None:
        if self.mode not in ADAPTED:
            raise ValueError(f"adapter.mode: found {self.mode!r}; expected one of {', '.join(ADAPTED)}")
        if self.hidden is not None and self.hidden < 1:
            raise ValueError(f"adapter.hidden: expected at least 1 unit, or None for none, found {self.hidden}")
        if not self.lr > 0:
            raise ValueError(f"adapter.lr: expected a rate above 0, found {self.lr}")


@dataclass(frozen=True)
class Distillation:
    """What one teacher is for a student.

    ``method``: ``auxiliary_head`` (a head of its own learns the teacher's predictions; the serving head learns labels
    alone) or ``one_head`` (the serving head learns both, plain distillation). ``weight``: the paper's w, of the
    distillation loss. ``gradient_scale``: beta, of the gradient that the auxiliary head sends into the backbone.
    ``label_scale``: alpha, by which soft labels are multiplied and then cut at 1. Each a number or, by task, a mapping
    that names every task. ``adapter``: puts a Student Adapter between teacher and student.
    """

    method: str = "auxiliary_head"
    weight: ByTask = 1.0
    gradient_scale: ByTask = 1.0
    label_scale: ByTask = 1.0
    adapter: Adapter | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method: found {self.method!r}; expected one of {', '.join(METHODS)}")
        for name in ("weight", "gradient_scale", "label_scale"):
            found = getattr(self, name)
            for value in found.values() if isinstance(found, Mapping) else [found]:
                if not 0 <= value < float("inf"):
                    raise ValueError(f"{name}: expected numbers from 0, found {value}")
        if self.method == "one_head" and self.gradient_scale != 1.0:
            raise ValueError("gradient_scale: belongs to the auxiliary head; one_head has no gradient of its own")

    def of(self, name: str, task: str) -> float:
        """``weight``, ``gradient_scale`` or ``label_scale`` of ``task``. Raises ValueError for a task not named."""
        found: ByTask = getattr(self, name)
        if not isinstance(found, Mapping):
            return found
        if task not in found:
            raise ValueError(f"{name}: names no task {task!r}, only {', '.join(found)}; give one number, or all tasks")
        return found[task]


def soft_target(logits: torch.Tensor, label_scale: float) -> torch.Tensor:
    """clip(alpha * sigmoid(logits), 0, 1) [B], without gradient; nan stays nan."""
    return (torch.sigmoid(logits.detach()) * label_scale).clamp(0.0, 1.0)


def soft_loss(logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The events' weighted mean cross-entropy of ``logits`` [B] against ``target`` [B] between 0 and 1, over the events
    whose target is known (not nan); 0 where none is."""
    known = ~target.isnan()
    of_event = functional.binary_cross_entropy_with_logits(logits, target.nan_to_num(0.0), reduction="none")
    counted = weight * known
    return (of_event * counted).sum() / counted.sum().clamp_min(1e-12)
