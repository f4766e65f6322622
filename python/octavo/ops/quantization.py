"""Eight-bit codes with scales: ``quantize`` and ``dequantize`` (architecture: scales; kernels: ``*.quantize``)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from octavo import _core
from octavo.ops import kernels
from octavo.ops._library import define
from octavo.ops._types import DTYPES, FORMATS, choice, expect_tensor

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
CODES = {"e4m3": _core.DType.e4m3, "e5m2": _core.DType.e5m2, "int8": _core.DType.i8}


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """Codes and scales; value = code * scale.

    ``data``: codes of the original shape [..., K] (float8_e4m3fn, float8_e5m2 or int8). ``scale``: FP32, [...] for row
    scaling (one per row of K) or [1] for tensor scaling.
    """

    data: torch.Tensor
    scale: torch.Tensor
    format: str
    scaling: str

    @property
    def shape(self) -> torch.Size:
        return self.data.shape

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The values, as :func:`dequantize`."""
        return dequantize(self, dtype)


def quantize(x: torch.Tensor, format: str = "e4m3", scaling: str = "row", pow2_scale: bool = False) -> QuantizedTensor:
    """Round ``x`` [..., K] (float32, bfloat16, float16; cpu or cuda) to eight bits, nearest even, saturating.

    ``format``: ``e4m3 | e5m2 | int8``; ``scaling``: one scale per ``row`` (last dimension) or per ``tensor``. The scale
    is amax / largest code (448, 57344, 127), rounded up to a power of two with ``pow2_scale``; all-zero rows get 1.
    Infinities saturate and do not enter the scale. NaN stays NaN; in int8, which has none, the row's scale becomes NaN.
    Raises TypeError or ValueError naming the argument, and RuntimeError where no kernel serves the combination (on CUDA
    only E4M3 rows of float32 and bfloat16 have one so far). Gradients do not flow through rounding.
    """
    expect_tensor("x", x, _FLOATS)
    choice("format", format, tuple(CODES))
    choice("scaling", scaling, ("row", "tensor"))
    if x.dim() == 0:
        raise ValueError("x: expected at least one dimension, found a scalar; use x.reshape(1)")
    if torch.compiler.is_compiling():
        data, scale = torch.ops.octavo.quantize(x, format, scaling, pow2_scale)
    else:
        data, scale = _quantize(x, format, scaling, pow2_scale)
    return QuantizedTensor(data, scale, format, scaling)


def dequantize(q: QuantizedTensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The values of ``q`` in ``dtype`` (float32 or bfloat16), of q's shape."""
    if not isinstance(q, QuantizedTensor):
        raise TypeError(f"q: expected a QuantizedTensor from octavo.ops.quantize, found {type(q).__name__}")
    if dtype not in (torch.float32, torch.bfloat16):
        raise TypeError(f"dtype: expected torch.float32 or torch.bfloat16, found {dtype}")
    if torch.compiler.is_compiling():
        out: torch.Tensor = torch.ops.octavo.dequantize(q.data, q.scale, dtype)
        return out
    return _dequantize(q.data, q.scale, dtype)


def as_rows(x: torch.Tensor) -> torch.Tensor:
    """``x`` [..., K] as a matrix [M, K] whose rows are contiguous; no copy where strides allow."""
    rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1]) if x.shape[-1] else x.reshape(x.shape[:-1].numel(), 0)
    return rows if rows.stride(1) == 1 or rows.shape[1] <= 1 else rows.contiguous()


def _quantize(x: torch.Tensor, format: str, scaling: str, pow2_scale: bool) -> tuple[torch.Tensor, torch.Tensor]:
    rows = as_rows(x.detach())
    data = torch.empty(x.shape, dtype=FORMATS[format], device=x.device)
    scale = torch.empty(x.shape[:-1] if scaling == "row" else (1,), dtype=torch.float32, device=x.device)
    kernel = kernels.serving(_core.Op.quantize, (x.device.type, _name(x.dtype), format, scaling))
    kernels.run_quantize(kernel, rows, CODES[format], scaling == "row", pow2_scale, data, scale)
    return data, scale


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dequantize(data: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if data.is_cuda:
        return (data.float() * scale.reshape(*scale.shape, *[1] * (data.dim() - scale.dim()))).to(dtype)
    data, scale = data.contiguous(), scale.contiguous()
    out = torch.empty(data.shape, dtype=dtype)
    rows = as_rows(out)
    m, k = rows.shape
    per_row = scale.dim() == data.dim() - 1 and scale.numel() == m
    _core.dequantize(
        data.data_ptr(), DTYPES[data.dtype], per_row, scale.data_ptr(), rows.data_ptr(), m, k, k, DTYPES[dtype]
    )
    return out


def _fake_quantize(x: torch.Tensor, format: str, scaling: str, pow2_scale: bool) -> tuple[torch.Tensor, torch.Tensor]:
    shape = x.shape[:-1] if scaling == "row" else (1,)
    return torch.empty_like(x, dtype=FORMATS[format], memory_format=torch.contiguous_format), x.new_empty(
        shape, dtype=torch.float32
    )


def _fake_dequantize(data: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty_like(data, dtype=dtype, memory_format=torch.contiguous_format)


define("quantize(Tensor x, str format, str scaling, bool pow2_scale) -> (Tensor, Tensor)", _quantize, _fake_quantize)
define("dequantize(Tensor data, Tensor scale, ScalarType dtype) -> Tensor", _dequantize, _fake_dequantize)
