"""``octavo::linear`` as torch sees it: one node in a traced graph, and gradients outside the operator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.nn import functional
from torch.utils.weak import WeakTensorKeyDictionary

from octavo.ops._library import define
from octavo.ops._types import address
from octavo.ops.by_torch import product, recorded_gradients, refused, with_value
from octavo.ops.epilogue import Norm, apply_epilogue
from octavo.ops.epilogue_backward import epilogue_backward
from octavo.ops.linear_backward import by_kernels, gradients
from octavo.ops.linear_call import epilogue_of, record, run
from octavo.ops.packing import PackedWeight

ARGUMENTS = (
    "Tensor x, Tensor codes, Tensor? scale, str numerics, bool kept, Tensor? bias, str? norm, Tensor? norm_weight, "
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
    residual_rows: torch.Tensor | None,
) -> torch.Tensor:
    """The layer as one node ``octavo::linear`` of a graph."""
    y: torch.Tensor = torch.ops.octavo.linear(
        x,
        w.codes,
        w.scale,
        w.numerics,
        w.kept,
        bias,
        *norm_arguments(norm),
        activation,
        residual,
        residual_before_norm,
        out_dtype,
        residual_rows,
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
    classes: tuple[str, str],
    backward_weight: PackedWeight | None = None,
) -> torch.Tensor:
    """:func:`octavo.ops.linear` recorded for backward. grad_input multiplies ``backward_weight``; None: w."""
    norm_weight, norm_bias = (None, None) if norm is None else (norm.weight, norm.bias)
    function = _TracedLinear if torch.compiler.is_compiling() else _Linear
    y: torch.Tensor = function.apply(  # type: ignore[no-untyped-call]
        x, w.master, bias, norm_weight, norm_bias, residual,
        w, norm, activation, residual_before_norm, out_dtype, classes, backward_weight or w,
    )  # fmt: skip
    return y


def fp32_with_gradients(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    norm: Norm | None,
    activation: str | None,
    classes: tuple[str, str],
    backward_weight: PackedWeight | None,
) -> torch.Tensor:
    """A layer by torch in FP32 whose gradients are computed in ``classes``; None: grad_input is in FP32 too."""
    w = PackedWeight(weight.detach(), None, "fp32", weight if weight.requires_grad else None)
    return linear_with_gradients(x, w, bias, norm, activation, None, False, None, classes, backward_weight)


def _fp32_forward(
    x: torch.Tensor, w: PackedWeight, bias: torch.Tensor | None, norm: Norm | None, activation: str | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """y, and what the norm saw; None where neither norm nor activation follows the product."""
    z = functional.linear(x, w.codes, bias)
    is_plain = norm is None and activation is None
    return (z, None) if is_plain else (apply_epilogue(z, None, norm, activation), z)


def norm_arguments(norm: Norm | None) -> tuple[str | None, torch.Tensor | None, torch.Tensor | None, float, int]:
    """A norm as the operators' five arguments."""
    return (None, None, None, 0.0, 256) if norm is None else (norm.kind, norm.weight, norm.bias, norm.eps, norm.block)


