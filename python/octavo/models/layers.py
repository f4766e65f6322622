"""The small parts that models share: hidden layers as the configuration has them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from octavo import nn
from octavo.config import ModelConfig


def mlp(inputs: int, widths: Sequence[int], config: ModelConfig) -> torch.nn.Sequential:
    """Hidden layers ``inputs -> widths``, each linear, norm and activation in one (LoKA's Mods), then dropout."""
    layers: list[torch.nn.Module] = []
    for width in widths:
        layers.append(nn.LinearNorm(inputs, width, config.norm, config.activation, config.bias))
        if config.dropout:
            layers.append(torch.nn.Dropout(config.dropout))
        inputs = width
    return torch.nn.Sequential(*layers)
