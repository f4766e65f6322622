"""Row formats of embedding tables: what a row of FP32 becomes in FP16, BF16, E4M3, unsigned INT8 and INT4."""

from __future__ import annotations

from typing import NamedTuple

import torch

from octavo import _core
from octavo.ops.quantization import quantize


class Format(NamedTuple):
    """``element`` of the stored rows, ``scale`` shape of one row's scale (None: no scale), the kernels' name."""

    element: torch.dtype
    scale: tuple[int, ...] | None
    core: _core.DType


FORMATS = {
    "fp32": Format(torch.float32, None, _core.DType.f32),
    "fp16": Format(torch.float16, None, _core.DType.f16),
    "bf16": Format(torch.bfloat16, None, _core.DType.bf16),
    "e4m3": Format(torch.float8_e4m3fn, (), _core.DType.e4m3),
    "int8": Format(torch.uint8, (2,), _core.DType.u8),
    "int4": Format(torch.uint8, (2,), _core.DType.u4),
}
# Where a row's scale lies: an array of its own, or in the row behind its codes; or an array of E8M0 bytes, E4M3's
# scale rounded up to a power of two.
PLACES = ("separate", "in_row", "power_of_two")
POWER_OF_TWO = torch.float8_e8m0fnu
_LINE = 64
_REACH = 1.7e38  # twice that is finite in FP32, and left so by rounding


def stored_columns(dtype: str, dim: int) -> int:
    """Elements of a stored row: INT4 has two columns a byte."""
    return (dim + 1) // 2 if dtype == "int4" else dim


def best_place(dtype: str, dim: int) -> str:
    """``in_row`` where codes fill less than a cache line, else ``separate``: rows of whole lines stay so."""
    scale = FORMATS[dtype].scale
    return "in_row" if scale is not None and stored_columns(dtype, dim) < _LINE else "separate"


def encode_rows(rows: torch.Tensor, dtype: str, place: str = "separate") -> tuple[torch.Tensor, torch.Tensor | None]:
    """FP32 ``rows`` [R, D] in a table format: codes [R, D] and scale (None, [R] for e4m3, [R, 2] for int8 and int4).

    int8 and int4 are affine as FBGEMM has them: scale = (max - min) / n, bias = min, code = RNE((x - bias) * n /
    (max - min)), codes unsigned, n = 255 or 15. int4: [R, ceil(D / 2)] bytes, the even column in the low bits.
    ``place`` ``power_of_two`` (e4m3): scale float8_e8m0fnu. Infinities saturate and do not enter the scale; a row that
    holds NaN gets scale NaN. int8 and int4 rows that span more than 3.4e38 are clamped to +-1.7e38, so that the decoded
    values are finite.
    """
    if dtype == "e4m3":
        if place != "power_of_two":
            q = quantize(rows, "e4m3", "row")
            return q.data, q.scale
        q = quantize(rows, "e4m3", "row", pow2_scale=True)
        return q.data, q.scale.to(POWER_OF_TWO)
    if dtype == "int8":
        return _encode_affine(rows, 255)
    if dtype == "int4":
        codes, scale = _encode_affine(rows, 15)
        codes = torch.nn.functional.pad(codes, (0, codes.shape[1] % 2))
        return codes[:, ::2] | codes[:, 1::2] << 4, scale
    return rows.to(FORMATS[dtype].element), None


def decode_rows(
    codes: torch.Tensor, scale: torch.Tensor | None, int4_dim: int | None = None, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """The values of ``encode_rows``, computed in ``dtype``; ``int4_dim`` says that codes are INT4 of that many."""
    if int4_dim is not None:
        codes = torch.stack([codes & 15, codes >> 4], dim=2).flatten(1)[:, :int4_dim]
    values = codes.to(dtype)
    if scale is None:
        return values
    scale = scale.float().to(dtype)
    return values * scale[:, None] if scale.dim() == 1 else values * scale[:, :1] + scale[:, 1:]


def rows_in(buffer: torch.Tensor, dtype: str, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scale as views of ``buffer`` [R, :func:`row_bytes`] uint8 whose rows hold codes, then scale."""
    element, scale, _ = FORMATS[dtype]
    assert scale is not None
    columns = stored_columns(dtype, dim)
    at = (columns + 3) // 4
    scales = buffer.view(torch.float32)
    return buffer[:, :columns].view(element), scales[:, at] if scale == () else scales[:, at : at + 2]


def row_bytes(dtype: str, dim: int) -> int:
    """Bytes of a row whose FP32 scale, 4-byte aligned, follows its codes."""
    scale = FORMATS[dtype].scale
    return (stored_columns(dtype, dim) + 3) // 4 * 4 + (0 if scale is None else 8 if scale else 4)


def _encode_affine(rows: torch.Tensor, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    finite = torch.isfinite(rows)
    low = torch.where(finite, rows, torch.inf).amin(1, keepdim=True)
    high = torch.where(finite, rows, -torch.inf).amax(1, keepdim=True)
    none = low > high  # no finite element
    low, high = low.masked_fill(none, 0.0), high.masked_fill(none, 0.0)
    wide = high / 2 - low / 2 > _REACH
    low, high = torch.where(wide, low.clamp_min(-_REACH), low), torch.where(wide, high.clamp_max(_REACH), high)
    span = high / steps - low / steps
    inverse = torch.where(span > 0, 1 / span.clamp_min(torch.finfo(torch.float32).tiny), 0.0)
    scaled = (rows.clamp(low, high) - low) * inverse
    codes = scaled.nan_to_num(0.0).round_().clamp_(0, steps).to(torch.uint8)
    poisoned = torch.isnan(rows).any(1, keepdim=True)
    return codes, torch.cat([span.masked_fill(poisoned, torch.nan), low], dim=1)
