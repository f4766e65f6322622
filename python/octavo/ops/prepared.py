"""A layer prepared for a serving loop: everything but x resolved once, each call one C function."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import cast

import torch
from torch._subclasses import FakeTensor

from octavo import _core
from octavo.ops._types import expect_tensor
from octavo.ops.epilogue import Norm
from octavo.ops.linear_call import Layer, check
from octavo.ops.packing import PackedWeight

PreparedLinear = _core.PreparedLinear


def prepare_linear(
    w: PackedWeight,
    bias: torch.Tensor | None = None,
    norm: Norm | None = None,
    activation: str | None = None,
    residual_before_norm: bool = False,
    x_dtype: torch.dtype = torch.float32,
    out_dtype: torch.dtype | None = None,
    rows: Sequence[int] = (),
) -> PreparedLinear:
    """:func:`octavo.ops.linear` with everything but x resolved: ``prepared(x, out=None, residual=None) -> y``.

    For serving loops; a tiny call costs about a microsecond. Arguments are those of :func:`octavo.ops.linear`;
    ``x_dtype`` is what calls will bring, and ``rows`` the numbers of rows M they will have: for those (more exactly:
    their power-of-two buckets) kernels are chosen and weight layouts made now, for others in their first call.

    Calls take x [..., K] in ``x_dtype``, ``out`` [..., N] in ``out_dtype`` to write to and ``residual`` [..., N], and
    check them. Inference only: where gradients would be recorded they raise, and they cannot be traced (use
    :func:`octavo.ops.linear` in compiled code). Changes in place of the weight's codes, of bias and of the norm's
    vectors are seen; a tensor put in their place (``.data = ...``) is not: prepare again.

    Raises TypeError or ValueError that names the argument.
    """
    if not isinstance(w, PackedWeight):
        raise TypeError(f"w: expected a PackedWeight from octavo.ops.pack_weight, found {type(w).__name__}")
    if x_dtype not in (torch.float32, torch.bfloat16):
        raise TypeError(f"x_dtype: expected torch.float32 or torch.bfloat16, found {x_dtype}")
    if isinstance(rows, int):
        raise TypeError(f"rows: expected a sequence of numbers of rows, found {rows}; write ({rows},)")
    for m in rows:
        if not isinstance(m, Integral) or m < 0:
            raise ValueError(f"rows: expected whole numbers >= 0, found {m!r}")
    example = torch.empty((0, w.k), dtype=x_dtype, device=w.device)
    check(example, w, bias, norm, activation, None, out_dtype, None)
    layer = Layer(w, bias, norm, activation, residual_before_norm, x_dtype, out_dtype or x_dtype)
    if layer.has_copies:
        raise ValueError("bias, norm: vectors must be contiguous, so that changes in place are seen; use .contiguous()")
    given = (bias, None if norm is None else norm.weight, None if norm is None else norm.bias, w.master)
    trainable = tuple(v for v in given if v is not None)
    prepared = layer.prepare(trainable, _Slow(w, layer, trainable))
    for m in rows:
        with torch.no_grad():
            prepared(torch.zeros((m, w.k), dtype=x_dtype, device=w.device))
    return prepared


class _Slow:
    """What a prepared call does where a plain launch will not do: say what is wrong, choose a kernel, copy."""

    def __init__(self, w: PackedWeight, layer: Layer, trainable: tuple[torch.Tensor, ...]) -> None:
        self.w, self.layer, self.trainable = w, layer, trainable

    def __call__(
        self, prepared: PreparedLinear, x: torch.Tensor, out: torch.Tensor | None, residual: torch.Tensor | None
    ) -> torch.Tensor:
        layer = self.layer
        for name, tensor in (("x", x), ("residual", residual), ("out", out)):
            if isinstance(tensor, FakeTensor):
                raise TypeError(f"{name}: a prepared call cannot be traced; call octavo.ops.linear in compiled code")
        expect_tensor("x", x, (layer.x_dtype,))
        check(x, self.w, None, None, None, residual, layer.y_dtype, out)
        if torch.is_grad_enabled():
            named = [("x", x), ("residual", residual), *(("the layer", t) for t in self.trainable)]
            for name, tensor in named:
                if tensor is not None and tensor.requires_grad:
                    raise RuntimeError(
                        f"{name}: requires gradients, which prepared calls do not record; "
                        "call octavo.ops.linear, or use torch.no_grad()"
                    )
        return cast(torch.Tensor, layer.launch(self.w, prepared, x, out, residual))
