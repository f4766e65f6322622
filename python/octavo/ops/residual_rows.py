"""Rows of a residual that many rows of an output share: what a user's half of a layer adds to every candidate."""

from __future__ import annotations

from typing import Any

import torch

from octavo.ops._library import define
from octavo.ops._types import expect_tensor, within_transform
from octavo.ops.by_torch import with_value
from octavo.ops.packing import PackedWeight
from octavo.ops.quantization import QuantizedTensor

_FLOATS = (torch.float32, torch.bfloat16)


def expect_rows(
    residual: torch.Tensor | None, rows: torch.Tensor, x: torch.Tensor | QuantizedTensor, w: PackedWeight
) -> torch.Tensor:
    """``residual`` [R, N], checked, of which ``rows`` names one for each row of x."""
    shape, n = (x.data if isinstance(x, QuantizedTensor) else x).shape[:-1], w.n
    expect_tensor("residual_rows", rows, (torch.int64,))
    if residual is None:
        raise ValueError("residual_rows: says which rows of residual to add; give residual too")
    expect_tensor("residual", residual, _FLOATS, 2)
    if residual.shape[1] != n:
        raise ValueError(f"residual: shape {list(residual.shape)}; expected [R, {n}] with residual_rows")
    if rows.shape != shape:
        raise ValueError(f"residual_rows: shape {list(rows.shape)}; expected {list(shape)}, one for each row of x")
    if residual.shape[0] == 0 and rows.numel() > 0:
        raise ValueError("residual: has no rows, but residual_rows names some")
    for name, tensor in (("residual", residual), ("residual_rows", rows)):
        if tensor.device != w.device:
            raise ValueError(f"{name}: is on {tensor.device} but the weight is on {w.device}; move one with .to()")
    return residual


def gathered(residual: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """``residual[rows]``, differentiable, one node of a graph.

    A row outside raises IndexError on a CPU; on CUDA, where nothing waits for the device, it is NaN and its gradient is
    dropped.
    """
    if within_transform():
        near = residual[rows.clamp(0, max(residual.shape[0] - 1, 0))]
        return with_value(near, torch.ops.octavo.residual_rows(residual.detach(), rows))
    found: torch.Tensor = _Gathered.apply(residual, rows)  # type: ignore[no-untyped-call]
    return found


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, residual: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(rows)
        ctx.residual = residual.shape[0], residual.dtype
        if torch.compiler.is_compiling():
            traced: torch.Tensor = torch.ops.octavo.residual_rows(residual, rows)
            return traced
        return _gather(residual, rows)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        (rows,) = ctx.saved_tensors
        count, dtype = ctx.residual
        if torch.is_grad_enabled() and not torch.compiler.is_compiling() and rows.numel() == 0:
            # where torch has no second derivative
            return grad.new_zeros((count, grad.shape[-1]), dtype=dtype), None
        # An embedding's gradient: sums in FP32, in a fixed order on both devices. Rows outside fill one row more.
        places = torch.where((rows >= 0) & (rows < count), rows, count)
        sums = torch.ops.aten.embedding_dense_backward(grad.float(), places, count + 1, count, False)
        return sums[:count].to(dtype), None


def _gather(residual: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    count = residual.shape[0]
    outside = (rows < 0) | (rows >= count)
    if not rows.is_cuda:
        if bool(outside.any()):
            first = int(outside.flatten().nonzero()[0])
            raise IndexError(
                f"residual_rows: row {first} names row {int(rows.flatten()[first])} of residual, which has {count}"
            )
        return residual[rows]
    if count == 0:
        return residual.new_empty((*rows.shape, residual.shape[1]))
    return residual[rows.clamp(0, count - 1)].masked_fill(outside.unsqueeze(-1), torch.nan)


def _fake_gather(residual: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return residual.new_empty((*rows.shape, residual.shape[1]))


define("residual_rows(Tensor residual, Tensor rows) -> Tensor", _gather, _fake_gather)
