"""A gradient that enters the backbone larger or smaller than it came (ExFM, gradient scaling)."""

from __future__ import annotations

from typing import Any

import torch

from octavo.ops._types import within_transform


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, factor: float) -> torch.Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad * ctx.factor, None


def scale_gradient(x: torch.Tensor, factor: float) -> torch.Tensor:
    """x itself, whose gradient is multiplied by ``factor`` (the paper's beta) on its way back."""
    if within_transform():
        finite = torch.where(x.isfinite(), x, 0.0)
        return x.detach() + (finite - finite.detach()) * factor
    y: torch.Tensor = _Scaled.apply(x, factor)  # type: ignore[no-untyped-call]
    return y
