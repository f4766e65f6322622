"""A layer through torch.compile: torch's product with everything that follows it fused behind it."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch

from octavo.ops.epilogue import Norm, apply_epilogue
from octavo.ops.packing import PackedWeight

Layer = Callable[..., torch.Tensor]


class CompiledChain:
    """``registration.Chain`` of BF16 products. One compiled function for every layer's N, K and epilogue: compiled for
    the first number of rows, at the second one for any. While a CUDA graph is recorded nothing is compiled: a call that
    would have to runs the same operators eagerly."""

    def __init__(self) -> None:
        self._compiled: dict[tuple[Any, ...], Layer] = {}

    def __call__(
        self,
        x: torch.Tensor,
        weight: PackedWeight,
        bias: torch.Tensor | None,
        norm: Norm | None,
        activation: str | None,
        residual: torch.Tensor | None,
        residual_before_norm: bool,
        out_dtype: torch.dtype,
    ) -> torch.Tensor:
        kind = norm and (norm.kind, norm.eps, norm.block, norm.weight is None, norm.bias is None)
        key = (weight.n, weight.k, x.dtype, bias is None, kind, activation, residual is None, residual_before_norm,
               out_dtype)  # fmt: skip
        if key not in self._compiled:
            # Dynamo keeps what it compiled by code object: with one of its own no layer pays for another's guards.
            code = types.FunctionType(_layer.__code__.replace(), _layer.__globals__, _layer.__name__)
            self._compiled[key] = torch.compile(code)
        arguments = (x, weight.codes, bias, norm, activation, residual, residual_before_norm, out_dtype)
        if x.is_cuda and torch.cuda.is_current_stream_capturing():
            return self.without_compiling(self._compiled[key], *arguments)
        return self._compiled[key](*arguments)

    @staticmethod
    def without_compiling(compiled: Layer, *arguments: object) -> torch.Tensor:
        """The compiled function where it is compiled for such arguments, else its operators, eagerly."""
        with torch.compiler.set_stance("eager_on_recompile"):
            return compiled(*arguments)


def _layer(
    x: torch.Tensor,
    codes: torch.Tensor,
    bias: torch.Tensor | None,
    norm: Norm | None,
    activation: str | None,
    residual: torch.Tensor | None,
    residual_before_norm: bool,
    out_dtype: torch.dtype,
) -> torch.Tensor:
    z = torch.nn.functional.linear(x.to(torch.bfloat16), codes).float()
    return apply_epilogue(z, bias, norm, activation, residual, residual_before_norm).to(out_dtype)
