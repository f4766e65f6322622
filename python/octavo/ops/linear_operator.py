"""``octavo::linear`` as torch sees it: one node in a traced graph, and gradients outside the operator."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from octavo.ops._library import define
from octavo.ops.epilogue import Norm
from octavo.ops.epilogue_backward import epilogue_backward
from octavo.ops.linear_call import run
from octavo.ops.packing import PackedWeight

ARGUMENTS = (
    "Tensor x, Tensor codes, Tensor? scale, str numerics, Tensor? bias, str? norm, Tensor? norm_weight, "
    "Tensor? norm_bias, float eps, int block, str? activation, Tensor? residual, bool residual_before_norm"
)
_weights = WeakTensorKeyDictionary()  # codes -> PackedWeight, so that layouts outlive a call


def traced_linear(
    x: torch.Tensor,
    w: PackedWeight,
    bias: torch.Tensor | None,
    norm: Norm | None,
    activation: str | None,
    residual: torch.Tensor | None,
    residual_before_norm: bool,
    out_dtype: torch.dtype | None,
) -> torch.Tensor:
    """The layer as one node ``octavo::linear`` of a graph."""
    y: torch.Tensor = torch.ops.octavo.linear(
        x,
        w.codes,
        w.scale,
        w.numerics,
        bias,
        *norm_arguments(norm),
        activation,
        residual,
        residual_before_norm,
        out_dtype,
    )
    return y


def linear_with_gradients(
    x: torch.Tensor,
    w: PackedWeight,
    bias: torch.Tensor | None,
    norm: Norm | None,
    activation: str | None,
    residual: torch.Tensor | None,
    residual_before_norm: bool,
    out_dtype: torch.dtype | None,
) -> torch.Tensor:
    """:func:`octavo.ops.linear` recorded for backward. Its gradients are torch's, in FP32, on the dequantized
    weight.
    """
    kind, norm_weight, norm_bias, eps, block = norm_arguments(norm)
    y: torch.Tensor = _Linear.apply(  # type: ignore[no-untyped-call]
        x, w.master, bias, norm_weight, norm_bias, residual,
        w.codes, w.scale, w.numerics, kind, eps, block, activation, residual_before_norm, out_dtype,
        None if torch.compiler.is_compiling() else w,
    )  # fmt: skip
    return y


def norm_arguments(norm: Norm | None) -> tuple[str | None, torch.Tensor | None, torch.Tensor | None, float, int]:
    """A norm as the operators' five arguments."""
    return (None, None, None, 0.0, 256) if norm is None else (norm.kind, norm.weight, norm.bias, norm.eps, norm.block)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Any, master: Any, bias: Any, norm_weight: Any, norm_bias: Any, residual: Any, codes: Any,
        scale: Any, numerics: str, kind: Any, eps: float, block: int, activation: Any, before: bool, out_dtype: Any, w:
            Any,
    ) -> torch.Tensor:  # fmt: skip
        ctx.save_for_backward(x, bias, norm_weight, norm_bias, residual, codes, scale)
        ctx.recipe = (numerics, kind, eps, block, activation, before)
        if w is not None:
            norm = None if kind is None else Norm(kind, norm_weight, norm_bias, eps, block)
            return run(x, w, bias, norm, activation, residual, before, out_dtype)
        y: torch.Tensor = torch.ops.octavo.linear(
            x,
            codes,
            scale,
            numerics,
            bias,
            kind,
            norm_weight,
            norm_bias,
            eps,
            block,
            activation,
            residual,
            before,
            out_dtype,
        )
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        x, bias, norm_weight, norm_bias, residual, codes, scale = ctx.saved_tensors
        numerics, kind, eps, block, activation, before = ctx.recipe
        needs = list(ctx.needs_input_grad[:6])
        grads = torch.ops.octavo.linear_backward(
            x,
            codes,
            scale,
            numerics,
            bias,
            kind,
            norm_weight,
            norm_bias,
            eps,
            block,
            activation,
            residual,
            before,
            grad,
            needs,
        )
        return (*(g if need else None for g, need in zip(grads, needs, strict=True)), *[None] * 10)


