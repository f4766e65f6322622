"""``pairwise_dots``: products of every pair of rows, sample by sample (kernels: ``*.pairwise_dots.*``)."""

from __future__ import annotations

from typing import Any, cast

import torch

from octavo import _core
from octavo.ops import by_torch, kernels
from octavo.ops._batches import batch_view, dense
from octavo.ops._library import define
from octavo.ops._types import choice, expect_no_tangents, expect_tensor, requires_grad, within_transform
from octavo.ops.output_checks import expect_writable

PAIRS = ("all", "lower", "upper")
CLASSES = ("fp32", "bf16")
_CODES = {torch.float32: int(_core.DType.f32), torch.bfloat16: int(_core.DType.bf16)}
_FLOATS = tuple(_CODES)


def pairwise_dots(
    x: torch.Tensor,
    y: torch.Tensor | None = None,
    pairs: str = "all",
    numerics: str | None = None,
    out_dtype: torch.dtype | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """out[b, i, j] = x[b, i] . y[b, j]: ``x @ y.mT`` for each sample, y = x when it is None.

    A factorization-machine block's X X^T is ``pairwise_dots(x)``; its X (X^T Y) is
    ``pairwise_dots(x, pairwise_dots(x.mT, y.mT).mT)``, transposed views cost no copy. DLRM's interaction is
    ``pairwise_dots(features, pairs="lower")``, which computes about half.

    Args:
        x: [B, F, D] float32 or bfloat16, any strides. On CUDA the call joins the current stream and never waits for it.
        y: [B, G, D] likewise, on x's device.
        pairs: ``all`` -> [B, F, G]. ``lower`` (j < i) or ``upper`` (j > i), y = None only -> [B, F (F - 1) / 2], the
            strict triangle in row-major order, as ``torch.tril_indices(F, F, -1)`` or ``triu_indices(F, F, 1)`` lists.
        numerics: ``fp32``, or ``bf16``: operands rounded to BF16, sums in FP32. By default the one of x's dtype.
        out_dtype: float32 or bfloat16; x's dtype by default.
        out: tensor to write to, last dimension contiguous, on x's device: a column slice of a larger [B, ...] will do,
            an expanded tensor will not. Not with gradients.

    Gradients run on the same kernels in the same class, those of gradients by torch in FP32. Results do not
    depend on the number of threads. Raises TypeError or ValueError that names the argument.
    """
    if numerics is None and out_dtype is None and out is None and not torch.compiler.is_compiling():
        found = _core.serve_pairwise_dots(x, y, pairs)  # where nothing is unusual, and a kernel was chosen before
        if found is not NotImplemented:
            return cast(torch.Tensor, found)
    expect_tensor("x", x, _FLOATS, 3)
    choice("pairs", pairs, PAIRS)
    if y is not None:
        expect_tensor("y", y, _FLOATS, 3)
        if y.shape[0] != x.shape[0] or y.shape[2] != x.shape[2]:
            raise ValueError(f"y: shape {list(y.shape)} does not fit x {list(x.shape)}; B and D must be equal")
        if pairs != "all":
            raise ValueError(f"pairs: {pairs!r} is the triangle of x x^T; leave y out")
    for name, tensor in (("y", y), ("out", out)):
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"{name}: is on {tensor.device} but x is on {x.device}; move one with .to()")
    expect_no_tangents(("x", x), ("y", y), ("out", out))
    if numerics is None:
        numerics = "fp32" if x.dtype == torch.float32 else "bf16"
    choice("numerics", numerics, CLASSES)
    if out_dtype is None:
        out_dtype = x.dtype if out is None else out.dtype
    if out_dtype not in _CODES:
        raise TypeError(f"out_dtype: expected torch.float32 or torch.bfloat16, found {out_dtype}")
    records = torch.is_grad_enabled() and requires_grad(x, y)
    if out is not None:
        if records or torch.compiler.is_compiling():
            raise ValueError("out: cannot be combined with gradients or tracing; leave it out")
        _check_out(out, x, y, pairs, out_dtype)
        return run(x, x if y is None else y, "all", pairs, numerics, out_dtype, out)
    if within_transform():
        value = _call(x.detach(), (x if y is None else y).detach(), "all", pairs, numerics, torch.float32)
        return by_torch.with_value(by_torch.pairwise_dots(x, y, pairs, numerics), value).to(out_dtype)
    if records:
        function = _TracedPairwise if torch.compiler.is_compiling() else _Pairwise
        recorded: torch.Tensor = function.apply(x, y, pairs, numerics, out_dtype)  # type: ignore[no-untyped-call]
        return recorded
    return _call(x, x if y is None else y, "all", pairs, numerics, out_dtype)


