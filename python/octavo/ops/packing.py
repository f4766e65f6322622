"""Weights in a numerics class: canonical codes and scales, and the kernels' own layouts of them, made on first use."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from octavo import _core
from octavo.ops import kernels
from octavo.ops._types import DTYPES, choice, expect_tensor, within_transform
from octavo.ops.quantization import QuantizedTensor, dequantize, quantize, scale_shape


class Recipe(NamedTuple):
    """What :func:`pack_weight` is told."""

    format: str
    activations: str = "same"
    scaling: str = "row"


CLASSES = {
    Recipe("e4m3"): "e4m3_row",
    Recipe("e4m3", "bf16"): "e4m3_weight_only",
    Recipe("e4m3", scaling="block_128x128"): "e4m3_block",
    Recipe("int8"): "int8_dynamic",
    Recipe("bf16"): "bf16",
    Recipe("bf16", "bf16"): "bf16",
}
RECIPES = {numerics: recipe for recipe, numerics in reversed(CLASSES.items())} | {"e4m3_row_fast": Recipe("e4m3")}


def weight_scaling(numerics: str) -> str:
    """Where the scales of a weight of this class lie."""
    return RECIPES[numerics].scaling if numerics in RECIPES else "row"


def activation_scaling(numerics: str) -> str:
    """Where the scales of activations lie that this class rounds to codes."""
    return "block_1x128" if weight_scaling(numerics) == "block_128x128" else "row"


class PackedWeight:
    """A weight [N, K] in the numerics class ``numerics``.

    ``codes`` [N, K] (float8_e4m3fn, int8 or bfloat16), ``scale`` FP32 or None (bf16): [N], one number for all rows, or
    for ``e4m3_block`` [ceil(N / 128), ceil(K / 128)]; ``master``: the FP32 weight that gradients flow to
    (straight-through), or None. ``preferred``: kernels that a plan names, by the largest M of their bucket. Changing
    ``codes`` in place drops the kernels' layouts. ``kept``: whether graphs remember those; False for a weight that is
    packed in the graph, by every call.
    """

    __slots__ = ("_core_weight", "_routes", "_version", "codes", "k", "kept", "master", "n", "numerics", "preferred",
                 "scale", "served")  # fmt: skip

    def __init__(
        self, codes: torch.Tensor, scale: torch.Tensor | None, numerics: str, master: torch.Tensor | None = None
    ) -> None:
        self.codes, self.numerics, self.master = codes.contiguous(), numerics, master
        self.scale = None if scale is None else _scales(scale, self.codes.shape, numerics)
        self.n, self.k = codes.shape
        self.kept = not torch.compiler.is_compiling()
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
        recipe = RECIPES[self.numerics]
        return dequantize(QuantizedTensor(self.codes, self.scale, recipe.format, recipe.scaling))

    def core(self) -> _core.PackedWeight:
        """The compiled core's view, with the layouts kernels made; a new one when codes or scales changed."""
        version = (_version(self.codes), _version(self.scale))
        if version != self._version or self._core_weight is None:
            scale = 0 if self.scale is None else self.scale.data_ptr()
            self._core_weight = _core.PackedWeight(
                self.codes.data_ptr(), scale, self.n, self.k, DTYPES[self.codes.dtype],
                _core.Scaling[weight_scaling(self.numerics)],
            )  # fmt: skip
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
            recipe = RECIPES[self.numerics]
            own = QuantizedTensor(self.codes, self.scale, recipe.format, recipe.scaling)
            quantize(weight.detach(), recipe.format, recipe.scaling, out=own)
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


def _scales(scale: torch.Tensor, shape: torch.Size, numerics: str) -> torch.Tensor:
    """``scale`` as kernels of the class read it for codes of this shape; raises ValueError where it does not fit."""
    scaling = weight_scaling(numerics)
    expected = scale_shape(shape, scaling)
    if scaling == "row" and tuple(scale.shape) == (1,):
        scale = scale.expand(expected)
    if tuple(scale.shape) != expected:
        raise ValueError(
            f"scale: is {list(scale.shape)}; codes {list(shape)} of class {numerics} have {scaling} scales, "
            f"{list(expected)}{' or [1]' if scaling == 'row' else ''}"
        )
    return scale.contiguous()


