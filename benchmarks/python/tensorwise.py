"""Naive FP8: every linear layer with one scale per tensor on both operands of all three products, emulated.

octavo has no such class, so the codes are made (:func:`octavo.ops.quantize`, round to nearest even, saturating), turned
back into FP32 and multiplied by torch: x and W in E4M3, gradients in E5M2, as torchao's ``tensorwise`` recipe has it
(methods.md 1b (8)). Norms, activations and biases stay in FP32.
"""

from __future__ import annotations

from typing import Any

import torch

from octavo import nn, ops
from octavo.ops.epilogue import apply_epilogue


def rounded(x: torch.Tensor, format: str) -> torch.Tensor:
    """``x`` as eight-bit codes of one scale say it."""
    return ops.quantize(x.detach().contiguous(), format, "tensor").dequantize()


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """x [..., K], weight [N, K] -> [..., N]."""
        x, weight = rounded(x, "e4m3"), rounded(weight, "e4m3")
        ctx.save_for_backward(x, weight)
        return x @ weight.T

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, weight = ctx.saved_tensors
        grad = rounded(grad, "e5m2")
        return grad @ weight, grad.flatten(0, -2).T @ x.flatten(0, -2)


def _product(layer: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    z: torch.Tensor = _Product.apply(x, layer.weight)
    return z if layer.bias is None else z + layer.bias


class TensorWiseLinear(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _product(self, x)


class TensorWiseLinearNorm(nn.LinearNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = _product(self, x)
        if self.norm is None and self.activation is None:
            return z
        return apply_epilogue(z, None, self.norm_spec, self.activation)


def install(model: torch.nn.Module) -> torch.nn.Module:
    """Every linear layer of octavo's in ``model``, heads included; parameters stay the same tensors."""
    kinds = {nn.Linear: TensorWiseLinear, nn.LinearNorm: TensorWiseLinearNorm}
    for module in model.modules():
        kind = kinds.get(type(module))
        if kind is not None:
            module.__class__ = kind
    return model
