"""``add_norm``: what joins the blocks of a layer over tokens, in one pass (kernels: ``*.add_norm``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, cast, overload

import torch

from octavo import _core
from octavo.ops import kernels
from octavo.ops._batches import batch_view, dense
from octavo.ops._library import define
from octavo.ops._types import address, expect_tensor, requires_grad, tangent_of, within_transform
from octavo.ops.epilogue import Norm, apply_norm
from octavo.ops.epilogue_backward import epilogue_backward
from octavo.ops.linear_call import epilogue_of

_FLOATS = (torch.float32, torch.bfloat16)
_PLAIN = (torch.Tensor, torch.nn.Parameter)
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

    So ends a Wukong layer (its FMB and LCB, the residual, the norm), and a transformer's ("add & norm"). On a CPU it is
    one pass, and its backward another: nothing is concatenated, added or transposed in memory. Threads share samples.

    Args:
        parts: [B, n_i, D] float32 or bfloat16, all of one type and on one device; n is the sum of n_i. Any
            strides; one whose rows and columns both lie apart is copied.
        residual: [B, n, D] likewise, or None.
        norm: over D, or None.
        transposed: give (y, y^T [B, D, n] contiguous), for layers over either side.

    Kernels sum in FP32 and round once. On CUDA, in a graph that records gradients, and for gradients of gradients
    torch's operators run, which round each step where the type is bfloat16. Results do not depend on the number of
    threads.
    Raises TypeError or ValueError that names the argument.
    """
    compiling = torch.compiler.is_compiling()
    if not compiling:
        served = _core.serve_add_norm(parts, residual, norm, transposed)  # where nothing is unusual
        if served is not NotImplemented:
            return cast("torch.Tensor | tuple[torch.Tensor, torch.Tensor]", served)
    _check(parts, residual, norm)
    tensors = [t for t in (*parts, residual, *_vectors(norm)) if t is not None]
    records = (torch.is_grad_enabled() and requires_grad(*tensors)) or within_transform()
    if parts[0].is_cuda or (records and compiling) or any(map(_is_torchs, tensors)):
        y = joined(parts, residual, norm)
        return (y, y.mT.contiguous()) if transposed else y
    if records:
        recorded: tuple[torch.Tensor, ...] = _AddNorm.apply(  # type: ignore[no-untyped-call]
            norm, transposed, *_vectors(norm), residual, *parts
        )
        return (recorded[0], recorded[1]) if transposed else recorded[0]
    if compiling:
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
    saved: torch.Tensor | None = None,
) -> list[torch.Tensor]:
    """The kernels' path of :func:`add_norm`: y and, ``transposed``, y^T. ``kernel`` runs that one instead of the
    preferred one. ``saved`` [B, n, D], contiguous: gets what the norm sees."""
    if kernel is None:
        kernel = kernels.serving(_core.Op.add_norm, (parts[0].device.type,))
        generation = kernels.generation
        if kernels.kept(_core.Op.add_norm, (parts[0].device.type,)) is kernel:
            _core.serve_add_norm_with(kernel, generation, Norm)
    inputs = [dense(part) for part in parts]
    added = None if residual is None else dense(residual)
    batch, _, depth = inputs[0].shape
    tokens = sum(part.shape[1] for part in inputs)
    is_bf16 = inputs[0].dtype == torch.bfloat16
    out = [_core.empty_output((batch, tokens, depth), is_bf16)]
    if transposed:
        out.append(_core.empty_output((batch, depth, tokens), is_bf16))
    epilogue, vectors = epilogue_of(None, norm, None)
    _core.add_norm(
        kernel, batch, [batch_view(part) for part in inputs], None if added is None else batch_view(added), epilogue,
        out[0].data_ptr(), out[1].data_ptr() if transposed else 0, 0 if saved is None else saved.data_ptr(),
    )  # fmt: skip
    del vectors  # which the epilogue names
    return out


