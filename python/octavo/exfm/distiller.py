"""A student and where its soft labels come from, as what a trainer learns besides labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from octavo.data import Batch
from octavo.exfm.adapter import StudentAdapter
from octavo.exfm.student import Student
from octavo.report import TeacherRow
from octavo.store import Records
from octavo.training.state import copy_dense, optimizer_tensors, restore_optimizer

SoftLabels = Callable[[Batch], Records]  # of a batch's events, in their order


class Distiller:
    """An :class:`octavo.training.Objective`: ``student`` learns from ``soft``, by teacher a function from a batch to
    its records (:meth:`octavo.exfm.DAS.soft_labels`). ``service``: whose they are (:attr:`octavo.exfm.DAS.id`); a run
    does not go on with another's.

    ``Trainer(config, log, run_dir, objective=lambda model: Distiller(Student(model, teachers), soft))``; the trainer's
    model, and so what it saves and serves, is the student without its heads. Raises ValueError for a teacher without
    soft labels.
    """

    def __init__(self, student: Student, soft: Mapping[str, SoftLabels], service: str = "") -> None:
        absent = [name for name in student.teachers if name not in soft]
        if absent:
            raise ValueError(f"soft: has no soft labels of teacher {absent[0]!r}, only of {', '.join(soft) or 'none'}")
        self.student, self.service, self._soft = student, service, dict(soft)

    def describe(self) -> str:
        """The teachers' settings, the tasks they teach, the heads' seed, and whose the soft labels are."""
        student = self.student
        width = max((a.extra_dim for a in self._adapters().values()), default=0)
        return (
            f"{student.teachers} for {student.distilled}, adapters with {width} extra inputs, seed {student.seed}, "
            f"service {self.service or 'not named'}"
        )

    def report(self) -> list[TeacherRow]:
        """What came of each teacher, for the report."""
        rows = []
        for name, chosen in self.student.teachers.items():
            heard = self.student.heard[name]
            method = chosen.method if chosen.adapter is None else f"{chosen.method}, adapter {chosen.adapter.mode}"
            hours = None if heard.lag_ms is None else tuple(lag / 3_600_000 for lag in heard.lag_ms)
            losses = heard.losses
            rows.append(
                TeacherRow(name, self.service, method, heard.events, heard.silent, heard.versions, hours, losses)
            )
        return rows

    def learned_parameters(self) -> list[tuple[str, torch.nn.Parameter]]:
        """The auxiliary heads'."""
        return self.student.learned_parameters()

    def learn(
        self, batch: Batch, tasks: Sequence[str], negatives: float
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """The serving logits [B] by task, and the teachers' loss over ``tasks``."""
        soft = {name: self._soft[name](batch) for name in self.student.teachers}
        return self.student.learn(batch, soft, tasks, negatives)

    def state_tensors(self) -> dict[str, torch.Tensor]:
        """Heads, adapters with their optimizers, and what was heard of the teachers."""
        state = self._modules()
        for name, adapter in self._adapters().items():
            names = [key for key, _ in adapter.named_parameters()]
            tensors = optimizer_tensors(adapter.optimizer, names)
            state |= {f"optimizers.{name}/{key}": value for key, value in tensors.items()}
        for name, heard in self.student.heard.items():
            state |= {f"heard.{name}/{key}": value for key, value in heard.state_tensors().items()}
        return state

    def load_state_tensors(self, tensors: dict[str, torch.Tensor]) -> None:
        """Go on from what :meth:`state_tensors` gave. Raises :class:`octavo.training.CheckpointError` for another
        student's."""
        modules = self._modules()
        own = {name: value for name, value in tensors.items() if not name.startswith(("optimizers.", "heard."))}
        copy_dense(modules, own, "objective")
        for name, adapter in self._adapters().items():
            names = [key for key, _ in adapter.named_parameters()]
            restore_optimizer(adapter.optimizer, names, _below(f"optimizers.{name}/", tensors))
        for name, heard in self.student.heard.items():
            heard.load_state_tensors(_below(f"heard.{name}/", tensors))

    def _modules(self) -> dict[str, torch.Tensor]:
        """Views of the heads' and adapters' tensors."""
        parts = {"heads": self.student.heads, "adapters": self.student.adapters}
        return {
            f"{part}.{name}": value for part, module in parts.items() for name, value in module.state_dict().items()
        }

    def _adapters(self) -> dict[str, StudentAdapter]:
        return {name: a for name, a in self.student.adapters.items() if isinstance(a, StudentAdapter)}


def _below(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
