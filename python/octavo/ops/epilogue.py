"""What follows the product: y = act(norm(z + bias [+ residual when residual_before_norm])) [+ residual]."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from octavo.ops._types import ACTIVATIONS, NORMS, choice, expect_number, expect_tensor


@dataclass(frozen=True, eq=False)
class Norm:
    """A normalisation over the last dimension, N wide.

    ``kind``: ``layer`` (LayerNorm; ``weight`` and ``bias`` [N] FP32 or None), ``rms`` (RMSNorm; ``weight`` [N] or None)
    or ``block`` (LoKA's BlockNorm: RMS over contiguous blocks of ``block`` columns, no parameters; a last short block
    has its own mean) or ``swish_rms`` (Lattice's SwishRMSNorm: r * sigmoid(r), r = RMSNorm(z) with ``weight`` [N] or
    None; its own activation). ``eps`` is added to the variance or mean square.
    """

    kind: str
    weight: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    eps: float = 1e-5
    block: int = 256

    def __post_init__(self) -> None:
        choice("norm.kind", self.kind, NORMS)
        if self.kind == "block" and (self.weight is not None or self.bias is not None):
            raise ValueError("norm: block norm has no parameters; leave weight and bias out")
        if self.kind in ("rms", "swish_rms") and self.bias is not None:
            raise ValueError("norm.bias: RMS norm has no bias; leave it out")
        expect_number("norm.eps", self.eps, least=0.0)
        if not isinstance(self.block, int) or self.block <= 0:
            raise ValueError(f"norm.block: expected a positive whole number of columns, found {self.block!r}")
        for name, value in (("norm.weight", self.weight), ("norm.bias", self.bias)):
            if value is not None:
                expect_tensor(name, value, (torch.float32,), 1)

    def expect_activation(self, activation: str | None) -> None:
        """Raise ValueError for an activation that cannot follow this norm."""
        if self.kind == "swish_rms" and activation is not None:
            raise ValueError(f"activation: found {activation!r}; SwishRMSNorm is its own activation, pass None")


def describe(has_bias: bool, norm: str | None, activation: str | None, residual: str | None) -> str:
    """An epilogue in words: ``bias+layer+hardswish``. ``residual``: None, ``before`` or ``after``."""
    parts = [
        "bias" if has_bias else None,
        "residual" if residual == "before" else None,
        norm,
        activation,
        "residual" if residual == "after" else None,
    ]
    return "+".join(part for part in parts if part)


def apply_norm(z: torch.Tensor, norm: Norm) -> torch.Tensor:
    """``norm`` over the last dimension of z, in z's dtype."""
    n = z.shape[-1]
    weight = None if norm.weight is None else norm.weight.to(z.dtype)
    if norm.kind == "layer":
        bias = None if norm.bias is None else norm.bias.to(z.dtype)
        return functional.layer_norm(z, (n,), weight, bias, norm.eps)
    if norm.kind in ("rms", "swish_rms"):
        normal = functional.rms_norm(z, (n,), weight, norm.eps)
        return normal if norm.kind == "rms" else functional.silu(normal)
    blocks = [functional.rms_norm(part, (part.shape[-1],), None, norm.eps) for part in z.split(norm.block, -1)]
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, -1)


def apply_activation(z: torch.Tensor, activation: str | None) -> torch.Tensor:
    """One of ``relu | silu | gelu (exact) | hardswish | sigmoid``, or z itself for None."""
    if activation is None:
        return z
    choice("activation", activation, ACTIVATIONS)
    if activation == "sigmoid":
        return torch.sigmoid(z)
    function: torch.Tensor = getattr(functional, activation)(z)
    return function


def apply_epilogue(
    z: torch.Tensor,
    bias: torch.Tensor | None,
    norm: Norm | None,
    activation: str | None,
    residual: torch.Tensor | None = None,
    residual_before_norm: bool = False,
) -> torch.Tensor:
    """The epilogue in torch and in z's dtype: the definition that fused kernels follow, and FP32's own route."""
    if bias is not None:
        z = z + bias.to(z.dtype)
    if residual is not None and residual_before_norm:
        z = z + residual.to(z.dtype)
    if norm is not None and z.shape[-1] > 0:
        z = apply_norm(z, norm)
    z = apply_activation(z, activation)
    if residual is not None and not residual_before_norm:
        z = z + residual.to(z.dtype)
    return z
