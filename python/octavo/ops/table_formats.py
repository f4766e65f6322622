"""Row formats of embedding tables: what a row of FP32 becomes in BF16, E4M3 and unsigned INT8."""

from __future__ import annotations

import torch

from octavo.ops.quantization import quantize

# name -> element type, shape of one row's scale (None: no scale)
DTYPES: dict[str, tuple[torch.dtype, tuple[int, ...] | None]] = {
    "fp32": (torch.float32, None),
    "bf16": (torch.bfloat16, None),
    "e4m3": (torch.float8_e4m3fn, ()),
    "int8": (torch.uint8, (2,)),
}


def encode_rows(rows: torch.Tensor, dtype: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    """FP32 ``rows`` [R, D] in a table format: codes [R, D] and scale (None, [R] for e4m3, [R, 2] for int8).

    int8 is affine as FBGEMM has it: scale = (max - min) / 255, bias = min, code = RNE((x - bias) * 255 / (max - min)),
    codes unsigned. Infinities saturate and do not enter the scale; a row that holds NaN gets scale NaN.
    """
    if dtype == "e4m3":
        q = quantize(rows, "e4m3", "row")
        return q.data, q.scale
    if dtype == "int8":
        return _encode_affine(rows)
    return rows.to(DTYPES[dtype][0]), None


def decode_rows(codes: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    """The FP32 values of ``encode_rows``."""
    values = codes.float()
    if scale is None:
        return values
    return values * scale[:, None] if scale.dim() == 1 else values * scale[:, :1] + scale[:, 1:]


def _encode_affine(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    finite = torch.isfinite(rows)
    low = torch.where(finite, rows, torch.inf).amin(1, keepdim=True)
    high = torch.where(finite, rows, -torch.inf).amax(1, keepdim=True)
    none = low > high  # no finite element
    low, high = low.masked_fill(none, 0.0), high.masked_fill(none, 0.0)
    span = high / 255 - low / 255  # high - low may overflow
    inverse = torch.where(span > 0, 1 / span.clamp_min(torch.finfo(torch.float32).tiny), 0.0)
    scaled = (rows.clamp(low, high) - low) * inverse
    codes = scaled.nan_to_num(0.0).round_().clamp_(0, 255).to(torch.uint8)
    poisoned = torch.isnan(rows).any(1, keepdim=True)
    return codes, torch.cat([span.masked_fill(poisoned, torch.nan), low], dim=1)
