"""Norms that follow no linear layer."""

from __future__ import annotations

import torch

from octavo import ops
from octavo.ops.epilogue import apply_norm


class BlockNorm(torch.nn.Module):
    """LoKA's BlockNorm: RMS norm over contiguous blocks of ``block`` columns of the last dimension, no parameters.

    A last block that is shorter has a mean of its own. ``eps`` is added to the mean square.
    """

    def __init__(self, block: int = 256, eps: float = 1e-5) -> None:
        super().__init__()
        self.block, self.eps = block, eps
        _ = self.definition  # its checks

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., N], normalised, in x's dtype."""
        return apply_norm(x, self.definition) if x.shape[-1] else x

    @property
    def definition(self) -> ops.Norm:
        """What it does, for operators that take a norm along."""
        return ops.Norm("block", eps=self.eps, block=self.block)

    def extra_repr(self) -> str:
        return f"block={self.block}, eps={self.eps}"


class Norm(torch.nn.Module):
    """The norm ``kind`` (``layer | rms | block``, or None: none) over the last dimension, ``width`` wide, for the
    configuration's norm of hidden layers. Where these have SwishRMSNorm, which is an activation as well, this one is
    the RMS norm in it.
    """

    def __init__(self, width: int, kind: str | None, eps: float = 1e-5, block: int = 256) -> None:
        super().__init__()
        self.kind = "rms" if kind == "swish_rms" else kind
        self.eps, self.block = eps, block
        self.weight = torch.nn.Parameter(torch.ones(width)) if self.kind in ("layer", "rms") else None
        self.bias = torch.nn.Parameter(torch.zeros(width)) if self.kind == "layer" else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., width], normalised."""
        norm = self.definition
        return x if norm is None else apply_norm(x, norm)

    @property
    def definition(self) -> ops.Norm | None:
        """What it does, for operators that take a norm along."""
        return None if self.kind is None else ops.Norm(self.kind, self.weight, self.bias, self.eps, self.block)

    def extra_repr(self) -> str:
        return f"kind={self.kind}"
