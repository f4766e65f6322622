"""A student with what it needs to learn from teachers; what it serves is the model it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch

from octavo.data import Batch
from octavo.exfm.adapter import ExtraInputs, StudentAdapter
from octavo.exfm.distillation import Distillation, soft_loss, soft_target
from octavo.exfm.gradient import scale_gradient
from octavo.exfm.heard import Heard
from octavo.store import Records


class Backbone(Protocol):
    """What a student is made of: a module whose logits depend on one embedding (each :mod:`octavo.models` ranker)."""

    tasks: Sequence[str]
    embed_dim: int

    def embed(self, batch: Batch) -> torch.Tensor:
        """[B, embed_dim] float32."""

    def logits(self, embedding: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits [B] float32 by task."""


class Student(torch.nn.Module):
    """``base`` and, for each teacher by name, how it is learned from.

    Calling it gives the serving logits. :meth:`learn` gives them and the distillation loss of a batch, to be added to
    the loss of the labels. ``tasks``: those of ``base`` that teachers know; None: all. ``extra``, ``extra_dim``: inputs
    of Student Adapters besides the teacher's prediction. ``seed``: of the heads' and adapters' initial values; torch's
    generator is left as it was. ``heard``: what came of each teacher; ``missing``: the events without a soft label of
    any task, by teacher.
    """

    def __init__(
        self,
        base: torch.nn.Module,
        teachers: Mapping[str, Distillation],
        tasks: Sequence[str] | None = None,
        extra: ExtraInputs | None = None,
        extra_dim: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name in ("embed", "logits", "tasks", "embed_dim"):
            if not hasattr(base, name):
                raise TypeError(f"base: {type(base).__name__} has no {name!r}; a student needs embed, logits, tasks")
        self.base, self.teachers, self.seed = base, dict(teachers), seed
        known = list(base.tasks)  # type: ignore[arg-type]
        self.distilled = known if tasks is None else list(tasks)
        if not self.distilled or set(self.distilled) - set(known):
            raise ValueError(f"tasks: found {self.distilled}; base has {known}")
        for name, chosen in self.teachers.items():
            if not name or "." in name:
                raise ValueError(f"teachers: found the name {name!r}; parameters are named after it: no dots")
            for task in self.distilled:
                for scale in ("weight", "gradient_scale", "label_scale"):
                    chosen.of(scale, task)
        self.heads, self.adapters = torch.nn.ModuleDict(), torch.nn.ModuleDict()
        width = int(base.embed_dim)  # type: ignore[arg-type]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for name, chosen in self.teachers.items():
                for head in _heads_of(name, chosen):
                    self.heads[head] = torch.nn.Linear(width, len(self.distilled))
                if chosen.adapter is not None:
                    self.adapters[name] = StudentAdapter(self.distilled, chosen.adapter, extra, extra_dim)
        self.heard = {name: Heard(_losses_of(name, chosen)) for name, chosen in self.teachers.items()}

    @property
    def missing(self) -> dict[str, int]:
        """Events without a soft label, by teacher."""
        return {name: heard.silent for name, heard in self.heard.items()}

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The serving head's logits [B] float32 by task."""
        found: dict[str, torch.Tensor] = self.base(batch)
        return found

    def serving_module(self) -> torch.nn.Module:
        """The student as it is served: ``base`` itself, which knows of no teacher."""
        return self.base

    def learned_parameters(self) -> list[tuple[str, torch.nn.Parameter]]:
        """Names and parameters of what the student has besides ``base`` and learns with it: the auxiliary heads."""
        return [(f"heads.{name}", parameter) for name, parameter in self.heads.named_parameters()]

    def learn(
        self, batch: Batch, soft: Mapping[str, Records], tasks: Sequence[str] | None = None, negatives: float = 1.0
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """The serving logits [B] by task, and the teachers' loss (a scalar).

        ``soft``: for each teacher the records of the batch's events, in their order; unknown ones teach nothing and are
        counted. Adapters learn from the batch's labels on the way. ``tasks``: those that are learned now (None: all);
        where the batch comes again for others, their labels are not looked at and their targets not learned.
        ``negatives``: the share of events without the outcome that the batch's log kept
        (:attr:`octavo.data.EventLog.negatives`); logits and soft labels are of all events, labels are not. Raises
        ValueError for a teacher without records and for records of other events.
        """
        base: Backbone = self.base  # type: ignore[assignment]
        embedding = base.embed(batch)
        logits = base.logits(embedding)
        loss = embedding.new_zeros(())
        now = [task for task in self.distilled if tasks is None or task in tasks]
        if not now:
            return logits, loss
        for name, chosen in self.teachers.items():
            records = self._records_of(name, batch, soft)
            said = {task: records.logits[task] for task in now}
            if self.distilled[0] in now:  # an event is counted once
                self.heard[name].add(records, self.distilled)
            targets = [said]
            if chosen.adapter is not None:
                adapter: StudentAdapter = self.adapters[name]  # type: ignore[assignment]
                corrected = adapter.step(batch, said, negatives)
                targets = [corrected] if chosen.adapter.mode == "replaces" else [said, corrected]
            heads: list[str | None] = [*_heads_of(name, chosen)] or [None] * len(targets)
            for head, of, target in zip(heads, _losses_of(name, chosen), targets, strict=True):
                lost = self._loss(chosen, head, embedding, logits, target, batch.weight)
                self.heard[name].lost(of, float(lost.detach()))
                loss = loss + lost
        return logits, loss

    def _loss(
        self, chosen: Distillation, head: str | None, embedding: torch.Tensor, logits: Mapping[str, torch.Tensor],
        target: Mapping[str, torch.Tensor], weight: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        """The mean over tasks of one target's loss, at the head ``head`` or, None, at the serving one."""
        losses = []
        for task in target:
            at = self.distilled.index(task)
            if head is None:
                z = logits[task]
            else:
                scaled = scale_gradient(embedding, chosen.of("gradient_scale", task))
                linear = self.heads[head]
                z = scaled @ linear.weight[at] + linear.bias[at]  # type: ignore[index,operator]
            wanted = soft_target(target[task], chosen.of("label_scale", task))
            losses.append(chosen.of("weight", task) * soft_loss(z, wanted, weight))
        return torch.stack(losses).mean()

    def _records_of(self, name: str, batch: Batch, soft: Mapping[str, Records]) -> Records:
        if name not in soft:
            raise ValueError(f"soft: has no records of teacher {name!r}, only of {', '.join(soft) or 'none'}")
        records = soft[name]
        if not torch.equal(records.key, batch.id):
            raise ValueError(f"soft[{name!r}]: its records are of other events, or in another order, than the batch")
        absent = [task for task in self.distilled if task not in records.logits]
        if absent:
            raise ValueError(f"soft[{name!r}]: has no logits of {absent[0]!r}, only of {', '.join(records.tasks)}")
        return records


def _heads_of(name: str, chosen: Distillation) -> list[str]:
    """The auxiliary heads of one teacher, one for each of its targets; none for one-head distillation."""
    if chosen.method == "one_head":
        return []
    return [name, f"{name}_adapted"] if chosen.adapter is not None and chosen.adapter.mode == "adds" else [name]


def _losses_of(name: str, chosen: Distillation) -> list[str]:
    """One teacher's losses by the heads that have them; ``_adapted``: against what a Student Adapter adds."""
    adds = chosen.adapter is not None and chosen.adapter.mode == "adds"
    return _heads_of(name, chosen) or ["serving", "serving_adapted"][: 1 + adds]
