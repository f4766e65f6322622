"""Gradients that have gradients themselves (``create_graph=True``): the operation once more, by torch's operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from octavo.ops.epilogue import Norm, apply_epilogue
from octavo.ops.packing import PackedWeight

Tensors = Sequence[torch.Tensor | None]


def recorded_gradients(
    function: Callable[..., torch.Tensor], inputs: Tensors, needs: Sequence[bool], grad: torch.Tensor
) -> list[torch.Tensor | None]:
    """Gradients of ``function(*inputs)`` for ``grad``, in a graph; None where none is needed. Called with grad mode on.

    Each input counts for itself, also where two are one tensor.
    """
    own = [None if t is None else t.view_as(t) for t in inputs]
    wanted = [t for t, need in zip(own, needs, strict=True) if need and t is not None]
    y = function(*own)
    if not wanted or not y.requires_grad:
        return [None] * len(own)
    found = iter(torch.autograd.grad(y, wanted, grad.to(y.dtype), create_graph=True, allow_unused=True))
    return [next(found) if need and t is not None else None for t, need in zip(own, needs, strict=True)]


def linear_gradients(
    inputs: Tensors,
    needs: Sequence[bool],
    grad: torch.Tensor,
    w: PackedWeight,
    z: torch.Tensor | None,
    norm: Norm | None,
    activation: str | None,
    before: bool,
) -> list[torch.Tensor | None]:
    """Of a layer's x, master weight, bias, norm weight, norm bias and residual, straight through the rounding, in FP32.

    The norm is taken at ``z`` [..., N], what it saw in the forward; None: at the product. A residual behind the
    activation may be anything: its gradient is ``grad``.
    """

    def layer(
        x: torch.Tensor,
        master: torch.Tensor | None,
        bias: torch.Tensor | None,
        norm_weight: torch.Tensor | None,
        norm_bias: torch.Tensor | None,
        residual: torch.Tensor | None,
    ) -> torch.Tensor:
        weight = w.dequantize()
        if master is not None:
            weight = weight + (master - master.detach()).to(weight.dtype)
        product = torch.nn.functional.linear(x.float(), weight, None if bias is None else bias.float())
        if residual is not None:
            product = product + residual.float()
        if z is not None:
            product = product + (z.float() - product).detach()
        seen = None if norm is None else replace(norm, weight=norm_weight, bias=norm_bias)
        return apply_epilogue(product, None, seen, activation)

    if before:
        return recorded_gradients(layer, inputs, needs, grad)
    found = recorded_gradients(layer, (*inputs[:5], None), needs, grad)
    residual = inputs[5]
    found[5] = grad.to(residual.dtype) if needs[5] and residual is not None else None
    return found
