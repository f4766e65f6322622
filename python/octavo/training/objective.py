"""What a model may learn besides its labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from octavo.data import Batch
from octavo.report import TeacherRow


class Objective(Protocol):
    """A further loss of each batch, with parameters and a state of its own (:class:`octavo.exfm.Distiller`).

    The trainer optimises ``learned_parameters`` beside the model's, keeps ``state_tensors`` in its checkpoints and
    refuses to go on with an objective that ``describe`` differently. The model that is saved knows nothing of it.
    """

    def describe(self) -> str:
        """What it is, with every setting: equal texts are equal objectives."""

    def learned_parameters(self) -> list[tuple[str, torch.nn.Parameter]]:
        """Names and parameters to optimise with the model's."""

    def learn(
        self, batch: Batch, tasks: Sequence[str], negatives: float
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """The model's logits [B] by task, and the further loss, a scalar. ``tasks``: those that are learned now; other
        labels of the batch are not known yet, and the batch comes again for them. ``negatives``: the share of events
        without the outcome that the log kept."""

    def report(self) -> list[TeacherRow]:
        """What the run's report says of those it learned from."""

    def state_tensors(self) -> dict[str, torch.Tensor]:
        """All that it has learned, by name."""

    def load_state_tensors(self, tensors: dict[str, torch.Tensor]) -> None:
        """Go on from what :meth:`state_tensors` gave."""
