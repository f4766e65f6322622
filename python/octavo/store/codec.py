"""How a record's embedding is kept: rows of bytes of one width."""

from __future__ import annotations

from typing import Protocol

import torch

from octavo import ops
from octavo.ops import QuantizedTensor


class Codec(Protocol):
    """Rows [n, D] float32 to bytes [n, width(D)] uint8 and back. ``name`` is what files call it."""

    name: str

    def width(self, dim: int) -> int:
        """Bytes of a row of ``dim`` numbers."""

    def encode(self, values: torch.Tensor) -> torch.Tensor:
        """[n, D] float32 -> [n, width(D)] uint8."""

    def decode(self, codes: torch.Tensor, dim: int) -> torch.Tensor:
        """[n, width(dim)] uint8 -> [n, dim] float32."""


def _own(codes: torch.Tensor) -> torch.Tensor:
    """In memory of their own: numbers of several bytes must lie at multiples of their size."""
    return codes.clone(memory_format=torch.contiguous_format)


class _Cast:
    """The numbers in a float type: FP32 is exact, BF16 rounds to 8 bits of mantissa."""

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        self.name, self._dtype = name, dtype

    def width(self, dim: int) -> int:
        return dim * self._dtype.itemsize

    def encode(self, values: torch.Tensor) -> torch.Tensor:
        return torch.empty(values.shape, dtype=self._dtype).copy_(values).view(torch.uint8)

    def decode(self, codes: torch.Tensor, dim: int) -> torch.Tensor:
        return _own(codes).view(self._dtype).float()


class _EightBits:
    """One byte a number and one FP32 scale a row (:func:`octavo.ops.quantize`, row scaling), the scale last."""

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        self.name, self._dtype = name, dtype

    def width(self, dim: int) -> int:
        return dim + 4

    def encode(self, values: torch.Tensor) -> torch.Tensor:
        q = ops.quantize(values.contiguous(), self.name, "row")
        return torch.cat([q.data.view(torch.uint8), q.scale.view(-1, 1).view(torch.uint8)], 1)

    def decode(self, codes: torch.Tensor, dim: int) -> torch.Tensor:
        data = _own(codes[:, :dim]).view(self._dtype)
        scale = _own(codes[:, dim:]).view(torch.float32).view(-1)
        return QuantizedTensor(data, scale, self.name, "row").dequantize()


_CODECS: dict[str, Codec] = {
    "fp32": _Cast("fp32", torch.float32),
    "bf16": _Cast("bf16", torch.bfloat16),
    "int8": _EightBits("int8", torch.int8),
    "e4m3": _EightBits("e4m3", torch.float8_e4m3fn),
}


def codec(name: str) -> Codec:
    """``fp32`` (exact), ``bf16``, ``int8`` or ``e4m3`` (a scale per row). Raises ValueError for another name."""
    if name not in _CODECS:
        raise ValueError(f"codec: found {name!r}; expected one of {', '.join(_CODECS)}")
    return _CODECS[name]
