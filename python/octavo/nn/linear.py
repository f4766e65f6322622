"""Linear layers: FP32 until a numerics class is given, then one fused low-precision kernel."""

from __future__ import annotations

import math
import weakref
from copy import deepcopy
from typing import Any

import torch
from torch.nn import functional
from torch.optim.optimizer import register_optimizer_step_post_hook

from octavo import ops
from octavo.ops._types import ACTIVATIONS, ALL_NUMERICS, NORMS, choice, requires_grad, within_transform
from octavo.ops.epilogue import apply_epilogue
from octavo.ops.linear_backward import Backward, backward_classes, by_kernels, multiplies
from octavo.ops.linear_operator import fp32_with_gradients
from octavo.ops.packing import PackedWeight, pack_as

_MEMOS = ("_norm_spec",)  # made again on first use, never copied or saved


def _count_versions(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Fused optimizers, and those that write to ``.data``, change parameters without giving them a new version."""
    for group in optimizer.param_groups:
        torch.autograd.graph.increment_version([p for p in group["params"] if p.grad is not None])


register_optimizer_step_post_hook(_count_versions)


class _Codes:
    """A weight packed in one class, and what it was packed from: a reference to it, its address and version."""

    def __init__(self, numerics: str) -> None:
        self.numerics = numerics
        self._packed: PackedWeight | None = None
        self._from: tuple[Any, int, int] = (lambda: None, 0, 0)

    def __reduce__(self) -> tuple[type[_Codes], tuple[str]]:
        return _Codes, (self.numerics,)  # a copy packs its own weight

    def of(self, weight: torch.Tensor, preferred: dict[int, str]) -> PackedWeight:
        """The weight's, packed again where it changed."""
        if torch.compiler.is_compiling():
            if weight.requires_grad or within_transform():  # in the graph: a memo would keep the weight of the trace
                return pack_as(weight if torch.is_grad_enabled() else weight.detach(), self.numerics)
            # Never called outside a graph (an export of a model just loaded): packed in it.
            return pack_as(weight, self.numerics) if self._packed is None else self._packed
        version = 0 if weight.is_inference() else weight._version
        packed, (known, address, packed_version) = self._packed, self._from
        if (
            packed is None or known() is not weight or packed.preferred is not preferred
            or (packed.shape, packed.device) != (weight.shape, weight.device)
        ):  # fmt: skip
            # Another weight, if only for one call, gets codes of its own: a graph may hold those of the last.
            with torch.inference_mode(False):  # a later call may train
                packed = self._packed = pack_as(weight, self.numerics)
            packed.preferred = preferred
        elif (address, packed_version) != (weight.data_ptr(), version):
            packed.renew(weight)
        else:
            packed.master = weight if weight.requires_grad else None
            return packed
        self._from = (weakref.ref(weight), weight.data_ptr(), version)
        return packed


_NO_PREFERENCE: dict[int, str] = {}


class _Numerics(torch.nn.Module):
    """A layer with a [N, K] weight that runs in a numerics class."""

    is_octavo_linear = True
    weight: torch.Tensor
    _numerics: str = "fp32"
    _backward: Backward = "bf16"
    _classes: tuple[str, str] = ("bf16", "bf16")  # what it means
    preferred_kernels: dict[int, str] = {}  # a plan's kernels by the largest M of their bucket; empty: dispatch chooses
    _forward_codes = _Codes("fp32")  # which nobody packs in
    _backward_codes = _Codes("fp32")

    @property
    def numerics(self) -> str:
        """The numerics class of the forward: ``fp32`` (torch) or a class of :func:`octavo.ops.pack_weight`.
        Settable.
        """
        return self._numerics

    @numerics.setter
    def numerics(self, value: str) -> None:
        choice("numerics", value, ALL_NUMERICS)
        self._numerics, self._forward_codes = value, _Codes(value)

    @property
    def backward_numerics(self) -> Backward:
        """How gradients are computed: ``bf16``, ``e4m3_row``, ``int8_dynamic`` or ``fp32``, as
        :func:`octavo.ops.linear` explains, where the forward is not ``fp32``; or a pair, the classes of grad_input
        (``fp32 | bf16 | e4m3_row | int8_dynamic``) and of grad_weight (``fp32 | bf16 | e4m3_row``), whatever the
        forward's class. Settable.
        """
        return self._backward

    @backward_numerics.setter
    def backward_numerics(self, value: Backward) -> None:
        self._backward, self._classes = value, backward_classes(value)
        self._backward_codes = _Codes(self._classes[0])

    def packed(self) -> PackedWeight:
        """The weight in this layer's class. When the weight changed in place, what was returned before follows it: the
        new codes are in the memory of the old ones, and a graph that saved these fails in its backward.
        """
        return self._forward_codes.of(self.weight, self.preferred_kernels)

    def _backward_weight(self) -> PackedWeight | None:
        """The weight in grad_input's class; None where that is FP32 or reads the forward's codes."""
        numerics, grad_input = self._numerics, self._classes[0]
        if grad_input == "fp32" or (numerics != "fp32" and multiplies(grad_input, numerics)):
            return None
        return self._backward_codes.of(self.weight, _NO_PREFERENCE)

    def _layer(
        self, x: torch.Tensor, bias: torch.Tensor | None, norm: ops.Norm | None, activation: str | None
    ) -> torch.Tensor:
        """The layer in its classes."""
        records = torch.is_grad_enabled()
        if self._numerics != "fp32":
            if not records:
                return ops.linear(x, self.packed(), bias, norm, activation)
            other = self._backward_weight()
            return ops.linear(x, self.packed(), bias, norm, activation, backward=self._classes, backward_weight=other)
        if records and isinstance(self._backward, tuple) and self._has_kernel_gradients(x):
            return fp32_with_gradients(x, self.weight, bias, norm, activation, self._classes, self._backward_weight())
        z = functional.linear(x, self.weight, bias)
        return z if norm is None and activation is None else apply_epilogue(z, None, norm, activation)

    def _has_kernel_gradients(self, x: torch.Tensor) -> bool:
        if within_transform() or self._classes == ("fp32", "fp32") or not by_kernels(self.weight.device, self._classes):
            return False
        return requires_grad(x, *self.parameters(recurse=False))

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copy = self.__class__.__new__(self.__class__)
        memo[id(self)] = copy
        state = {k: v for k, v in self.__dict__.items() if k not in _MEMOS}
        copy.__dict__.update(deepcopy(state, memo))
        return copy

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in _MEMOS}


