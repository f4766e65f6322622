"""Gradients of the epilogue, in FP32, written out: inside an operator there is no tape."""

from __future__ import annotations

from dataclasses import replace

import torch

from octavo.ops.epilogue import Norm, apply_norm

_aten = torch.ops.aten


def epilogue_backward(
    grad: torch.Tensor, z: torch.Tensor, norm: Norm | None, activation: str | None
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Gradients of act(norm(z)) for ``grad`` [M, N]: of z [M, N], of the norm's weight [N] and bias [N] (or None)."""
    if norm is not None and norm.kind == "swish_rms":
        norm, activation = replace(norm, kind="rms"), "silu"
    normal = z if norm is None or z.shape[-1] == 0 else apply_norm(z, norm)
    grad = _activation_backward(grad, normal, activation)
    if norm is None or z.shape[-1] == 0:
        return grad, None, None
    if norm.kind == "layer":
        return _layer_backward(grad, z, norm)
    block = norm.block if norm.kind == "block" else z.shape[-1]
    weighted = grad if norm.weight is None else grad * norm.weight
    parts = [_rms_backward(g, p, norm.eps) for g, p in zip(weighted.split(block, 1), z.split(block, 1), strict=True)]
    of_z = torch.cat([part[0] for part in parts], 1)
    of_weight = None if norm.weight is None else (grad * parts[0][1]).sum(0)
    return of_z, of_weight, None


def _activation_backward(grad: torch.Tensor, z: torch.Tensor, activation: str | None) -> torch.Tensor:
    if activation is None:
        return grad
    if activation == "relu":
        return _aten.threshold_backward(grad, z, 0)
    if activation == "sigmoid":
        return _aten.sigmoid_backward(grad, torch.sigmoid(z))
    if activation == "silu":  # whose aten operator has no gradient itself
        s = torch.sigmoid(z)
        return grad * (s * (1 + z * (1 - s)))
    backward: torch.Tensor = getattr(_aten, f"{activation}_backward")(grad, z)
    return backward


def _layer_backward(
    grad: torch.Tensor, z: torch.Tensor, norm: Norm
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    n = [z.shape[-1]]
    _, mean, inverse = _aten.native_layer_norm(z, n, norm.weight, norm.bias, norm.eps)
    wanted = [True, norm.weight is not None, norm.bias is not None]
    of_z, of_weight, of_bias = _aten.native_layer_norm_backward(
        grad, z, n, mean, inverse, norm.weight, norm.bias, wanted
    )
    return of_z, of_weight, of_bias


def _rms_backward(grad: torch.Tensor, z: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient of z / rms(z), and z / rms(z)."""
    inverse = (z.square().mean(1, keepdim=True) + eps).rsqrt()
    normal = z * inverse
    return inverse * (grad - normal * (grad * normal).mean(1, keepdim=True)), normal