class _Linear(torch.autograd.Function):
    """The eager path: compiled calls both ways. Saved: x, what the norm saw in y's type, codes and norm parameters."""

    @staticmethod
    def forward(
        ctx: Any, x: Any, master: Any, bias: Any, norm_weight: Any, norm_bias: Any, residual: Any, w: PackedWeight,
        norm: Norm | None, activation: str | None, before: bool, out_dtype: Any, classes: tuple[str, str],
        backward_weight: PackedWeight,
    ) -> torch.Tensor:  # fmt: skip
        ctx.of_again, ctx.parameters = (w, norm, activation, before), (master, bias)
        if not by_kernels(w.codes.device, classes):
            ctx.classes, ctx.residual = None, None if residual is None else residual.dtype
            kind, _, _, eps, block = norm_arguments(norm)
            ctx.recipe = (w.numerics, kind, eps, block, activation, before)
            ctx.save_for_backward(x, bias, norm_weight, norm_bias, residual, w.codes, w.scale)
            return run(x, w, bias, norm, activation, residual, before, out_dtype)
        if w.numerics == "fp32":
            y, z = _fp32_forward(x, w, bias, norm, activation)
            ctx.epilogue = epilogue_of(None, norm, activation)
        else:
            y, z, layer = record(x, w, bias, norm, activation, residual, before, out_dtype)
            ctx.epilogue = layer.epilogue, layer.vectors
        ctx.w, ctx.classes, ctx.before = backward_weight, classes, before
        ctx.residual = None if residual is None else residual.dtype
        ctx.master = None if master is None else master.dtype
        # Codes and parameters: changes are noticed.
        ctx.save_for_backward(x, z, w.codes, norm_weight, norm_bias)
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        needs = ctx.needs_input_grad[:6]
        found = _by_torch(ctx, needs, grad) if torch.is_grad_enabled() else _by_kernels(ctx, needs, grad)
        return (*found, *[None] * 7)


def _by_kernels(ctx: Any, needs: Sequence[bool], grad: torch.Tensor) -> Sequence[torch.Tensor | None]:
    if ctx.classes is not None:
        x, z, *_ = ctx.saved_tensors
        found = gradients(grad, x, z, ctx.w, ctx.epilogue[0], ctx.classes, ctx.residual, ctx.before, needs)
        if found[1] is not None:
            found[1] = found[1].to(ctx.master)
        return found
    x, bias, norm_weight, norm_bias, residual, codes, scale = ctx.saved_tensors
    numerics, kind, eps, block, activation, before = ctx.recipe
    grads = _linear_backward(
        x, codes, scale, numerics, False, bias, kind, norm_weight, norm_bias, eps, block, activation, residual,
        before, None, grad, "fp32", "fp32", needs,
    )  # fmt: skip
    return [g if need else None for g, need in zip(grads, needs, strict=True)]


def _by_torch(ctx: Any, needs: Sequence[bool], grad: torch.Tensor) -> Sequence[torch.Tensor | None]:
    """The gradients in a graph. The norm is taken at what it saw in the forward, where that was kept. Of a residual
    only the type is known: what it has to do with the others' gradients, behind which the norm is, is refused."""
    w, norm, activation, before = ctx.of_again
    x, z = ctx.saved_tensors[0], ctx.saved_tensors[1] if ctx.classes is not None else None
    norm_weight, norm_bias = ctx.saved_tensors[3:5] if ctx.classes is not None else ctx.saved_tensors[2:4]
    bends = norm is not None or activation is not None
    if before and ctx.residual is not None and bends and (needs[5] or z is None):
        with torch.no_grad():
            found = _by_kernels(ctx, needs, grad)
        return refused(found, "ops.linear: no gradients of gradients with a residual before the norm that trains; "
                              "add it behind, or keep the layer in FP32")  # fmt: skip

    def layer(x: Any, master: Any, bias: Any, norm_weight: Any, norm_bias: Any) -> torch.Tensor:
        seen = product(x, w, master, bias)
        if z is not None:
            seen = with_value(seen, z)
        own = None if norm is None else replace(norm, weight=norm_weight, bias=norm_bias)
        return apply_epilogue(seen, None, own, activation)

    inputs = (x, *ctx.parameters, norm_weight, norm_bias)
    of_residual = grad.to(ctx.residual) if needs[5] else None
    return [*recorded_gradients(layer, inputs, needs[:5], grad), of_residual]


