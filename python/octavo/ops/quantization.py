"""Eight-bit codes with scales: ``quantize`` and ``dequantize`` (layouts: cpp/include/octavo/quantize.hpp)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from octavo import _core
from octavo.ops import kernels
from octavo.ops._library import define
from octavo.ops._types import DTYPES, FORMATS, choice, expect_no_tangents, expect_tensor

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
CODES = {"e4m3": _core.DType.e4m3, "e5m2": _core.DType.e5m2, "int8": _core.DType.i8}
SCALINGS = tuple(_core.Scaling.__members__)
SCALE_BLOCK, MX_BLOCK = 128, 32


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """Codes and scales; value = code * scale.

    ``data``: codes of the original shape [..., K] (float8_e4m3fn, float8_e5m2 or int8). ``scale``, by scaling:

    * ``row``: FP32 [...], one per row of K; ``tensor``: FP32 [1]
    * ``block_1x128``: FP32 [..., ceil(K / 128)], one per 128 elements of a row
    * ``block_128x128``: FP32 [ceil(M / 128), ceil(K / 128)] of a matrix [M, K], one per tile
    * ``mx``: float8_e8m0fnu [..., ceil(K / 32)], one power of two per 32 elements of a row
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


def quantize(
    x: torch.Tensor,
    format: str = "e4m3",
    scaling: str = "row",
    pow2_scale: bool = False,
    out: QuantizedTensor | None = None,
) -> QuantizedTensor:
    """Round ``x`` [..., K] (float32, bfloat16, float16; cpu or cuda) to eight bits, nearest even, saturating.

    ``format``: ``e4m3 | e5m2 | int8``; ``scaling``: one scale per ``row`` (last dimension), per ``tensor``, per
    ``block_1x128`` or ``block_128x128`` tile, or per ``mx`` block of 32 (:class:`QuantizedTensor` says where scales
    lie; last blocks may be short). The scale is amax / largest code (448, 57344, 127), rounded up to a power of two
    with ``pow2_scale``; all zeros get 1. ``mx`` follows the OCP Microscaling rule instead, e4m3 and e5m2 only: amax's
    power of two over the format's largest one (2^8, 2^15), at least 2^-127, so that values beyond 448 or 57344 scales
    saturate. Infinities saturate and do not enter the scale. NaN stays NaN; in int8, which has none, its scale becomes
    NaN. ``out``, the result of an earlier call of the same shape and recipe, is overwritten and returned: large arrays
    save the system's clearing of fresh pages. Raises TypeError or ValueError naming the argument, and RuntimeError
    where no kernel of this machine serves x. Gradients do not flow through rounding.
    """
    expect_tensor("x", x, _FLOATS)
    expect_no_tangents(("x", x))
    choice("format", format, tuple(CODES))
    choice("scaling", scaling, SCALINGS)
    if x.dim() == 0:
        raise ValueError("x: expected at least one dimension, found a scalar; use x.reshape(1)")
    if scaling == "block_128x128" and x.dim() != 2:
        raise ValueError(f"x: block_128x128 scaling takes a matrix, found shape {list(x.shape)}; reshape it")
    if scaling == "mx" and format == "int8":
        raise ValueError("format: mx scaling has e4m3 and e5m2 elements, found 'int8'; use block_1x128 for int8")
    if scaling == "mx" and pow2_scale:
        raise ValueError("pow2_scale: mx scales are powers of two already, by a rule of their own; leave it False")
    if out is not None:
        _expect_room(out, x, format, scaling)
        _launch(x, format, scaling, pow2_scale, out.data, out.scale)
        return out
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
    _expect_codes(q)
    if torch.compiler.is_compiling():
        out: torch.Tensor = torch.ops.octavo.dequantize(q.data, q.scale, q.scaling, dtype)
        return out
    return _dequantize(q.data, q.scale, q.scaling, dtype)


