"""Weights in a numerics class: canonical codes and scales, and the kernels' own layouts of them, made on first use."""

from __future__ import annotations

from typing import Any

import torch

from octavo import _core
from octavo.ops import kernels
from octavo.ops._types import DTYPES, choice, expect_tensor
from octavo.ops.quantization import QuantizedTensor, dequantize, quantize

CLASSES = {
    ("e4m3", "same"): "e4m3_row",
    ("e4m3", "bf16"): "e4m3_weight_only",
    ("int8", "same"): "int8_dynamic",
    ("bf16", "same"): "bf16",
    ("bf16", "bf16"): "bf16",
}
RECIPES = {numerics: recipe for recipe, numerics in reversed(CLASSES.items())} | {"e4m3_row_fast": ("e4m3", "same")}


class PackedWeight:
    """A weight [N, K] in the numerics class ``numerics``.

    ``codes`` [N, K] (float8_e4m3fn, int8 or bfloat16), ``scale`` [N] FP32 or None (bf16), ``master``: the FP32 weight
    that gradients flow to (straight-through), or None. ``preferred``: kernels that a plan names, by the largest M of
    their bucket. Changing ``codes`` in place drops the kernels' layouts.
    """

    __slots__ = ("_core_weight", "_routes", "_version", "codes", "k", "master", "n", "numerics", "preferred", "scale",
                 "served")  # fmt: skip

    def __init__(
        self, codes: torch.Tensor, scale: torch.Tensor | None, numerics: str, master: torch.Tensor | None = None
    ) -> None:
        self.codes, self.scale, self.numerics, self.master = codes.contiguous(), scale, numerics, master
        self.n, self.k = codes.shape
        self.preferred: dict[int, str] = {}
        self._version = (-1, -1)
        self._core_weight: _core.PackedWeight | None = None
        self._routes: dict[tuple[Any, ...], Any] = {}
        self.served: _core.PreparedLinear | None = None  # of the latest call of ops.linear

    @property
    def shape(self) -> torch.Size:
        return self.codes.shape

    @property
    def device(self) -> torch.device:
        return self.codes.device

    def dequantize(self) -> torch.Tensor:
        """The weight's values, [N, K] FP32."""
        if self.scale is None:
            return self.codes.float()
        return dequantize(QuantizedTensor(self.codes, self.scale, RECIPES[self.numerics][0], "row"))

    def core(self) -> _core.PackedWeight:
        """The compiled core's view, with the layouts kernels made; a new one when codes or scales changed."""
        version = (_version(self.codes), _version(self.scale))
        if version != self._version or self._core_weight is None:
            scale = 0 if self.scale is None else self.scale.data_ptr()
            self._core_weight = _core.PackedWeight(
                self.codes.data_ptr(), scale, self.n, self.k, DTYPES[self.codes.dtype]
            )
            self._version = version
            self.served = None
        return self._core_weight

    def renew(self, weight: torch.Tensor) -> None:
        """Codes and scales of ``weight`` [N, K], which is the same tensor as before with other values, in the memory of
        these: what was prepared serves on, and a graph that saved the old codes fails in its backward, as torch's own
        layers do whose weight changed in place.
        """
        if self.scale is None:
            with torch.no_grad():
                self.codes.copy_(weight)
        else:
            format = RECIPES[self.numerics][0]
            quantize(weight.detach(), format, "row", out=QuantizedTensor(self.codes, self.scale, format, "row"))
            torch.autograd.graph.increment_version(self.codes)
        self.master = weight if weight.requires_grad else None

    def route(self, key: tuple[Any, ...]) -> Any:
        """What was remembered for ``key`` in this generation of kernels, or None."""
        return self._routes.get((kernels.generation, *key))

    def remember(self, key: tuple[Any, ...], route: Any) -> None:
        """Remember ``route`` for ``key`` until the kernels change."""
        if len(self._routes) >= 1024:
            self._routes.clear()
        self._routes[(kernels.generation, *key)] = route

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedWeight:
        scale = None if self.scale is None else self.scale.clone()
        twin = PackedWeight(self.codes.clone(), scale, self.numerics, self.master)
        twin.preferred = dict(self.preferred)
        return twin

    def __repr__(self) -> str:
        return f"PackedWeight({self.numerics}, shape={list(self.shape)}, device={self.codes.device})"


def _version(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None or tensor.is_inference() else tensor._version


def pack_weight(weight: torch.Tensor, format: str = "e4m3", activations: str = "same") -> PackedWeight:
    """A weight [N, K] (float32 or bfloat16) in eight bits or BF16, ready for :func:`octavo.ops.linear`.

    ``format`` and ``activations`` name the class: ``e4m3``/``same`` -> e4m3_row (W8A8), ``e4m3``/``bf16`` ->
    e4m3_weight_only (W8A16), ``int8``/``same`` -> int8_dynamic, ``bf16`` -> bf16. Scales are row-wise, one per output
    column of the layer. Gradients of a weight that requires them pass straight through the rounding.
    """
    expect_tensor("weight", weight, (torch.float32, torch.bfloat16), 2)
    choice("format", format, ("e4m3", "int8", "bf16"))
    choice("activations", activations, ("same", "bf16"))
    if (format, activations) not in CLASSES:
        raise ValueError(f"activations: {activations!r} with format {format!r} is not a numerics class; use 'same'")
    numerics = CLASSES[format, activations]
    master = weight if weight.requires_grad else None
    if format == "bf16":
        return PackedWeight(weight.detach().to(torch.bfloat16), None, numerics, master)
    q = quantize(weight.detach(), format, "row")
    return PackedWeight(q.data, q.scale, numerics, master)


def pack_as(weight: torch.Tensor, numerics: str) -> PackedWeight:
    """:func:`pack_weight` by the class's own name. ``e4m3_row_fast`` has the codes of ``e4m3_row``; Hopper's tensor
    cores then sum their products without FP32 registers.
    """
    choice("numerics", numerics, tuple(RECIPES))
    format, activations = RECIPES[numerics]
    w = pack_weight(weight, format, activations)
    w.numerics = numerics
    return w