def run_backward(
    grad: torch.Tensor | None,
    grad_transposed: torch.Tensor | None,
    saved: torch.Tensor | None,
    norm: Norm | None,
    kernel: _core.Kernel | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Gradients of what the norm saw [B, n, D], of its weight and of its bias [D] (or None), for those of y and of y^T,
    of which there is at least one.
    """
    views = [dense(g) for g in (grad, None if grad_transposed is None else grad_transposed.mT) if g is not None]
    first = views[0]
    if kernel is None:
        kernel = kernels.serving(_core.Op.add_norm, (first.device.type,))
    z = None if saved is None else saved.to(first.dtype).contiguous()  # hooks may have stored it otherwise
    of_z = _core.empty_output(first.shape, first.dtype == torch.bfloat16)
    weight, bias = _vectors(norm)
    of_vectors = [
        None if v is None else torch.zeros_like(v, memory_format=torch.contiguous_format) for v in (weight, bias)
    ]
    if of_z.numel() == 0:
        return of_z, of_vectors[0], of_vectors[1]
    epilogue, vectors = epilogue_of(None, norm, None)
    seen = [batch_view(v) for v in views]
    _core.add_norm_backward(
        kernel, first.shape[0], seen[0], seen[1] if len(seen) > 1 else None, address("z", z),
        epilogue, of_z.data_ptr(), *(0 if g is None else g.data_ptr() for g in of_vectors),
    )  # fmt: skip
    del vectors
    return of_z, of_vectors[0], of_vectors[1]


class _AddNorm(torch.autograd.Function):
    """y, with ``transposed`` y^T, and where there is a norm z, what it saw: gradients of gradients pass by it."""

    @staticmethod
    def forward(
        ctx: Any, norm: Norm | None, transposed: bool, weight: Any, bias: Any, residual: Any, *parts: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        ctx.counts = [part.shape[1] for part in parts]
        shape = (parts[0].shape[0], sum(ctx.counts), parts[0].shape[2])
        z = None if norm is None else _core.empty_output(shape, parts[0].dtype == torch.bfloat16)
        out = run(parts, residual, norm, transposed, saved=z)
        ctx.norm, ctx.transposed, ctx.is_leaf = norm, transposed, residual is not None and residual.is_leaf
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(z, weight, bias)
        return (*out, z) if z is not None else tuple(out)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> Any:
        needs = ctx.needs_input_grad[2:]
        given = grads[0], grads[1] if ctx.transposed else None
        of_z = grads[-1] if ctx.norm is not None else None  # from a gradient of gradients
        z, weight, bias = ctx.saved_tensors
        found: Any = None
        if any(g is not None for g in given):
            by_kernel = not torch.is_grad_enabled() and not any(
                g is not None and (_is_torchs(g) or torch._C._functorch.is_legacy_batchedtensor(g)) for g in given
            )
            through = run_backward if by_kernel else _backward_by_torch
            norm = None if ctx.norm is None else replace(ctx.norm, weight=weight, bias=bias)
            found = through(*given, z, norm)
            of_z = found[0] if of_z is None else found[0] + of_z
        if of_z is None:
            return (None,) * (2 + len(needs))
        # A leaf keeps the very tensor it is given: not memory that a part's gradient lies in too.
        of_residual = of_z.clone() if needs[2] and ctx.is_leaf else of_z
        of_parts = of_z.split(ctx.counts, 1) if len(ctx.counts) > 1 else (of_z,)
        all_of_them = (*((None, None) if found is None else found[1:]), of_residual, *of_parts)
        return None, None, *(g if need else None for g, need in zip(all_of_them, needs, strict=True))


def _backward_by_torch(
    grad: torch.Tensor | None, grad_transposed: torch.Tensor | None, z: torch.Tensor | None, norm: Norm | None
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """:func:`run_backward` by torch's operators, which have gradients themselves."""
    across = None if grad_transposed is None else grad_transposed.mT
    total = grad + across if grad is not None and across is not None else grad if across is None else across
    assert total is not None
    if norm is None or z is None or total.numel() == 0:
        weight, bias = (None if v is None else torch.zeros_like(v) for v in _vectors(norm))
        return total, weight, bias
    rows = total.float().reshape(-1, total.shape[-1]), z.float().reshape(-1, z.shape[-1])
    of_z, of_weight, of_bias = epilogue_backward(*rows, norm, None)
    return of_z.reshape(total.shape).to(total.dtype), of_weight, of_bias


def _is_torchs(t: torch.Tensor) -> bool:
    """Whether torch alone can compute with ``t``: a subclass with rules of its own (fake tensors among them), numbers
    that are not at its address (functorch's, sparse, negated on the way), or a tangent beside them."""
    if torch.compiler.is_compiling():
        return False
    wrapped = type(t) not in _PLAIN or torch._C._functorch.is_functorch_wrapped_tensor(t)
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
