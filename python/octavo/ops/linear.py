"""``linear``: a layer with its epilogue in one kernel, any shape, routed by M inside the operator."""

from __future__ import annotations

from typing import cast

import torch

from octavo.ops.epilogue import Norm
from octavo.ops.linear_backward import check_backward
from octavo.ops.linear_call import check, run
from octavo.ops.linear_operator import linear_with_gradients, traced_linear
from octavo.ops.packing import PackedWeight


def linear(
    x: torch.Tensor,
    w: PackedWeight,
    bias: torch.Tensor | None = None,
    norm: Norm | None = None,
    activation: str | None = None,
    residual: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    out: torch.Tensor | None = None,
    residual_before_norm: bool = False,
    backward: str = "bf16",
) -> torch.Tensor:
    """y = act(norm(x W^T + bias [+ residual when residual_before_norm])) [+ residual].

    Args:
        x: [..., K] float32 or bfloat16, any strides, on w's device.
        w: weight [N, K] from :func:`octavo.ops.pack_weight`; its numerics class says how x is rounded.
        bias: [N] float32.
        norm: a :class:`octavo.ops.Norm` over N.
        activation: ``relu | silu | gelu | hardswish | sigmoid``.
        residual: [..., N] float32 or bfloat16.
        out_dtype: float32 or bfloat16; x's dtype by default.
        out: [..., N] tensor to write to (contiguous rows); returned. Not with gradients.
        backward: how gradients are computed on a CPU. ``bf16``: operands of both products rounded to BF16, FP32 sums.
            ``e4m3_row`` (E4M3 weights): the gradient in E5M2 scaled per row, the other operand in E4M3.
            ``int8_dynamic`` (INT8 weights): that of x in INT8, that of the weight in BF16. ``fp32``: torch in FP32 on
            the dequantized weight, the product computed again; on CUDA always.

    Returns [..., N]. The fastest qualified kernel of the class runs (``octavo.ops.dispatch.explain`` says which).
    Gradients of x, bias, norm, residual and w's master weight pass straight through the rounding of the forward; what
    the norm saw is kept for them in the output's type. Raises TypeError or ValueError that names the argument.
    """
    if not torch.compiler.is_compiling():
        served = getattr(w, "served", None)
        if served is not None:
            y = served.serve(x, w.master, bias, norm, activation, residual, out_dtype, out, residual_before_norm)
            if y is not NotImplemented:
                return cast(torch.Tensor, y)
    if not isinstance(w, PackedWeight):
        raise TypeError(f"w: expected a PackedWeight from octavo.ops.pack_weight, found {type(w).__name__}")
    if torch.is_grad_enabled() and _any_requires_grad(x, w.master, bias, norm, residual):
        if out is not None:
            raise ValueError("out: cannot be combined with gradients; leave it out or use torch.no_grad()")
        check(x, w, bias, norm, activation, residual, out_dtype, out)
        check_backward(backward, w.codes.dtype)
        return linear_with_gradients(x, w, bias, norm, activation, residual, residual_before_norm, out_dtype, backward)
    if torch.compiler.is_compiling():
        if out is not None:
            raise ValueError("out: cannot be combined with tracing; leave it out")
        return traced_linear(x, w, bias, norm, activation, residual, residual_before_norm, out_dtype)
    return run(x, w, bias, norm, activation, residual, residual_before_norm, out_dtype, out)


def _any_requires_grad(
    x: torch.Tensor,
    master: torch.Tensor | None,
    bias: torch.Tensor | None,
    norm: Norm | None,
    residual: torch.Tensor | None,
) -> bool:
    tensors = [x, master, bias, residual]
    if isinstance(norm, Norm):
        tensors += [norm.weight, norm.bias]
    return any(getattr(t, "requires_grad", False) for t in tensors)
