"""Whether kernels may write to a tensor that a caller gives."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def is_apart(tensor: torch.Tensor) -> bool:
    """Whether no two elements of ``tensor`` share memory: each dimension steps beyond all that the finer ones reach."""
    if tensor.is_contiguous() or tensor.numel() == 0:
        return True
    reach = 0
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride <= reach:
                return False
            reach += (size - 1) * stride
    return True


def expect_writable(argument: str, out: torch.Tensor) -> None:
    """Raise ValueError for elements that share memory or are read negated, and where autograd records gradients."""
    if not is_apart(out):
        raise ValueError(
            f"{argument}: its elements overlap in memory, strides {list(out.stride())} of shape {list(out.shape)}; "
            "pass a tensor of its own"
        )
    if out.is_neg():
        raise ValueError(f"{argument}: is a negated view (Tensor.is_neg); pass {argument}.resolve_neg()")
    if out.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{argument}: requires gradients, which do not flow through it; pass {argument}.detach()")


def expect_distinct(argument: str, outs: Sequence[torch.Tensor | None]) -> None:
    """Raise ValueError where two of ``outs`` start at the same address: one would overwrite the other."""
    owner: dict[int, int] = {}
    for i, out in enumerate(outs):
        if isinstance(out, torch.Tensor) and out.numel():
            first = owner.setdefault(out.data_ptr(), i)
            if first != i:
                raise ValueError(f"{argument}: groups {first} and {i} got the same memory; give each its own")
