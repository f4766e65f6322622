"""``add_norm``: what joins the blocks of a layer over tokens, in one pass (kernels: ``*.add_norm``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

import torch
from torch._subclasses.fake_tensor import FakeTensor

from octavo import _core
from octavo.ops import kernels
from octavo.ops._batches import batch_view, dense
from octavo.ops._library import define
from octavo.ops._types import expect_tensor, tangent_of
from octavo.ops.epilogue import Norm, apply_norm
from octavo.ops.linear_call import epilogue_of

_FLOATS = (torch.float32, torch.bfloat16)
Parts = Sequence[torch.Tensor]


@overload
def add_norm(
    parts: Parts, residual: torch.Tensor | None = ..., norm: Norm | None = ..., transposed: Literal[False] = ...
) -> torch.Tensor: ...
@overload
def add_norm(
    parts: Parts, residual: torch.Tensor | None = ..., norm: Norm | None = ..., *, transposed: Literal[True]
) -> tuple[torch.Tensor, torch.Tensor]: ...
def add_norm(
    parts: Parts, residual: torch.Tensor | None = None, norm: Norm | None = None, transposed: bool = False
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """y = norm(cat(parts, 1) + residual) over the last dimension: [B, n, D] contiguous, of the parts' type.

    So ends a Wukong layer (its FMB and LCB, the residual, the norm), and a transformer's ("add & norm"). Without
    gradients it is one pass on a CPU: nothing is concatenated, added or transposed in memory. Threads share samples.

    Args:
        parts: [B, n_i, D] float32 or bfloat16, all of one type and on one device; n is the sum of n_i. Any
            strides; one whose rows and columns both lie apart is copied.
        residual: [B, n, D] likewise, or None.
        norm: over D, or None.
        transposed: give (y, y^T [B, D, n] contiguous), for layers over either side.

    Kernels sum in FP32 and round once. Where gradients are recorded, and on CUDA, torch's operators run, which round
    each step where the type is bfloat16. Results do not depend on the number of threads.
    Raises TypeError or ValueError that names the argument.
    """
    _check(parts, residual, norm)
    tensors = [t for t in (*parts, residual, *_vectors(norm)) if t is not None]
    records = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    if records or parts[0].is_cuda or any(map(_is_torchs, tensors)):
        y = joined(parts, residual, norm)
        return (y, y.mT.contiguous()) if transposed else y
    if torch.compiler.is_compiling():
        recipe = (None, None, None, 0.0, 0) if norm is None else (
            norm.weight, norm.bias, norm.kind, norm.eps, norm.block)  # fmt: skip
        found = torch.ops.octavo.add_norm(list(parts), residual, *recipe, transposed)
    else:
        found = run(parts, residual, norm, transposed)
    return (found[0], found[1]) if transposed else found[0]


def joined(parts: Parts, residual: torch.Tensor | None, norm: Norm | None) -> torch.Tensor:
    """The definition, in torch and in the parts' type."""
    y = torch.cat(list(parts), 1)
    if residual is not None:
        y = y + residual
    return apply_norm(y, norm).to(parts[0].dtype) if norm is not None and y.shape[-1] else y


def run(
    parts: Parts,
    residual: torch.Tensor | None,
    norm: Norm | None,
    transposed: bool,
    kernel: _core.Kernel | None = None,
) -> list[torch.Tensor]:
    """The kernels' path of :func:`add_norm`: y and, ``transposed``, y^T. ``kernel`` runs that one instead of the
    preferred one."""
    if kernel is None:
        kernel = kernels.serving(_core.Op.add_norm, (parts[0].device.type,))
    inputs = [dense(part) for part in parts]
    added = None if residual is None else dense(residual)
    batch, _, depth = inputs[0].shape
    tokens = sum(part.shape[1] for part in inputs)
    out = [inputs[0].new_empty((batch, tokens, depth))]
    if transposed:
        out.append(inputs[0].new_empty((batch, depth, tokens)))
    epilogue, vectors = epilogue_of(None, norm, None)
    _core.add_norm(
        kernel, batch, [batch_view(part) for part in inputs], None if added is None else batch_view(added), epilogue,
        out[0].data_ptr(), out[1].data_ptr() if transposed else 0,
    )  # fmt: skip
    del vectors  # which the epilogue names
    return out


def _is_torchs(t: torch.Tensor) -> bool:
    """Whether torch alone can compute with ``t``: numbers that are not at its address (fake, functorch's, sparse,
    negated on the way), or a tangent beside them."""
    if torch.compiler.is_compiling():
        return False
    wrapped = isinstance(t, FakeTensor) or torch._C._functorch.is_functorch_wrapped_tensor(t)
    return wrapped or tangent_of(t) is not None or t.layout != torch.strided or t.is_neg()


def _vectors(norm: Norm | None) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    return (None, None) if norm is None else (norm.weight, norm.bias)


def _check(parts: object, residual: torch.Tensor | None, norm: Norm | None) -> None:
    if not isinstance(parts, list | tuple):
        raise TypeError(f"parts: expected a list or tuple of tensors, found {type(parts).__name__}")
    if not parts:
        raise ValueError("parts: is empty; pass at least one tensor")
    first = expect_tensor("parts[0]", parts[0], _FLOATS, 3)
    batch, _, depth = first.shape
    for i, part in enumerate(parts[1:], 1):
        expect_tensor(f"parts[{i}]", part, (first.dtype,), 3)
        if part.shape[0] != batch or part.shape[2] != depth:
            raise ValueError(f"parts[{i}]: shape {list(part.shape)} does not fit parts[0] {list(first.shape)}; "
                             "B and D must be equal")  # fmt: skip
    if residual is not None:
        expected = (batch, sum(part.shape[1] for part in parts), depth)
        if tuple(expect_tensor("residual", residual, (first.dtype,), 3).shape) != expected:
            raise ValueError(f"residual: shape {list(residual.shape)}; expected {list(expected)}")
    if norm is not None and not isinstance(norm, Norm):
        raise TypeError(f"norm: expected an octavo.ops.Norm, found {type(norm).__name__}")
    vectors = list(zip(("norm.weight", "norm.bias"), _vectors(norm), strict=True))
    for name, vector in vectors:
        if vector is not None and vector.shape != (depth,):
            raise ValueError(
                f"{name}: shape {list(vector.shape)}; expected [{depth}], one for each of the last dimension"
            )
    others = [*((f"parts[{i}]", part) for i, part in enumerate(parts)), ("residual", residual), *vectors]
    for name, tensor in others:
        if tensor is not None and tensor.device != first.device:
            raise ValueError(f"{name}: is on {tensor.device} but parts[0] is on {first.device}; move one with .to()")


def _traced(
    parts: list[torch.Tensor], residual: torch.Tensor | None, weight: torch.Tensor | None, bias: torch.Tensor | None,
    kind: str | None, eps: float, block: int, transposed: bool,
) -> list[torch.Tensor]:  # fmt: skip
    return run(parts, residual, None if kind is None else Norm(kind, weight, bias, eps, block), transposed)


def _fake(parts: list[torch.Tensor], residual: torch.Tensor | None, *recipe: object) -> list[torch.Tensor]:
    batch, _, depth = parts[0].shape
    tokens = sum(part.shape[1] for part in parts)
    y = parts[0].new_empty((batch, tokens, depth))
    return [y, parts[0].new_empty((batch, depth, tokens))] if recipe[-1] else [y]


define(
    "add_norm(Tensor[] parts, Tensor? residual, Tensor? weight, Tensor? bias, str? kind, float eps, int block, "
    "bool transposed) -> Tensor[]",
    _traced,
    _fake,
)
