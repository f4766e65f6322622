"""How far a low-precision output is from its reference: the frozen definitions (docs/definitions.md).

Every function takes ``y`` and ``ref`` of one shape [B, N] (any shape where no batch is named) and returns a float.
"""

from __future__ import annotations

import math

import torch

from octavo.ops.epilogue import Norm, apply_norm

MERE_FLOOR = 1e-2


def _pair(y: torch.Tensor, ref: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if y.shape != ref.shape:
        raise ValueError(f"y: shape {list(y.shape)} differs from ref's {list(ref.shape)}; they must be equal")
    if y.numel() == 0:
        raise ValueError("y: is empty; an error needs at least one element")
    return y.detach().double(), ref.detach().double()


def _ratio(error: torch.Tensor, signal: torch.Tensor) -> float:
    e, s = float(error), float(signal)
    if s == 0:
        return 0.0 if e == 0 else math.inf
    return e / s


def relative_l1(y: torch.Tensor, ref: torch.Tensor) -> float:
    """sum |y - ref| / sum |ref|."""
    y, ref = _pair(y, ref)
    return _ratio((y - ref).abs().sum(), ref.abs().sum())


def sqnr_db(y: torch.Tensor, ref: torch.Tensor) -> float:
    """Signal to quantization noise: 10 log10(sum ref^2 / sum (y - ref)^2) in dB; inf when equal."""
    y, ref = _pair(y, ref)
    ratio = _ratio((y - ref).square().sum(), ref.square().sum())
    return math.inf if ratio == 0 else -math.inf if ratio == math.inf else -10 * math.log10(ratio)


def signal_relative(y: torch.Tensor, ref: torch.Tensor) -> float:
    """||y - ref||_F / ||ref - mean over the batch of ref||_F: what is left after a common offset cancels."""
    y, ref = _pair(y, ref)
    return _ratio((y - ref).norm(), (ref - ref.mean(0)).norm())


def mere(y: torch.Tensor, ref: torch.Tensor, floor: float = MERE_FLOOR) -> float:
    """Mean element-wise relative error: mean |y - ref| / max(|ref|, floor * rms(ref)) (LoKA, with a floor)."""
    y, ref = _pair(y, ref)
    bottom = ref.abs().clamp_min(floor * float(ref.square().mean().sqrt()))
    error = (y - ref).abs()
    return float(torch.where(error == 0, 0.0, error / bottom).mean())


def post_norm_error(y: torch.Tensor, ref: torch.Tensor, norm: Norm | None = None) -> float:
    """Relative L1 after the next norm (default: LayerNorm without parameters), which is what the next layer sees."""
    y, ref = _pair(y, ref)
    norm = norm or Norm("layer")
    return relative_l1(apply_norm(y, norm), apply_norm(ref, norm))


def next_layer_error(y: torch.Tensor, ref: torch.Tensor, norm: Norm | None) -> float:
    """What plans and reports hold as ``post_norm`` of a layer [B, N] that has ``norm``.

    :func:`post_norm_error`; of a head relative L1: of one or two outputs without a norm the default norm would leave
    nothing but signs.
    """
    is_head = norm is None and ref.shape[-1] <= 2
    return relative_l1(y, ref) if is_head else post_norm_error(y, ref, norm)