class Linear(_Numerics, torch.nn.Linear):
    """y = x W^T + b, as ``torch.nn.Linear`` (same parameters, same state dict), in any numerics class.

    Codes follow every change of the weight that torch counts (optimizers, ``copy_``, ``load_state_dict``). Writes
    through ``.data`` or in ``torch.inference_mode`` are not counted: set ``numerics`` again after them.

    x [..., in_features] float32 or bfloat16 -> [..., out_features] in x's dtype. ``backward``: see
    ``backward_numerics``.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        backward: Backward = "bf16",
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.backward_numerics = backward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._layer(x, self.bias, None, None)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, numerics={self._numerics}"


class LinearNorm(_Numerics):
    """y = act(norm(x W^T + b)) in one layer: linear, norm and activation fused where the class has a kernel (LoKA,
    Mods).

    Args:
        in_features, out_features: K and N.
        norm: ``layer``, ``rms``, ``block`` (LoKA's parameter-free BlockNorm over ``block`` columns), ``swish_rms``
            (Lattice's SwishRMSNorm, its own activation: pass ``activation=None``) or None.
        activation: ``relu | silu | gelu | hardswish | sigmoid`` or None.
        bias: LoKA's No Bias leaves it out.
        eps: added to the norm's variance or mean square.
        backward: see ``backward_numerics``.
        block: columns that share a mean square in ``block``.

    Parameters: ``weight`` [N, K], ``bias`` [N], ``norm_weight`` [N] (layer, rms, swish_rms), ``norm_bias`` [N]
    (layer).
    """

    _norm_spec: ops.Norm | None = None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        norm: str | None = "layer",
        activation: str | None = "hardswish",
        bias: bool = True,
        eps: float = 1e-5,
        backward: Backward = "bf16",
        block: int = 256,
    ) -> None:
        super().__init__()
        self.backward_numerics = backward
        if norm is not None:
            choice("norm", norm, NORMS)
        if activation is not None:
            choice("activation", activation, ACTIVATIONS)
        if norm is not None:
            ops.Norm(norm, eps=eps, block=block).expect_activation(activation)
        self.in_features, self.out_features = in_features, out_features
        self.norm, self.activation, self.eps, self.block = norm, activation, eps, block
        self.weight = torch.nn.Parameter(torch.empty(out_features, in_features))
        self.bias = torch.nn.Parameter(torch.empty(out_features)) if bias else None
        self.norm_weight = (
            torch.nn.Parameter(torch.ones(out_features)) if norm in ("layer", "rms", "swish_rms") else None
        )
        self.norm_bias = torch.nn.Parameter(torch.zeros(out_features)) if norm == "layer" else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initial values as ``torch.nn.Linear`` and ``torch.nn.LayerNorm`` have them."""
        torch.nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.in_features) if self.in_features > 0 else 0
            torch.nn.init.uniform_(self.bias, -bound, bound)
        if self.norm_weight is not None:
            torch.nn.init.ones_(self.norm_weight)
        if self.norm_bias is not None:
            torch.nn.init.zeros_(self.norm_bias)

    @property
    def norm_spec(self) -> ops.Norm | None:
        """The layer's norm with its present parameters."""
        spec = self._norm_spec
        if self.norm is None:
            return None
        known = spec is not None and (spec.kind, spec.block) == (self.norm, self.block)
        if spec is None or not known or spec.weight is not self.norm_weight or spec.bias is not self.norm_bias:
            spec = ops.Norm(self.norm, self.norm_weight, self.norm_bias, self.eps, self.block)
            if not torch.compiler.is_compiling():  # in a graph they may be wrappers that end with it
                self._norm_spec = spec
        return spec

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., K] float32 or bfloat16 -> [..., N] in x's dtype."""
        return self._layer(x, self.bias, self.norm_spec, self.activation)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, norm={self.norm}, "
            f"activation={self.activation}, bias={self.bias is not None}, numerics={self._numerics}"
        )