class _TracedLinear(torch.autograd.Function):
    """The same as nodes of a graph."""

    @staticmethod
    def forward(
        ctx: Any, x: Any, master: Any, bias: Any, norm_weight: Any, norm_bias: Any, residual: Any, w: PackedWeight,
        norm: Norm | None, activation: str | None, before: bool, out_dtype: Any, classes: tuple[str, str],
        backward_weight: PackedWeight,
    ) -> torch.Tensor:  # fmt: skip
        kind, _, _, eps, block = norm_arguments(norm)
        if w.numerics == "fp32":
            y, z = _fp32_forward(x, w, bias, norm, activation)
            z = y.new_empty(0) if z is None else z
        else:
            y, z = torch.ops.octavo.linear_recorded(
                x, w.codes, w.scale, w.numerics, w.kept, bias, kind, norm_weight, norm_bias, eps, block, activation,
                residual, before, out_dtype,
            )  # fmt: skip
        w = backward_weight
        ctx.save_for_backward(x, z, bias, norm_weight, norm_bias, residual, w.codes, w.scale)
        ctx.recipe = (w.numerics, w.kept, kind, eps, block, activation, before, classes)
        ctx.master = None if master is None else master.dtype
        return y  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        x, z, bias, norm_weight, norm_bias, residual, codes, scale = ctx.saved_tensors
        numerics, kept, kind, eps, block, activation, before, classes = ctx.recipe
        needs = list(ctx.needs_input_grad[:6])
        grads = torch.ops.octavo.linear_backward(
            x, codes, scale, numerics, kept, bias, kind, norm_weight, norm_bias, eps, block, activation, residual,
            before, z, grad, *classes, needs,
        )  # fmt: skip
        found = [g if need else None for g, need in zip(grads, needs, strict=True)]
        if found[1] is not None and ctx.master != torch.float32:
            found[1] = found[1].to(ctx.master)
        return (*found, *[None] * 7)


def weight_of(codes: torch.Tensor, scale: torch.Tensor | None, numerics: str, kept: bool) -> PackedWeight:
    """The weight of these codes; where they are ``kept`` the same object while they live: it holds an alias of them.

    A graph that packs its weights may write the next one's codes over the last one's, in the same tensor and unnoticed.
    """
    if not kept:
        return PackedWeight(codes, scale, numerics)
    w: PackedWeight | None = _weights.get(codes)
    if w is None or w.numerics != numerics or address("w.scale", w.scale) != address("scale", scale):
        w = _weights[codes] = PackedWeight(codes.detach(), scale, numerics)
    return w


