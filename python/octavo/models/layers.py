"""The small parts that models share: hidden layers and norms as the configuration has them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from octavo import nn, ops
from octavo.config import ModelConfig
from octavo.ops.epilogue import apply_norm


def mlp(inputs: int, widths: Sequence[int], config: ModelConfig) -> torch.nn.Sequential:
    """Hidden layers ``inputs -> widths``, each linear, norm and activation in one (LoKA's Mods), then dropout."""
    layers: list[torch.nn.Module] = []
    for width in widths:
        layers.append(nn.LinearNorm(inputs, width, config.norm, config.activation, config.bias))
        if config.dropout:
            layers.append(torch.nn.Dropout(config.dropout))
        inputs = width
    return torch.nn.Sequential(*layers)


class Norm(torch.nn.Module):
    """A norm over the last dimension that follows no linear layer. Where hidden layers have SwishRMSNorm, which is an
    activation as well, this one is the RMS norm in it.
    """

    def __init__(self, width: int, kind: str | None, eps: float = 1e-5) -> None:
        super().__init__()
        self.kind = "rms" if kind == "swish_rms" else kind
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(width)) if self.kind in ("layer", "rms") else None
        self.bias = torch.nn.Parameter(torch.zeros(width)) if self.kind == "layer" else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., width], normalised."""
        return x if self.kind is None else apply_norm(x, ops.Norm(self.kind, self.weight, self.bias, self.eps))

    def extra_repr(self) -> str:
        return f"kind={self.kind}"