def scale_shape(shape: torch.Size, scaling: str) -> tuple[int, ...]:
    """The shape of the scales of x of this shape."""
    if scaling == "tensor":
        return (1,)
    if scaling == "row":
        return tuple(shape[:-1])
    if scaling == "block_128x128":
        return tuple(-(-size // SCALE_BLOCK) for size in shape)
    block = MX_BLOCK if scaling == "mx" else SCALE_BLOCK
    return (*shape[:-1], -(-shape[-1] // block))


def scale_dtype(scaling: str) -> torch.dtype:
    """E8M0 for mx, FP32 for the others."""
    return torch.float8_e8m0fnu if scaling == "mx" else torch.float32


def spread(scale: torch.Tensor, shape: torch.Size, scaling: str) -> torch.Tensor:
    """FP32 scales that broadcast against codes [..., K] of this shape."""
    scale = scale.float()
    if scaling == "tensor":
        return scale
    if scaling == "row":
        return scale.unsqueeze(-1)
    block = MX_BLOCK if scaling == "mx" else SCALE_BLOCK
    columns = scale.repeat_interleave(block, -1)[..., : shape[-1]]
    return columns.repeat_interleave(block, 0)[: shape[0]] if scaling == "block_128x128" else columns


def as_rows(x: torch.Tensor) -> torch.Tensor:
    """``x`` [..., K] as a matrix [M, K] whose rows are contiguous; no copy where strides allow."""
    x = x.resolve_neg()
    rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1]) if x.shape[-1] else x.reshape(x.shape[:-1].numel(), 0)
    return rows if rows.stride(1) == 1 or rows.shape[1] <= 1 else rows.contiguous()


def _expect_codes(q: QuantizedTensor) -> None:
    """Raise ValueError unless ``q``'s codes and scales are of its format and scaling: kernels read what that says."""
    choice("q.format", q.format, tuple(CODES))
    choice("q.scaling", q.scaling, SCALINGS)
    for name, tensor, shape, dtype in (
        ("data", q.data, tuple(q.data.shape), FORMATS[q.format]),
        ("scale", q.scale, scale_shape(q.data.shape, q.scaling), scale_dtype(q.scaling)),
    ):
        if (tuple(tensor.shape), tensor.dtype, tensor.device) != (shape, dtype, q.data.device):
            raise ValueError(
                f"q.{name}: is {tensor.dtype} {list(tensor.shape)} on {tensor.device}; for {q.format} with {q.scaling} "
                f"scaling expected {dtype} {list(shape)} on {q.data.device}"
            )


def _expect_room(out: object, x: torch.Tensor, format: str, scaling: str) -> None:
    """Raise unless ``out`` can hold x quantized by this recipe."""
    if not isinstance(out, QuantizedTensor):
        raise TypeError(f"out: expected a QuantizedTensor from octavo.ops.quantize, found {type(out).__name__}")
    if (out.format, out.scaling) != (format, scaling):
        raise ValueError(f"out: is {out.format}, {out.scaling}; expected {format}, {scaling}")
    for name, tensor, shape, dtype in (
        ("data", out.data, x.shape, FORMATS[format]),
        ("scale", out.scale, scale_shape(x.shape, scaling), scale_dtype(scaling)),
    ):
        found = (tuple(tensor.shape), tensor.dtype, tensor.device)
        if found != (tuple(shape), dtype, x.device) or not tensor.is_contiguous():
            kind = "contiguous" if tensor.is_contiguous() else "strided"
            raise ValueError(
                f"out.{name}: is {kind} {tensor.dtype} {list(tensor.shape)} on {tensor.device}; "
                f"expected contiguous {dtype} {list(shape)} on {x.device}"
            )


def _quantize(x: torch.Tensor, format: str, scaling: str, pow2_scale: bool) -> tuple[torch.Tensor, torch.Tensor]:
    data = torch.empty(x.shape, dtype=FORMATS[format], device=x.device)
    scale = torch.empty(scale_shape(x.shape, scaling), dtype=scale_dtype(scaling), device=x.device)
    _launch(x, format, scaling, pow2_scale, data, scale)
    return data, scale


def _launch(
    x: torch.Tensor, format: str, scaling: str, pow2_scale: bool, data: torch.Tensor, scale: torch.Tensor
) -> None:
    kernel = kernels.serving(_core.Op.quantize, (x.device.type, _name(x.dtype), format, scaling))
    kernels.run_quantize(kernel, as_rows(x), CODES[format], _core.Scaling[scaling], pow2_scale, data, scale)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dequantize(data: torch.Tensor, scale: torch.Tensor, scaling: str, dtype: torch.dtype) -> torch.Tensor:
    if data.is_cuda:
        return (data.float() * spread(scale, data.shape, scaling)).to(dtype)
    data, scale = data.contiguous(), scale.contiguous()
    out = torch.empty(data.shape, dtype=dtype)
    rows = as_rows(out)
    m, k = rows.shape
    _core.dequantize(
        data.data_ptr(), DTYPES[data.dtype], _core.Scaling[scaling], scale.data_ptr(), rows.data_ptr(), m, k, k,
        DTYPES[dtype],
    )  # fmt: skip
    return out


def _fake_quantize(x: torch.Tensor, format: str, scaling: str, pow2_scale: bool) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(x, dtype=FORMATS[format], memory_format=torch.contiguous_format), x.new_empty(
        scale_shape(x.shape, scaling), dtype=scale_dtype(scaling)
    )


def _fake_dequantize(data: torch.Tensor, scale: torch.Tensor, scaling: str, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty_like(data, dtype=dtype, memory_format=torch.contiguous_format)


define("quantize(Tensor x, str format, str scaling, bool pow2_scale) -> (Tensor, Tensor)", _quantize, _fake_quantize)
define("dequantize(Tensor data, Tensor scale, str scaling, ScalarType dtype) -> Tensor", _dequantize, _fake_dequantize)