def _linear(
    x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor | None, numerics: str, kept: bool,
    bias: torch.Tensor | None, norm: str | None, norm_weight: torch.Tensor | None, norm_bias: torch.Tensor | None,
    eps: float, block: int,
    activation: str | None, residual: torch.Tensor | None, residual_before_norm: bool, out_dtype: torch.dtype | None,
    residual_rows: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    w = weight_of(codes, scale, numerics, kept)
    normalise = None if norm is None else Norm(norm, norm_weight, norm_bias, eps, block)
    return run(
        x, w, bias, normalise, activation, residual, residual_before_norm, out_dtype, residual_rows=residual_rows
    )


def _fake_linear(
    x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor | None, numerics: str, kept: bool,
    bias: torch.Tensor | None, norm: str | None, norm_weight: torch.Tensor | None, norm_bias: torch.Tensor | None,
    eps: float, block: int,
    activation: str | None, residual: torch.Tensor | None, residual_before_norm: bool, out_dtype: torch.dtype | None,
    residual_rows: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    torch._check(x.shape[-1] == codes.shape[1], lambda: f"x: last dimension {x.shape[-1]}, weight {list(codes.shape)}")
    return x.new_empty((*x.shape[:-1], codes.shape[0]), dtype=out_dtype or x.dtype)


def _linear_recorded(
    x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor | None, numerics: str, kept: bool,
    bias: torch.Tensor | None, norm: str | None, norm_weight: torch.Tensor | None, norm_bias: torch.Tensor | None,
    eps: float, block: int,
    activation: str | None, residual: torch.Tensor | None, residual_before_norm: bool, out_dtype: torch.dtype | None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """y, and what the norm saw in y's type; empty where neither norm nor activation follows the product."""
    w = weight_of(codes, scale, numerics, kept)
    normalise = None if norm is None else Norm(norm, norm_weight, norm_bias, eps, block)
    y, z, _ = record(x, w, bias, normalise, activation, residual, residual_before_norm, out_dtype)
    return y, y.new_empty(0) if z is None else z


def _fake_linear_recorded(
    x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor | None, numerics: str, kept: bool,
    bias: torch.Tensor | None, norm: str | None, norm_weight: torch.Tensor | None, norm_bias: torch.Tensor | None,
    eps: float, block: int,
    activation: str | None, residual: torch.Tensor | None, residual_before_norm: bool, out_dtype: torch.dtype | None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    y = _fake_linear(
        x, codes, scale, numerics, kept, bias, norm, norm_weight, norm_bias, eps, block, activation, residual,
        residual_before_norm, out_dtype,
    )  # fmt: skip
    return y, y.new_empty(0) if norm is None and activation is None else torch.empty_like(y)


def _linear_backward(
    x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor | None, numerics: str, kept: bool,
    bias: torch.Tensor | None, norm: str | None, norm_weight: torch.Tensor | None, norm_bias: torch.Tensor | None,
    eps: float, block: int,
    activation: str | None, residual: torch.Tensor | None, before: bool, z: torch.Tensor | None, grad: torch.Tensor,
    grad_input: str, grad_weight: str, needs: Sequence[bool],
) -> list[torch.Tensor]:  # fmt: skip
    """Gradients of x, weight, bias, norm weight, norm bias, residual; an empty tensor where none is needed.

    By kernels, or on CUDA by torch in FP32 on the dequantized weight, the product computed again.
    """
    classes = grad_input, grad_weight
    if by_kernels(x.device, classes):
        w = weight_of(codes, scale, numerics, kept)
        normalise = None if norm is None else Norm(norm, norm_weight, norm_bias, eps, block)
        epilogue = epilogue_of(None, normalise, activation)
        found = gradients(
            grad, x, None if norm is None and activation is None else z, w, epilogue[0], classes,
            None if residual is None else residual.dtype, before, needs,
        )  # fmt: skip
        if found[5] is not None and found[5].data_ptr() == grad.data_ptr():  # an operator may not return what it got
            found[5] = found[5].clone(memory_format=torch.contiguous_format)
        return [x.new_empty(0) if g is None else g for g in found]
    weight = PackedWeight(codes, scale, numerics).dequantize()
    rows, upstream = x.detach().reshape(-1, x.shape[-1]).float(), grad.reshape(-1, codes.shape[0]).float()
    normalise = None if norm is None else Norm(norm, norm_weight, norm_bias, eps, block)
    early = residual.detach().reshape(upstream.shape).float() if residual is not None and before else None
    product = rows @ weight.T
    product = product if bias is None else product + bias
    product = product if early is None else product + early
    gz, g_norm_weight, g_norm_bias = epilogue_backward(upstream, product, normalise, activation)
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
    x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor | None, numerics: str, kept: bool,
    bias: torch.Tensor | None, norm: str | None, norm_weight: torch.Tensor | None, norm_bias: torch.Tensor | None,
    eps: float, block: int,
    activation: str | None, residual: torch.Tensor | None, before: bool, z: torch.Tensor | None, grad: torch.Tensor,
    grad_input: str, grad_weight: str, needs: Sequence[bool],
) -> list[torch.Tensor]:  # fmt: skip
    inputs = [x, codes.new_empty(codes.shape, dtype=torch.float32), bias, norm_weight, norm_bias, residual]
    return [
        torch.empty_like(t, memory_format=torch.contiguous_format) if need and t is not None else x.new_empty(0)
        for t, need in zip(inputs, needs, strict=True)
    ]


define(f"linear({ARGUMENTS}, ScalarType? out_dtype, Tensor? residual_rows=None) -> Tensor", _linear, _fake_linear)
define(
    f"linear_recorded({ARGUMENTS}, ScalarType? out_dtype) -> (Tensor, Tensor)", _linear_recorded, _fake_linear_recorded
)
define(
    f"linear_backward({ARGUMENTS}, Tensor? z, Tensor grad, str grad_input, str grad_weight, bool[] needs) -> Tensor[]",
    _linear_backward,
    _fake_linear_backward,
)
