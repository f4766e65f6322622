"""``octavo::linear_quantized``: a layer with eight-bit rows in or out, as torch sees it in a traced graph."""

from __future__ import annotations

import torch

from octavo.ops._library import define
from octavo.ops._types import FORMATS
from octavo.ops.epilogue import Norm
from octavo.ops.linear_call import run, scales_of
from octavo.ops.linear_operator import ARGUMENTS, norm_arguments, weight_of
from octavo.ops.packing import PackedWeight, activation_scaling
from octavo.ops.quantization import QuantizedTensor


def traced_quantized_linear(
    x: torch.Tensor | QuantizedTensor,
    w: PackedWeight,
    bias: torch.Tensor | None,
    norm: Norm | None,
    activation: str | None,
    residual: torch.Tensor | None,
    residual_before_norm: bool,
    out_dtype: torch.dtype | None,
    out_format: str | None,
) -> torch.Tensor | QuantizedTensor:
    """The layer as one node of a graph."""
    rows, x_scale = (x.data, scales_of(x)) if isinstance(x, QuantizedTensor) else (x, None)
    y, scale = torch.ops.octavo.linear_quantized(
        rows, w.codes, w.scale, w.numerics, w.kept, bias, *norm_arguments(norm), activation, residual,
        residual_before_norm, x_scale, out_dtype, out_format,
    )  # fmt: skip
    return y if out_format is None else QuantizedTensor(y, scale, out_format, "row")


def _linear_quantized(
    x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor | None, numerics: str, kept: bool,
    bias: torch.Tensor | None, norm: str | None, norm_weight: torch.Tensor | None, norm_bias: torch.Tensor | None,
    eps: float, block: int,
    activation: str | None, residual: torch.Tensor | None, residual_before_norm: bool, x_scale: torch.Tensor | None,
    out_dtype: torch.dtype | None, out_format: str | None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Numbers and an empty scale, or codes and a scale per row."""
    w = weight_of(codes, scale, numerics, kept)
    normalise = None if norm is None else Norm(norm, norm_weight, norm_bias, eps, block)
    format = "e4m3" if x.dtype == FORMATS["e4m3"] else "int8"
    rows = x if x_scale is None else QuantizedTensor(x, x_scale, format, activation_scaling(numerics))
    y = run(rows, w, bias, normalise, activation, residual, residual_before_norm, out_dtype, out_format=out_format)
    return (y.data, y.scale) if isinstance(y, QuantizedTensor) else (y, x.new_empty(0, dtype=torch.float32))


def _fake_linear_quantized(
    x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor | None, numerics: str, kept: bool,
    bias: torch.Tensor | None, norm: str | None, norm_weight: torch.Tensor | None, norm_bias: torch.Tensor | None,
    eps: float, block: int,
    activation: str | None, residual: torch.Tensor | None, residual_before_norm: bool, x_scale: torch.Tensor | None,
    out_dtype: torch.dtype | None, out_format: str | None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    torch._check(x.shape[-1] == codes.shape[1], lambda: f"x: last dimension {x.shape[-1]}, weight {list(codes.shape)}")
    floats = out_dtype or (x.dtype if x_scale is None else torch.float32)
    y = x.new_empty((*x.shape[:-1], codes.shape[0]), dtype=floats if out_format is None else FORMATS[out_format])
    return y, x.new_empty(0 if out_format is None else x.shape[:-1], dtype=torch.float32)


define(
    f"linear_quantized({ARGUMENTS}, Tensor? x_scale, ScalarType? out_dtype, str? out_format) -> (Tensor, Tensor)",
    _linear_quantized,
    _fake_linear_quantized,
)
