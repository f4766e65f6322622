"""A small model that corrects the teacher's predictions with fresh labels (ExFM, Student Adapter, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from octavo.data import Batch
from octavo.data.downsampling import logit_shift
from octavo.exfm.distillation import Adapter, soft_loss

ExtraInputs = Callable[[Batch], torch.Tensor]  # [B, E] float32


class StudentAdapter(torch.nn.Module):
    """Teacher's logits and extra inputs -> corrected logits, one small network for each task.

    Each step it is asked first and then learns from the labels, so what it gives for an event does not know its
    label. It learns by an Adam of its own from the labels alone: nothing of the student's loss reaches it. A network
    without hidden layer is an online Platt calibrator and starts as the identity. ``extra``: [B, E] float32 from a
    batch (segments, hours), ``extra_dim`` = E.
    """

    def __init__(
        self, tasks: Sequence[str], settings: Adapter, extra: ExtraInputs | None = None, extra_dim: int = 0
    ) -> None:
        super().__init__()
        if (extra is None) != (extra_dim == 0):
            raise ValueError(f"extra, extra_dim: extra inputs need their width, found extra_dim={extra_dim}")
        self.settings, self.extra, self.extra_dim = settings, extra, extra_dim
        self.tasks = tuple(tasks)
        self.nets = torch.nn.ModuleList(_network(1 + extra_dim, settings.hidden) for _ in self.tasks)
        self.optimizer = torch.optim.Adam(self.parameters(), lr=settings.lr)

    def forward(self, batch: Batch, logits: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Corrected logits [B] by task of ``logits``; nan where the teacher's are."""
        extra = [] if self.extra is None else [self.extra(batch)]
        for found in extra:
            if found.shape != (len(batch), self.extra_dim):
                raise ValueError(f"extra: expected [{len(batch)}, {self.extra_dim}], found {list(found.shape)}")
        corrected = {}
        for task, net in zip(self.tasks, self.nets, strict=True):
            if task not in logits:
                continue
            known = ~logits[task].isnan()
            inputs = torch.cat([logits[task].detach().nan_to_num(0.0).unsqueeze(1), *extra], 1)
            corrected[task] = net(inputs).squeeze(1).masked_fill(~known, float("nan"))
        return corrected

    def step(self, batch: Batch, logits: Mapping[str, torch.Tensor], negatives: float = 1.0) -> dict[str, torch.Tensor]:
        """Corrected logits [B] by task, without gradient; then learn from the labels that are known. ``negatives``: the
        share of events without the outcome that the batch's log kept; what is corrected is of all events."""
        shift = logit_shift(negatives)
        with torch.enable_grad():
            corrected = self(batch, logits)
            losses = []
            for task, z in corrected.items():
                target = batch.labels[task].masked_fill(z.isnan(), float("nan"))
                if not target.isnan().all():  # else its network gets no gradient, and Adam leaves it alone
                    losses.append(soft_loss(z.nan_to_num(0.0) + shift, target, batch.weight))
            if losses:
                torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {task: z.detach() for task, z in corrected.items()}


def _network(inputs: int, hidden: int | None) -> torch.nn.Module:
    if hidden is None:
        line = torch.nn.Linear(inputs, 1)
        torch.nn.init.zeros_(line.weight)
        torch.nn.init.zeros_(line.bias)
        with torch.no_grad():
            line.weight[0, 0] = 1.0
        return line
    return torch.nn.Sequential(torch.nn.Linear(inputs, hidden), torch.nn.SiLU(), torch.nn.Linear(hidden, 1))