def _version(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None or tensor.is_inference() else tensor._version


def pack_weight(
    weight: torch.Tensor, format: str = "e4m3", activations: str = "same", scaling: str = "row"
) -> PackedWeight:
    """A weight [N, K] (float32 or bfloat16) in eight bits or BF16, ready for :func:`octavo.ops.linear`.

    ``format`` and ``activations`` name the class: ``e4m3``/``same`` -> e4m3_row (W8A8), ``e4m3``/``bf16`` ->
    e4m3_weight_only (W8A16), ``int8``/``same`` -> int8_dynamic, ``bf16`` -> bf16. Scales are row-wise, one per output
    column of the layer; with ``scaling="block_128x128"`` (``e4m3``/``same`` only) the class is e4m3_block, which scales
    the weight per 128 x 128 and activations per 1 x 128. Gradients of a weight that requires them pass straight
    through the rounding.
    """
    numerics = _class_of(weight, 2, format, activations, scaling)
    master = weight if weight.requires_grad or within_transform() else None
    if format == "bf16":
        return PackedWeight(weight.detach().to(torch.bfloat16), None, numerics, master)
    q = quantize(weight.detach(), format, scaling)
    return PackedWeight(q.data, q.scale, numerics, master)


def pack_weights(
    weights: torch.Tensor, format: str = "e4m3", activations: str = "same", scaling: str = "row"
) -> list[PackedWeight]:
    """The weights [F, N, K] of F layers of one shape, each as :func:`pack_weight` packs it.

    Their codes and scales lie side by side, so that :func:`octavo.ops.grouped_linear` and
    :func:`octavo.ops.prepare_grouped` can make one launch of all layers on CUDA. A change in place of one drops the
    kernels' layouts of all.
    """
    numerics = _class_of(weights, 3, format, activations, scaling)
    masters = weights.unbind() if weights.requires_grad or within_transform() else [None] * weights.shape[0]
    if format == "bf16":
        return [
            PackedWeight(codes, None, numerics, master)
            for codes, master in zip(weights.detach().to(torch.bfloat16).contiguous(), masters, strict=True)
        ]
    each = [quantize(weight, format, scaling) for weight in weights.detach()]
    if not each:
        return []
    codes, scales = torch.stack([q.data for q in each]), torch.stack([q.scale for q in each])
    return [PackedWeight(*parts) for parts in zip(codes, scales, [numerics] * len(each), masters, strict=True)]


def _class_of(weight: torch.Tensor, dims: int, format: str, activations: str, scaling: str) -> str:
    """The class that :func:`pack_weight`'s arguments name; raises for the first that is wrong."""
    expect_tensor("weight" if dims == 2 else "weights", weight, (torch.float32, torch.bfloat16), dims)
    choice("format", format, ("e4m3", "int8", "bf16"))
    choice("activations", activations, ("same", "bf16"))
    choice("scaling", scaling, ("row", "block_128x128"))
    if Recipe(format, activations) not in CLASSES:
        raise ValueError(f"activations: {activations!r} with format {format!r} is not a numerics class; use 'same'")
    if Recipe(format, activations, scaling) not in CLASSES:
        raise ValueError(
            f"scaling: {scaling!r} is for e4m3 with activations 'same', found {format!r}, {activations!r}; use 'row'"
        )
    return CLASSES[Recipe(format, activations, scaling)]


def pack_as(weight: torch.Tensor, numerics: str) -> PackedWeight:
    """:func:`pack_weight` by the class's own name. ``e4m3_row_fast`` has the codes of ``e4m3_row``; Hopper's tensor
    cores then sum their products without FP32 registers.
    """
    choice("numerics", numerics, tuple(RECIPES))
    w = pack_weight(weight, *RECIPES[numerics])
    w.numerics = numerics
    return w
