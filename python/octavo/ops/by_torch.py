"""Layers and products of pairs by torch's operators, with the values of the kernels: for gradients of every order.

Gradients pass straight through the rounding, in FP32. So run the backward of a call with ``create_graph=True``, and
whole calls inside torch.func's transforms (grad, jvp, vmap, ...) in a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional

from octavo.ops.epilogue import Norm, apply_epilogue
from octavo.ops.packing import PackedWeight

Tensors = Sequence[torch.Tensor | None]


def with_value(of_gradient: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """``value``, whose gradient is that of ``of_gradient``."""
    value = value.to(of_gradient.dtype)
    return of_gradient + torch.where(value == of_gradient, 0.0, value - of_gradient).detach()


def recorded_gradients(
    function: Callable[..., torch.Tensor], inputs: Tensors, needs: Sequence[bool], grad: torch.Tensor
) -> list[torch.Tensor | None]:
    """Gradients of ``function(*inputs)`` for ``grad``, in a graph; None where none is needed. Called with grad mode on.

    Each input counts for itself, also where two are one tensor.
    """
    own = [None if t is None else t.view_as(t) for t in inputs]
    wanted = [t for t, need in zip(own, needs, strict=True) if need and t is not None]
    with torch.autocast(grad.device.type, enabled=False):
        y = function(*own)
        if not wanted or not y.requires_grad:
            return [None] * len(own)
        found = iter(torch.autograd.grad(y, wanted, grad.to(y.dtype), create_graph=True, allow_unused=True))
    return [next(found) if need and t is not None else None for t, need in zip(own, needs, strict=True)]


def refused(found: Sequence[torch.Tensor | None], message: str) -> list[Any]:
    """Gradients as they are, whose own gradients raise RuntimeError with this message."""
    tensors = [t.detach().requires_grad_() for t in found if t is not None]
    guarded: Any = torch._C._functions.DelayedError(message.encode(), len(tensors))(*tensors) if tensors else ()
    each = iter((guarded,) if isinstance(guarded, torch.Tensor) else guarded)
    return [None if t is None else next(each) for t in found]


def product(x: torch.Tensor, w: PackedWeight, master: torch.Tensor | None, bias: torch.Tensor | None) -> torch.Tensor:
    """x W^T + bias [..., N] on the dequantized weight; gradients of W go to ``master``."""
    weight = w.dequantize()
    if master is not None:
        weight = with_value(master.float(), weight)
    return functional.linear(x.float(), weight, None if bias is None else bias.float())


def linear(
    x: torch.Tensor,
    w: PackedWeight,
    bias: torch.Tensor | None,
    norm: Norm | None,
    activation: str | None,
    residual: torch.Tensor | None,
    before: bool,
    out_dtype: torch.dtype | None,
) -> torch.Tensor:
    """:func:`octavo.ops.linear` in a graph: the product is the kernel's, what follows it torch's."""
    with torch.autocast(x.device.type, enabled=False):
        z = product(x, w, w.master, bias)
        seen = torch.ops.octavo.linear(
            x.detach(), w.codes.detach(), w.scale, w.numerics, w.kept, None if bias is None else bias.detach(),
            None, None, None, 0.0, 256, None, None, False, torch.float32,
        )  # fmt: skip
        y = apply_epilogue(with_value(z, seen), None, norm, activation, residual, before)
        return y.to(out_dtype or x.dtype)


def pairwise_dots(x: torch.Tensor, y: torch.Tensor | None, pairs: str, numerics: str) -> torch.Tensor:
    """The products in FP32, of operands rounded as the class rounds them."""
    operands = [x, x if y is None else y]
    if numerics == "bf16":
        operands = [with_value(t, t.bfloat16()) for t in operands]
    with torch.autocast(x.device.type, enabled=False):
        products = operands[0].float() @ operands[1].float().mT
    if pairs == "all":
        return products
    f = x.shape[1]
    row, column = torch.tril_indices(f, f, -1) if pairs == "lower" else torch.triu_indices(f, f, 1)
    return products[:, row.to(x.device), column.to(x.device)]
