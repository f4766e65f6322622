"""Five faults that kernels of low precision have had, each planted in an emulated kernel beside the right one.

All are of the activation's side and of the forward; weights are quantized by rows and right. Most show only where
inputs have structure that N(0, 1) has not: columns of different size, an offset.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from octavo import loka
from octavo.ops import quantize

BLOCK = 32  # columns that share a scale


@dataclass(frozen=True)
class Fault:
    """A kernel as it should be and as it is."""

    name: str
    right: loka.Candidate
    faulty: loka.Candidate

    @property
    def both(self) -> list[loka.Candidate]:
        return [self.right, self.faulty]


_Values = Callable[[torch.Tensor], torch.Tensor]  # x [M, K] -> what the kernel makes of it, dequantized


def _kernel(format: str, values: _Values) -> Callable[[loka.Operands], torch.Tensor]:
    def run(operands: loka.Operands) -> torch.Tensor:
        z = values(operands.x) @ quantize(operands.weight, format, "row").dequantize().T
        return z if operands.bias is None else z + operands.bias

    return run


def _fault(name: str, format: str, right: _Values, faulty: _Values) -> Fault:
    kernels = {"right": right, "faulty": faulty}
    pair = [loka.Candidate(f"{name}: {kind}", _kernel(format, values)) for kind, values in kernels.items()]
    return Fault(name, *pair)


def _blocks(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """E4M3 codes as FP32 [M, blocks, BLOCK] and their scales [M, blocks]."""
    padded = functional.pad(x, (0, -x.shape[1] % BLOCK))
    q = quantize(padded.reshape(-1, BLOCK).contiguous(), "e4m3", "row")
    blocks = padded.shape[1] // BLOCK
    return q.data.float().view(len(x), blocks, BLOCK), q.scale.view(len(x), blocks)


def _blockwise(place: Callable[[torch.Tensor], torch.Tensor]) -> _Values:
    def values(x: torch.Tensor) -> torch.Tensor:
        codes, scale = _blocks(x)
        return (codes * place(scale)[:, :, None]).flatten(1)[:, : x.shape[1]]

    return values


def _tail_dropped(x: torch.Tensor) -> torch.Tensor:
    """Of K, what fills no whole block is never read (where K is a multiple of it: nothing is lost)."""
    kept = x.shape[1] // BLOCK * BLOCK
    return functional.pad(_blockwise(lambda scale: scale)(x)[:, :kept], (0, x.shape[1] - kept))


def _affine(is_faulty: bool) -> _Values:
    """INT8 around the tensor's mean, its zero point; the fault forgets to add its share back."""

    def values(x: torch.Tensor) -> torch.Tensor:
        scale = ((x - x.mean()).abs().max() / 127).clamp_min(1e-30)
        zero = (x.mean() / scale).round()
        codes = ((x / scale).round() - zero).clamp(-127, 127)
        return (codes if is_faulty else codes + zero) * scale

    return values


def _full_range(is_faulty: bool) -> _Values:
    """INT8 with scales amax / 128 by row: a row's largest magnitude, where positive, is code 128, one beyond the
    format's end; it saturates to 127, or wraps around to -128."""

    def values(x: torch.Tensor) -> torch.Tensor:
        scale = (x.abs().amax(1, keepdim=True) / 128).clamp_min(1e-30)
        codes = (x / scale).round()
        codes = (codes + 128).remainder(256) - 128 if is_faulty else codes.clamp(-128, 127)
        return codes * scale

    return values


FAULTS = (
    _fault("transposed scale", "e4m3", _blockwise(lambda s: s), _blockwise(lambda s: s.T.reshape(s.shape))),
    _fault("previous block's scale", "e4m3", _blockwise(lambda s: s), _blockwise(lambda s: s.roll(1, 1))),
    _fault("dropped K tail", "e4m3", _blockwise(lambda s: s), _tail_dropped),
    _fault("missing zero point", "int8", _affine(False), _affine(True)),
    _fault("wrap instead of saturate", "int8", _full_range(False), _full_range(True)),
)
