"""The parts of a chain, as modules and as calls in a graph: which linear layer, norm and activation they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.nn import functional

from octavo import nn, ops
from octavo.loka.mods.places import LINEAR
from octavo.ops.epilogue import apply_norm

ACTIVATION_MODULES = {torch.nn.ReLU: "relu", torch.nn.SiLU: "silu", torch.nn.GELU: "gelu",
                      torch.nn.Hardswish: "hardswish", torch.nn.Sigmoid: "sigmoid"}  # fmt: skip
_ACTIVATION_CALLS: dict[Any, str] = {
    functional.relu: "relu", torch.relu: "relu", torch.relu_: "relu", functional.relu_: "relu",
    functional.silu: "silu", functional.gelu: "gelu", functional.hardswish: "hardswish",
    torch.sigmoid: "sigmoid", functional.sigmoid: "sigmoid",
    "relu": "relu", "relu_": "relu", "sigmoid": "sigmoid", "sigmoid_": "sigmoid",
}  # fmt: skip
_NORM_CALLS: dict[Any, tuple[str, float | None]] = {
    functional.layer_norm: ("layer", 1e-5), functional.rms_norm: ("rms", None),
    torch.layer_norm: ("layer", 1e-5), torch.rms_norm: ("rms", None),
}  # fmt: skip
_FP32_EPS = torch.finfo(torch.float32).eps  # torch's RMS norm without an eps


@dataclass(frozen=True, eq=False)
class NormPart:
    """A norm over the last dimension; ``weight`` and ``bias``: the module and name of its parameters, if it has them.

    ``width``: None where any will do.
    """

    kind: str
    eps: float
    width: int | None = None
    weight: tuple[torch.nn.Module, str] | None = None
    bias: tuple[torch.nn.Module, str] | None = None
    block: int = 256

    def parameters(self) -> dict[str, tuple[torch.nn.Module, str]]:
        """By their names in ``nn.LinearNorm``."""
        return {
            name: place for name, place in (("norm_weight", self.weight), ("norm_bias", self.bias)) if place is not None
        }


def is_linear(module: torch.nn.Module | None) -> bool:
    return type(module) in LINEAR


def norm_of_module(module: Any) -> NormPart | None:
    """The norm that ``module`` is, None for one that LinearNorm cannot be."""
    if type(module) is nn.BlockNorm:
        return NormPart("block", module.eps, block=module.block)
    if type(module) is nn.Norm and module.kind is not None:
        kind, eps, width = module.kind, module.eps, None if module.weight is None else len(module.weight)
        block = module.block
    elif type(module) in (torch.nn.LayerNorm, torch.nn.RMSNorm) and len(module.normalized_shape) == 1:
        kind = "layer" if type(module) is torch.nn.LayerNorm else "rms"
        eps, width, block = _FP32_EPS if module.eps is None else module.eps, module.normalized_shape[0], 256
    else:
        return None
    weight, bias = ((module, n) if getattr(module, n, None) is not None else None for n in ("weight", "bias"))
    return NormPart(kind, eps, width, weight, bias, block)


def activation_of_module(module: torch.nn.Module | None) -> str | None:
    if type(module) is torch.nn.GELU and module.approximate != "none":
        return None
    return ACTIVATION_MODULES.get(type(module))  # type: ignore[arg-type]


def activation_of_call(node: fx.Node) -> str | None:
    """The activation of a functional or method call, None for others."""
    if node.op not in ("call_function", "call_method") or (node.kwargs.get("approximate", "none") != "none"):
        return None
    return _ACTIVATION_CALLS.get(node.target)


def norm_of_call(node: fx.Node, host: torch.nn.Module) -> NormPart | None:
    """The norm of a functional call with a literal width whose parameters, if any, are ``host``'s own."""
    if node.op != "call_function":
        return None
    if node.target is block_norm:
        _, block, added = node.args
        return NormPart("block", float(added), block=int(block))  # type: ignore[arg-type]
    if node.target not in _NORM_CALLS:
        return None
    kind, default = _NORM_CALLS[node.target]
    names = ("input", "normalized_shape", "weight", "bias", "eps") if kind == "layer" else (
        "input", "normalized_shape", "weight", "eps")  # fmt: skip
    given = {**dict(zip(names, node.args)), **node.kwargs}
    shape = given["normalized_shape"]
    if not isinstance(shape, list | tuple) or len(shape) != 1 or not isinstance(shape[0], int):
        return None
    eps: Any = given.get("eps", default)
    places: list[tuple[torch.nn.Module, str] | None] = []
    for name in ("weight", "bias"):
        value = given.get(name)
        if value is None:
            places.append(None)
            continue
        if not isinstance(value, fx.Node) or value.op != "get_attr" or len(value.users) != 1:
            return None
        if not isinstance(host._parameters.get(str(value.target)), torch.nn.Parameter):
            return None
        places.append((host, str(value.target)))
    return NormPart(kind, _FP32_EPS if eps is None else float(eps), int(shape[0]), places[0], places[1])


def block_norm(x: torch.Tensor, block: int, eps: float) -> torch.Tensor:
    """``nn.BlockNorm`` as a call."""
    return apply_norm(x, ops.Norm("block", eps=eps, block=block)) if x.shape[-1] else x


def why_not(linear: Any, norm: NormPart | None) -> str | None:
    """Why this chain cannot be one LinearNorm, None when it can."""
    n = linear.out_features
    if linear.weight.dtype != torch.float32:
        return f"its weight is {str(linear.weight.dtype).removeprefix('torch.')}; fuse in FP32"
    if norm is None:
        return None
    if norm.width not in (None, n):
        return f"the norm is {norm.width} wide, the layer {n}"
    for module, name in norm.parameters().values():
        if getattr(module, name).dtype != torch.float32:
            return "the norm's parameters are not FP32"
    return None


def linear_norm(linear: Any, norm: NormPart | None, activation: str | None) -> nn.LinearNorm:
    """The chain as one layer with the same Parameters."""
    kind = None if norm is None else norm.kind
    options: dict[str, Any] = {} if norm is None else {"eps": norm.eps, "block": norm.block}
    with torch.device("meta"):  # draws nothing
        layer = nn.LinearNorm(linear.in_features, linear.out_features, kind, activation, bias=False, **options)
    layer.weight, layer.bias = linear.weight, linear.bias
    layer.norm_weight = layer.norm_bias = None
    if norm is not None:
        for name, (module, own) in norm.parameters().items():
            setattr(layer, name, getattr(module, own))
    if isinstance(linear, nn.Linear):
        layer.numerics, layer.backward_numerics = linear.numerics, linear.backward_numerics
        layer.preferred_kernels = linear.preferred_kernels
    return layer.train(linear.training)


def describe(kind: str, norm: NormPart | None, activation: str | None, norm_last: bool = False) -> str:
    parts = [None if norm is None else norm.kind, activation]
    return " -> ".join([kind, *(part for part in (reversed(parts) if norm_last else parts) if part)])
