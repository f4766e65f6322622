"""Layers that hand the next one eight-bit codes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch

from octavo import ops
from octavo.nn.linear import Linear, LinearNorm

_ROUNDS_ROWS_TO: dict[str, Literal["e4m3", "int8"]] = {"int8_dynamic": "int8", "e4m3_row": "e4m3"}  # by a class


class Chain(torch.nn.Sequential):
    """A ``torch.nn.Sequential`` of a served model. Where a layer in low precision is followed by one that would round
    its FP32 rows to eight bits, the codes are handed on instead: the same bits, a quarter of the memory traffic.

    Without gradients and hooks only, and not in compiled graphs; there it is the Sequential it was.
    """

    def forward(self, input: Any) -> Any:
        """As ``torch.nn.Sequential``."""
        layers: list[Any] = list(self)
        hands_on = isinstance(input, torch.Tensor) and not (torch.is_grad_enabled() or torch.compiler.is_compiling())
        for place, layer in enumerate(layers):
            format = _handed_on(input, layers[place : place + 2]) if hands_on else None
            input = layer(input) if format is None else layer.codes(input, format)
        return input


def _handed_on(x: Any, pair: Sequence[Any]) -> Literal["e4m3", "int8"] | None:
    """The format of the codes that go from the first of two layers to the second, None: numbers do."""
    if len(pair) < 2 or not all(isinstance(layer, Linear | LinearNorm) and _is_free(layer) for layer in pair):
        return None
    first, second = pair
    is_fp32 = isinstance(x, ops.QuantizedTensor) or (isinstance(x, torch.Tensor) and x.dtype == torch.float32)
    return _ROUNDS_ROWS_TO.get(str(second.numerics)) if is_fp32 and first.numerics != "fp32" else None


def _is_free(module: torch.nn.Module) -> bool:
    return not (module._forward_hooks or module._forward_pre_hooks)


def chain(model: torch.nn.Module) -> None:
    """Make the plain Sequentials of a model chains, itself included, where two layers could be linked."""
    for module in model.modules():
        if type(module) is torch.nn.Sequential and any(isinstance(layer, Linear | LinearNorm) for layer in module):
            module.__class__ = Chain
