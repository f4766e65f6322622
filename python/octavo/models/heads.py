"""From the representation that tasks share to one logit per task: shared bottom, or a mixture of experts with a gate
per task.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from octavo import nn, ops
from octavo.config import MMoEConfig, ModelConfig
from octavo.models.layers import mlp


def build_heads(inputs: int, tasks: Sequence[str], config: ModelConfig) -> torch.nn.Module:
    """``heads(x [B, inputs]) -> {task: logits [B] float32}`` as ``config.heads`` says."""
    if isinstance(config.heads, MMoEConfig):
        return MMoE(inputs, tasks, config, config.heads)
    return SharedBottom(inputs, tasks, config)


class SharedBottom(torch.nn.ModuleDict):
    """A tower per task on the shared x: y_k = h_k(x) [Caruana 1997; Ma et al. 2018, Eq. 1]. Without hidden layers a
    tower is one linear layer.
    """

    def __init__(self, inputs: int, tasks: Sequence[str], config: ModelConfig) -> None:
        names = module_names(tasks)
        super().__init__({name: _tower(inputs, config) for name in names.values()})
        self.names = names

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """x [B, inputs], the same for all tasks."""
        return {task: _logit(self[name](x)) for task, name in self.names.items()}


class MMoE(torch.nn.Module):
    """Multi-gate mixture of experts [Ma et al., KDD 2018, section 4.2]: y_k = h_k(sum_i g_k(x)_i f_i(x)),
    g_k(x) = softmax(W_k x), f_i an MLP; the gates of all T tasks are one layer [T * experts, inputs].
    """

    def __init__(self, inputs: int, tasks: Sequence[str], config: ModelConfig, heads: MMoEConfig) -> None:
        super().__init__()
        self.names = module_names(tasks)
        self.experts = torch.nn.ModuleList(mlp(inputs, heads.expert, config) for _ in range(heads.experts))
        self.gates = nn.Linear(inputs, len(self.names) * heads.experts, bias=False)
        self.towers = torch.nn.ModuleDict({name: _tower(heads.expert[-1], config) for name in self.names.values()})

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """x [B, inputs], the same for all tasks."""
        experts = torch.stack([expert(x) for expert in self.experts], 2)  # [B, H, experts]
        gates = self.gates(x).view(len(x), len(self.names), len(self.experts)).softmax(2)
        mixed = ops.pairwise_dots(gates, experts)  # [B, T, H]
        return {task: _logit(self.towers[name](mixed[:, t])) for t, (task, name) in enumerate(self.names.items())}


def module_names(tasks: Sequence[str]) -> dict[str, str]:
    """Task -> the name of its module: the task itself where torch takes it (no dots, no attribute of a container)."""
    names: dict[str, str] = {}
    for task in tasks:
        name = task.replace(".", "_")
        while not name or hasattr(torch.nn.ModuleDict, name) or name in ("training", *names.values()):
            name += "_"
        names[task] = name
    return names


def _tower(inputs: int, config: ModelConfig) -> torch.nn.Module:
    widths = config.heads.tower
    out = nn.Linear(widths[-1] if widths else inputs, 1)
    return torch.nn.Sequential(*mlp(inputs, widths, config), out) if widths else out


def _logit(z: torch.Tensor) -> torch.Tensor:
    return z.squeeze(-1).float()
