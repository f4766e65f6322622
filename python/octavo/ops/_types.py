"""What octavo.ops and the compiled core call the same things: element types, numerics classes, devices."""

from __future__ import annotations

import math

import torch
from torch.autograd import forward_ad

from octavo import _core

DTYPES = {
    torch.float32: _core.DType.f32,
    torch.bfloat16: _core.DType.bf16,
    torch.float16: _core.DType.f16,
    torch.float8_e4m3fn: _core.DType.e4m3,
    torch.float8_e5m2: _core.DType.e5m2,
    torch.int8: _core.DType.i8,
}
FORMATS = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2, "int8": torch.int8, "bf16": torch.bfloat16}
NUMERICS = ("fp32", "bf16", "e4m3_row", "e4m3_weight_only", "int8_dynamic")  # what every machine has kernels of
ALL_NUMERICS = (*NUMERICS, "e4m3_row_fast", "e4m3_block")  # and what only Hopper gains by
ACTIVATIONS = ("relu", "silu", "gelu", "hardswish", "sigmoid")
NORMS = ("layer", "rms", "block", "swish_rms")


def choice(argument: str, value: object, allowed: tuple[str, ...] | list[str]) -> None:
    """Raise ValueError unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        raise ValueError(f"{argument}: found {value!r}; expected one of {', '.join(map(repr, allowed))}")


def expect_tensor(
    argument: str, value: object, dtypes: tuple[torch.dtype, ...], rank: int | None = None
) -> torch.Tensor:
    """``value`` as a tensor of one of ``dtypes`` and of this rank; TypeError or ValueError otherwise."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{argument}: expected a torch.Tensor, found {type(value).__name__}")
    if value.dtype not in dtypes:
        names = " or ".join(str(d).removeprefix("torch.") for d in dtypes)
        raise TypeError(
            f"{argument}: expected {names}, found {str(value.dtype).removeprefix('torch.')}; convert it with .to()"
        )
    if rank is not None and value.dim() != rank:
        raise ValueError(f"{argument}: expected {rank} dimension(s), found shape {list(value.shape)}")
    if value.device.type not in ("cpu", "cuda"):
        raise ValueError(f"{argument}: is on {value.device}; octavo runs on cpu and cuda, move it with .to()")
    return value


def address(argument: str, tensor: torch.Tensor | None) -> int:
    """Where an optional tensor lies; 0 for None alone. Raises ValueError for one that lies nowhere: a fake tensor."""
    if tensor is None:
        return 0
    at = tensor.data_ptr()
    _core.expect_memory(argument, at, tensor.numel())
    return at


def requires_grad(*tensors: object) -> bool:
    """Whether one of them does; they may still be anything. Inside a transform, what an alias of it says is right."""
    inside = within_transform()
    for t in tensors:  # noqa: SIM110 - a generator costs a microsecond more
        if isinstance(t, torch.Tensor) and (t.view_as(t) if inside else t).requires_grad:
            return True
    return False


def within_transform() -> bool:
    """Whether a graph is traced inside torch.func's transforms (grad, jvp, vmap, ...). ``requires_grad`` of grad's
    arguments is False there, and a tangent or an autograd function over them is lost: only torch's operators will do.
    """
    return torch.compiler.is_compiling() and _transforms() > 0


def _transforms() -> int:
    return len(torch._C._functorch.get_interpreter_stack() or ())


# As torch.compiler.assume_constant_result, which imports torch._dynamo: asked while a graph is traced.
_transforms._dynamo_marked_constant = True  # type: ignore[attr-defined]


def tangent_of(tensor: torch.Tensor) -> torch.Tensor | None:
    """The forward-mode gradient beside ``tensor``, inside torch.autograd.forward_ad.dual_level."""
    return None if forward_ad._current_level < 0 else forward_ad.unpack_dual(tensor).tangent


def expect_no_tangents(*named: tuple[str, torch.Tensor | None]) -> None:
    """Raise NotImplementedError for the first tensor with a tangent, which kernels would drop."""
    if forward_ad._current_level < 0 or torch.compiler.is_compiling():
        return
    for name, tensor in named:
        if tensor is not None and tangent_of(tensor) is not None:
            raise NotImplementedError(
                f"{name}: has a forward-mode tangent, which octavo's kernels do not carry on; "
                "use reverse mode (backward), or torch.autograd.forward_ad.unpack_dual(...).primal"
            )


def expect_number(argument: str, value: object, least: float | None = None) -> None:
    """Raise TypeError or ValueError unless ``value`` is a finite number, and at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{argument}: expected a number, found {value!r}")
    is_finite = -math.inf < value < math.inf  # what torch.compile can trace
    if not is_finite or (least is not None and value < least):
        bound = "" if least is None else f" >= {least:g}"
        raise ValueError(f"{argument}: expected a finite number{bound}, found {value}")


def device_of(tensor: torch.Tensor) -> _core.Device:
    """The core's device of a tensor."""
    return _core.Device.cuda if tensor.is_cuda else _core.Device.cpu