def run(
    x: torch.Tensor,
    y: torch.Tensor,
    x_pairs: str,
    pairs: str,
    numerics: str,
    out_dtype: torch.dtype,
    out: torch.Tensor | None = None,
    kernel: _core.Kernel | None = None,
) -> torch.Tensor:
    """The eager path of :func:`pairwise_dots`. ``kernel`` runs that one instead of the preferred one.

    ``x_pairs`` other than ``all``: x is [B, F (F - 1) / 2], the triangle of a symmetric [B, F, F] with zeros on its
    diagonal; y is [B, G, F].
    """
    if kernel is None:
        words = (x.device.type, numerics)
        kernel = kernels.serving(_core.Op.pairwise_dots, words)
        generation = kernels.generation
        if x.device.type == "cpu" and kernels.kept(_core.Op.pairwise_dots, words) is kernel:
            _core.serve_pairwise_dots_with(kernel, generation, numerics == "bf16")
    if x_pairs != "all":
        x = x.unsqueeze(1)
    same = x is y
    x = dense(x)
    y = x if same else dense(y)
    if out is None:
        out = torch.empty(_shape(x, y, x_pairs, pairs), dtype=out_dtype, device=x.device)
    _core.pairwise_dots(
        kernel, y.shape[0], batch_view(x), PAIRS.index(x_pairs), batch_view(y), PAIRS.index(pairs), out.data_ptr(),
        out.stride(0), out.stride(1) if pairs == "all" else 0, _CODES[out.dtype], kernels.stream_of(x),
    )  # fmt: skip
    return out


def _shape(x: torch.Tensor, y: torch.Tensor, x_pairs: str, pairs: str) -> tuple[int, ...]:
    rows = x.shape[1] if x_pairs == "all" else y.shape[2]
    return (y.shape[0], rows, y.shape[1]) if pairs == "all" else (y.shape[0], rows * (rows - 1) // 2)


def _check_out(out: torch.Tensor, x: torch.Tensor, y: torch.Tensor | None, pairs: str, out_dtype: torch.dtype) -> None:
    shape = _shape(x, x if y is None else y, "all", pairs)
    if tuple(expect_tensor("out", out, _FLOATS).shape) != shape:
        raise ValueError(f"out: shape {list(out.shape)}; expected {list(shape)}")
    if out.dtype != out_dtype:
        raise TypeError(f"out: is {out.dtype} but out_dtype is {out_dtype}")
    if out.shape[-1] > 1 and out.stride(-1) != 1:
        raise ValueError("out: its last dimension must be contiguous; pass a contiguous tensor or a slice of one")
    expect_writable("out", out)


class _TracedPairwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any, y: Any, pairs: str, numerics: str, out_dtype: torch.dtype) -> torch.Tensor:
        ctx.save_for_backward(x, y)
        ctx.recipe = (pairs, numerics)
        return _call(x, x if y is None else y, "all", pairs, numerics, out_dtype)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        x, y = ctx.saved_tensors
        pairs, numerics = ctx.recipe
        if pairs != "all":
            return _call(grad, x.mT, pairs, "all", numerics, x.dtype), None, None, None, None
        if y is None:
            return _call(grad + grad.mT, x.mT, "all", "all", numerics, x.dtype), None, None, None, None
        need_x, need_y = ctx.needs_input_grad[:2]
        return (
            _call(grad, y.mT, "all", "all", numerics, x.dtype) if need_x else None,
            _call(grad.mT, x.mT, "all", "all", numerics, y.dtype) if need_y else None,
            None, None, None,
        )  # fmt: skip


class _Pairwise(_TracedPairwise):
    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        if not torch.is_grad_enabled():
            return _TracedPairwise.backward(ctx, grad)
        recipe, needs = ctx.recipe, ctx.needs_input_grad[:2]
        found = by_torch.recorded_gradients(
            lambda x, y: by_torch.pairwise_dots(x, y, *recipe), ctx.saved_tensors, needs, grad
        )
        return *found, None, None, None


def _call(
    x: torch.Tensor, y: torch.Tensor, x_pairs: str, pairs: str, numerics: str, out_dtype: torch.dtype
) -> torch.Tensor:
    """One node ``octavo::pairwise_dots`` of a graph, the eager path otherwise."""
    if torch.compiler.is_compiling():
        traced: torch.Tensor = torch.ops.octavo.pairwise_dots(x, y, x_pairs, pairs, numerics, out_dtype)
        return traced
    return run(x, y, x_pairs, pairs, numerics, out_dtype)


def _fake(
    x: torch.Tensor, y: torch.Tensor, x_pairs: str, pairs: str, numerics: str, out_dtype: torch.dtype
) -> torch.Tensor:
    return x.new_empty(_shape(x if x_pairs == "all" else x.unsqueeze(1), y, x_pairs, pairs), dtype=out_dtype)


define(
    "pairwise_dots(Tensor x, Tensor y, str x_pairs, str pairs, str numerics, ScalarType out_dtype) -> Tensor",
    run,
    _fake,
)
