"""The scaling recipes and the class semantics in plain torch, FP64 where it sums: what kernels are checked against.

One definition for qualification and the tests; slow, and never run in a forward pass.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

from octavo.ops._types import FORMATS
from octavo.ops.epilogue import Norm, apply_epilogue
from octavo.ops.quantization import MX_BLOCK, SCALE_BLOCK, scale_shape, spread

LARGEST = {"e4m3": 448.0, "e5m2": 57344.0, "int8": 127.0}
_TINY = 2.0**-126


def quantize_reference(
    x: torch.Tensor, format: str, scaling: str = "row", pow2_scale: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scales of ``x`` [M, K] by the rules of ``octavo.ops.quantize``: (codes [M, K], scales as
    ``QuantizedTensor`` lays them out)."""
    x = x.float()
    tiles, inverse = _tiles(x, scaling)
    amax = (
        torch.where(torch.isfinite(tiles), tiles.abs(), 0.0).amax(1) if tiles.shape[1] else tiles.new_zeros(len(tiles))
    )
    if scaling == "mx":
        scale, multiplier = _mx_scale(amax, format)
    else:
        scale, multiplier = _scale(amax, LARGEST[format], pow2_scale)
    scaled = tiles * multiplier[:, None]
    if format == "int8":
        codes = scaled.clamp(-127, 127).nan_to_num(0.0).round().to(torch.int8)
        scale = torch.where(torch.isnan(tiles).any(1), torch.nan, scale)
    else:
        limit = LARGEST[format]
        codes = scaled.clamp(-limit, limit).to(FORMATS[format])
    scale = scale.reshape(scale_shape(x.shape, scaling))
    return inverse(codes), scale.to(torch.float8_e8m0fnu) if scaling == "mx" else scale


def _tiles(x: torch.Tensor, scaling: str) -> tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]:
    """What shares a scale as rows [number of scales, elements], padded with zeros, and the way back."""
    m, k = x.shape
    height = {"tensor": max(m, 1), "block_128x128": min(max(m, 1), SCALE_BLOCK)}.get(scaling, 1)
    width = {"block_1x128": SCALE_BLOCK, "block_128x128": SCALE_BLOCK, "mx": MX_BLOCK}.get(scaling, max(k, 1))
    down, across = (1, 1) if scaling == "tensor" else (-(-m // height), 1 if scaling == "row" else -(-k // width))
    padded = functional.pad(x, (0, across * width - k, 0, down * height - m))
    tiles = padded.reshape(down, height, across, width).transpose(1, 2).reshape(down * across, height * width)

    def inverse(codes: torch.Tensor) -> torch.Tensor:
        whole = codes.reshape(down, across, height, width).transpose(1, 2).reshape(down * height, across * width)
        return whole[:m, :k]

    return tiles, inverse


def _scale(amax: torch.Tensor, largest: float, pow2_scale: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """FP32 scales and multipliers."""
    top = torch.tensor(largest)
    scale = (amax / top).clamp_min(_TINY)
    multiplier = torch.where(amax / top < _TINY, torch.tensor(1.0 / _TINY), top / amax)
    if pow2_scale:
        mantissa, exponent = torch.frexp(scale)
        scale = torch.ldexp(torch.ones_like(scale), exponent - (mantissa == 0.5).int())
        multiplier = torch.ones(()) / scale
    return torch.where(amax == 0, 1.0, scale), torch.where(amax == 0, 1.0, multiplier)


def _mx_scale(amax: torch.Tensor, format: str) -> tuple[torch.Tensor, torch.Tensor]:
    """OCP MX v1.0: the power of two below amax over the format's largest power of two, E8M0's smallest at least."""
    _, exponent = torch.frexp(amax.double())  # amax = mantissa * 2^exponent, mantissa in [0.5, 1)
    shared = (exponent - 1 - (8 if format == "e4m3" else 15)).clamp_min(-127)
    shared = torch.where(amax == 0, 0, shared)
    one = torch.ones_like(amax, dtype=torch.float64)
    return torch.ldexp(one, shared).float(), torch.ldexp(one, -shared).float()


def dequantize_reference(codes: torch.Tensor, scale: torch.Tensor, scaling: str = "row") -> torch.Tensor:
    """FP64 values of codes [M, K] with their scales."""
    return codes.double() * spread(scale, codes.shape, scaling).double()


def operands_reference(x: torch.Tensor, numerics: str) -> torch.Tensor:
    """The activations [M, K] as a class sees them, in FP64."""
    if numerics == "fp32":
        return x.double()
    if numerics in ("e4m3_row", "e4m3_row_fast"):
        return dequantize_reference(*quantize_reference(x, "e4m3"))
    if numerics == "e4m3_block":
        return dequantize_reference(*quantize_reference(x, "e4m3", "block_1x128"), "block_1x128")
    if numerics == "int8_dynamic":
        return dequantize_reference(*quantize_reference(x, "int8"))
    return x.to(torch.bfloat16).double()


def linear_reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    numerics: str,
    bias: torch.Tensor | None = None,
    norm: Norm | None = None,
    activation: str | None = None,
    residual: torch.Tensor | None = None,
    residual_before_norm: bool = False,
) -> torch.Tensor:
    """The layer in FP64 on dequantized operands. ``weight`` [N, K] FP64, dequantized already. Returns [M, N] FP64."""
    z = operands_reference(x, numerics) @ weight.T
    return apply_epilogue(z, bias, norm, activation, residual, residual_before_norm)


def coefficients(
    pooling: str, table: int, batch: int, offsets: torch.Tensor, weights: torch.Tensor | None
) -> tuple[slice, torch.Tensor, torch.Tensor]:
    """Table ``table``'s span of values, and for each of them its bag and its weight in that bag (FP64)."""
    own = offsets[table * batch : (table + 1) * batch + 1]
    span, lengths = slice(int(own[0]), int(own[-1])), own.diff()
    bag = torch.repeat_interleave(torch.arange(batch), lengths)
    factor = torch.ones(len(bag), dtype=torch.float64) if weights is None else weights[span].double()
    return span, bag, factor / lengths[bag] if pooling == "mean" else factor


def pooled_reference(
    rows: list[torch.Tensor],
    pooling: list[str],
    values: torch.Tensor,
    offsets: torch.Tensor,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Bags of ``rows`` (one [R, D] per table, decoded) in FP64: [B, sum of dims]."""
    batch = (len(offsets) - 1) // len(rows)
    parts = []
    for t, table in enumerate(rows):
        span, bag, factor = coefficients(pooling[t], t, batch, offsets, weights)
        out = torch.zeros(batch, table.shape[1], dtype=torch.float64)
        parts.append(out.index_add_(0, bag, table.double()[values[span]] * factor[:, None]))
    return torch.cat(parts, 1)


def pairwise_reference(x: torch.Tensor, y: torch.Tensor, x_pairs: str, pairs: str, numerics: str) -> torch.Tensor:
    """``octavo.ops.pairwise.run`` in FP64 on the operands as the class sees them."""

    def places(kind: str, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        i, j = torch.tril_indices(n, n, -1) if kind == "lower" else torch.triu_indices(n, n, 1)
        return i, j

    a, b = operands_reference(x, numerics), operands_reference(y, numerics)
    if x_pairs != "all":
        n = y.shape[2]
        i, j = places(x_pairs, n)
        full = torch.zeros(x.shape[0], n, n, dtype=torch.float64)
        full[:, i, j] = full[:, j, i] = a
        a = full
    products = a @ b.mT
    if pairs == "all":
        return products
    i, j = places(pairs, products.shape[1])
    return products[:, i, j]
