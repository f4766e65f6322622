"""``linear``: a layer with its epilogue in one kernel, any shape, routed by M inside the operator."""

from __future__ import annotations

from typing import Literal, cast, overload

import torch

from octavo.ops import by_torch
from octavo.ops._types import requires_grad, within_transform
from octavo.ops.epilogue import Norm
from octavo.ops.linear_backward import Backward, backward_classes, check_codes
from octavo.ops.linear_call import check, run
from octavo.ops.linear_operator import linear_with_gradients, traced_linear
from octavo.ops.linear_quantized import traced_quantized_linear
from octavo.ops.packing import PackedWeight
from octavo.ops.quantization import QuantizedTensor
from octavo.ops.residual_rows import expect_rows, gathered


@overload
def linear(
    x: torch.Tensor | QuantizedTensor,
    w: PackedWeight,
    bias: torch.Tensor | None = None,
    norm: Norm | None = None,
    activation: str | None = None,
    residual: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    out: torch.Tensor | None = None,
    residual_before_norm: bool = False,
    out_format: None = None,
    backward: Backward = "bf16",
    backward_weight: PackedWeight | None = None,
    residual_rows: torch.Tensor | None = None,
) -> torch.Tensor: ...
@overload
def linear(
    x: torch.Tensor | QuantizedTensor,
    w: PackedWeight,
    bias: torch.Tensor | None = None,
    norm: Norm | None = None,
    activation: str | None = None,
    residual: torch.Tensor | None = None,
    out_dtype: None = None,
    out: None = None,
    residual_before_norm: bool = False,
    *,
    out_format: Literal["e4m3", "int8"],
    backward: Backward = "bf16",
    backward_weight: PackedWeight | None = None,
    residual_rows: torch.Tensor | None = None,
) -> QuantizedTensor: ...
def linear(
    x: torch.Tensor | QuantizedTensor,
    w: PackedWeight,
    bias: torch.Tensor | None = None,
    norm: Norm | None = None,
    activation: str | None = None,
    residual: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    out: torch.Tensor | None = None,
    residual_before_norm: bool = False,
    out_format: str | None = None,
    backward: Backward = "bf16",
    backward_weight: PackedWeight | None = None,
    residual_rows: torch.Tensor | None = None,
) -> torch.Tensor | QuantizedTensor:
    """y = act(norm(x W^T + bias [+ residual when residual_before_norm])) [+ residual].

    Args:
        x: [..., K] float32 or bfloat16, any strides, on w's device. Or a :class:`octavo.ops.QuantizedTensor` in the
            format the class rounds x to (``e4m3`` for e4m3_row and e4m3_block, ``int8`` for int8_dynamic) with ``row``
            or ``tensor`` scaling, for e4m3_block ``block_1x128``: its codes are multiplied as they are.
        w: weight [N, K] from :func:`octavo.ops.pack_weight`; its numerics class says how x is rounded.
        bias: [N] float32.
        norm: a :class:`octavo.ops.Norm` over N.
        activation: ``relu | silu | gelu | hardswish | sigmoid``.
        residual: [..., N] float32 or bfloat16; [R, N] with residual_rows.
        residual_rows: int64, shaped as x without its last dimension: row i adds ``residual[residual_rows[i]]``. So a
            ranker's first layer on candidates and their users' features is
            ``linear(x_c, w_c, norm=norm, residual=linear(x_u, w_u, bias), residual_rows=user_of_candidate,
            residual_before_norm=True)``: the users' half once per user, its rows never repeated. A row outside
            ``[0, R)`` raises IndexError on a CPU. CUDA kernels read rows where they lie and wait for nothing: there
            an output row whose index lies outside is NaN. With gradients the rows are gathered first; the residual's
            gradient sums its rows' in FP32, deterministically.
        out_dtype: float32 or bfloat16; x's dtype by default, float32 for a quantized x.
        out: [..., N] tensor to write to (contiguous rows that do not overlap); returned. Not with
            gradients, its own included.
        out_format: ``e4m3`` or ``int8``: return a QuantizedTensor with row scaling, code for code and scale for scale
            what :func:`octavo.ops.quantize` makes of the float32 output, which is never stored. Layers can so be
            chained in eight bits.
        backward: how gradients are computed, on a CPU and where CUDA has qualified kernels for it. ``bf16``: operands
            of both products rounded to BF16, FP32 sums. ``e4m3_row`` (E4M3 weights): the gradient in E5M2 scaled per
            row, the other operand in E4M3. ``int8_dynamic`` (INT8 weights): that of x in INT8, that of the weight in
            BF16. ``fp32``: torch in FP32 on the dequantized weight, the product computed again; on CUDA also where a
            kernel lacks. A pair names the classes of grad_input (``fp32 | bf16 | e4m3_row | int8_dynamic``) and of
            grad_weight (``fp32 | bf16 | e4m3_row``).
        backward_weight: the same weight in the class of grad_input, where that multiplies other codes than w has
            (``int8_dynamic`` behind a forward in BF16).

    Returns [..., N]. The fastest qualified kernel of the class runs (``octavo.ops.dispatch.explain`` says which).
    Gradients of x, bias, norm, residual and w's master weight pass straight through the rounding of the forward; what
    the norm saw is kept for them in the output's type. With ``create_graph=True`` they are
    torch's, in FP32, whatever ``backward`` says. Eight-bit rows, in or out, record none: use ``torch.no_grad()`` there.
    Raises TypeError or ValueError that names the argument.
    """
    compiling = torch.compiler.is_compiling()
    if not compiling:
        served = getattr(w, "served", None)
        if served is not None and out_format is None and residual_rows is None:
            y = served.serve(x, w.master, bias, norm, activation, residual, out_dtype, out, residual_before_norm)
            if y is not NotImplemented:
                return cast(torch.Tensor, y)
    if not isinstance(w, PackedWeight):
        raise TypeError(f"w: expected a PackedWeight from octavo.ops.pack_weight, found {type(w).__name__}")
    eight_bit = out_format is not None or isinstance(x, QuantizedTensor)
    inside = compiling and within_transform()
    recorded = records(x, w, bias, norm, residual) or (inside and not eight_bit)
    if residual_rows is not None and (recorded or (eight_bit and compiling)):
        check(x, w, bias, norm, activation, None, out_dtype, out, out_format)
        residual, residual_rows = gathered(expect_rows(residual, residual_rows, x, w), residual_rows), None
    if recorded:
        if eight_bit:
            name = "x" if out_format is None else "out_format"
            raise ValueError(f"{name}: eight-bit rows record no gradients; use torch.no_grad() or float rows")
        if out is not None:
            raise ValueError("out: cannot be combined with gradients; leave it out or use torch.no_grad()")
        x = cast(torch.Tensor, x)
        if compiling:
            check(x, w, bias, norm, activation, residual, out_dtype, out)
        classes = backward_classes(backward)
        if backward_weight is not None and backward_weight.shape != w.shape:
            raise ValueError(f"backward_weight: is {list(backward_weight.shape)}, w is {list(w.shape)}")
        if backward_weight is not None and backward_weight.device != w.device:
            raise ValueError(f"backward_weight: is on {backward_weight.device}, w is on {w.device}; pack it there too")
        check_codes(classes[0], (backward_weight or w).numerics)
        if inside:
            return by_torch.linear(x, w, bias, norm, activation, residual, residual_before_norm, out_dtype)
        return linear_with_gradients(
            x, w, bias, norm, activation, residual, residual_before_norm, out_dtype, classes, backward_weight
        )
    if compiling:
        if out is not None:
            raise ValueError("out: cannot be combined with tracing; leave it out")
        if eight_bit:
            check(x, w, bias, norm, activation, residual, out_dtype, out, out_format)
            return traced_quantized_linear(
                x, w, bias, norm, activation, residual, residual_before_norm, out_dtype, out_format
            )
        x = cast(torch.Tensor, x)
        return traced_linear(x, w, bias, norm, activation, residual, residual_before_norm, out_dtype, residual_rows)
    return run(
        x, w, bias, norm, activation, residual, residual_before_norm, out_dtype, out, out_format=out_format,
        residual_rows=residual_rows,
    )  # fmt: skip


def records(x: object, w: object, bias: object, norm: object, residual: object = None) -> bool:
    """Whether :func:`linear` keeps what gradients need; its arguments may still be of any type."""
    vectors = getattr(norm, "weight", None), getattr(norm, "bias", None)
    return torch.is_grad_enabled() and requires_grad(x, getattr(w, "master", None), bias, residual, *vectors)