def weight_of(codes: torch.Tensor, scale: torch.Tensor | None, numerics: str) -> PackedWeight:
    """The weight of these codes, the same object while they live."""
    w: PackedWeight | None = _weights.get(codes)
    if w is None or w.numerics != numerics:
        w = _weights[codes] = PackedWeight(codes, scale, numerics)
    return w


def _linear(
    x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor | None, numerics: str, bias: torch.Tensor | None,
    norm: str | None, norm_weight: torch.Tensor | None, norm_bias: torch.Tensor | None, eps: float, block: int,
    activation: str | None, residual: torch.Tensor | None, residual_before_norm: bool, out_dtype: torch.dtype | None,
) -> torch.Tensor:  # fmt: skip
    w = weight_of(codes, scale, numerics)
    normalise = None if norm is None else Norm(norm, norm_weight, norm_bias, eps, block)
    return run(x, w, bias, normalise, activation, residual, residual_before_norm, out_dtype)


def _fake_linear(
    x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor | None, numerics: str, bias: torch.Tensor | None,
    norm: str | None, norm_weight: torch.Tensor | None, norm_bias: torch.Tensor | None, eps: float, block: int,
    activation: str | None, residual: torch.Tensor | None, residual_before_norm: bool, out_dtype: torch.dtype | None,
) -> torch.Tensor:  # fmt: skip
    torch._check(x.shape[-1] == codes.shape[1], lambda: f"x: last dimension {x.shape[-1]}, weight {list(codes.shape)}")
    return x.new_empty((*x.shape[:-1], codes.shape[0]), dtype=out_dtype or x.dtype)


def _linear_backward(
    x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor | None, numerics: str, bias: torch.Tensor | None,
    norm: str | None, norm_weight: torch.Tensor | None, norm_bias: torch.Tensor | None, eps: float, block: int,
    activation: str | None, residual: torch.Tensor | None, before: bool, grad: torch.Tensor, needs: list[bool],
) -> list[torch.Tensor]:  # fmt: skip
    """Gradients of x, weight, bias, norm weight, norm bias, residual; an empty tensor where none is needed.

    The product is recomputed in FP32 on the dequantized weight.
    """
    weight = PackedWeight(codes, scale, numerics).dequantize()
    rows, upstream = x.detach().reshape(-1, x.shape[-1]).float(), grad.reshape(-1, codes.shape[0]).float()
    normalise = None if norm is None else Norm(norm, norm_weight, norm_bias, eps, block)
    early = residual.detach().reshape(upstream.shape).float() if residual is not None and before else None
    z = rows @ weight.T
    z = z if bias is None else z + bias
    z = z if early is None else z + early
    gz, g_norm_weight, g_norm_bias = epilogue_backward(upstream, z, normalise, activation)
    need_x, need_weight, need_bias, _, _, need_residual = needs
    grads = (
        gz @ weight if need_x else None,
        gz.T @ rows if need_weight else None,
        gz.sum(0) if need_bias else None,
        g_norm_weight,
        g_norm_bias,
        (gz if before else upstream).clone() if need_residual else None,
    )
    inputs = (x, weight, bias, norm_weight, norm_bias, residual)
    return [
        g.reshape(t.shape).to(t.dtype) if need and g is not None and t is not None else x.new_empty(0)
        for t, need, g in zip(inputs, needs, grads, strict=True)
    ]


def _fake_linear_backward(
    x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor | None, numerics: str, bias: torch.Tensor | None,
    norm: str | None, norm_weight: torch.Tensor | None, norm_bias: torch.Tensor | None, eps: float, block: int,
    activation: str | None, residual: torch.Tensor | None, before: bool, grad: torch.Tensor, needs: list[bool],
) -> list[torch.Tensor]:  # fmt: skip
    inputs = [x, codes.new_empty(codes.shape, dtype=torch.float32), bias, norm_weight, norm_bias, residual]
    return [
        torch.empty_like(t, memory_format=torch.contiguous_format) if need and t is not None else x.new_empty(0)
        for t, need in zip(inputs, needs, strict=True)
    ]


define(f"linear({ARGUMENTS}, ScalarType? out_dtype) -> Tensor", _linear, _fake_linear)
define(f"linear_backward({ARGUMENTS}, Tensor grad, bool[] needs) -> Tensor[]", _linear_backward, _fake_linear_backward)
