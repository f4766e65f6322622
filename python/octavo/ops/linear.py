"""``linear``: a layer with its epilogue in one kernel, any shape, routed by M inside the operator."""

from __future__ import annotations

from typing import Any

import torch

from octavo import _core
from octavo.ops import kernels
from octavo.ops._types import ACTIVATIONS, choice, expect_tensor
from octavo.ops.epilogue import Norm, apply_epilogue, describe
from octavo.ops.packing import PackedWeight
from octavo.ops.quantization import as_rows

_FLOATS = (torch.float32, torch.bfloat16)
_F32, _BF16 = int(_core.DType.f32), int(_core.DType.bf16)
_NORM_KINDS = {None: 0, "layer": 1, "rms": 2, "block": 3}
_ACTIVATION_KINDS = {None: 0} | {name: 1 + i for i, name in enumerate(ACTIVATIONS)}
_epilogues: dict[tuple[Any, ...], _core.Epilogue] = {}


def linear(
    x: torch.Tensor,
    w: PackedWeight,
    bias: torch.Tensor | None = None,
    norm: Norm | None = None,
    activation: str | None = None,
    residual: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    out: torch.Tensor | None = None,
    residual_before_norm: bool = False,
) -> torch.Tensor:
    """y = act(norm(x W^T + bias [+ residual when residual_before_norm])) [+ residual].

    Args:
        x: [..., K] float32 or bfloat16, any strides, on w's device.
        w: weight [N, K] from :func:`octavo.ops.pack_weight`; its numerics class says how x is rounded.
        bias: [N] float32.
        norm: a :class:`octavo.ops.Norm` over N.
        activation: ``relu | silu | gelu | hardswish | sigmoid``.
        residual: [..., N] float32 or bfloat16.
        out_dtype: float32 or bfloat16; x's dtype by default.
        out: [..., N] tensor to write to (contiguous rows); returned. Not with gradients.

    Returns [..., N]. The fastest qualified kernel of the class runs (``octavo.ops.dispatch.explain`` says which).
    Gradients of x, bias, norm, residual and w's master weight go through torch in FP32; rounding passes them straight
    through. Raises TypeError or ValueError that names the argument.
    """
    if not isinstance(w, PackedWeight):
        raise TypeError(f"w: expected a PackedWeight from octavo.ops.pack_weight, found {type(w).__name__}")
    from octavo.ops.linear_operator import linear_with_gradients, traced_linear

    if norm is not None and not isinstance(norm, Norm):
        raise TypeError(f"norm: expected an octavo.ops.Norm, found {type(norm).__name__}")
    norm_weight, norm_bias = (None, None) if norm is None else (norm.weight, norm.bias)
    tensors = (x, w.master, bias, norm_weight, norm_bias, residual)
    grads = torch.is_grad_enabled() and any(getattr(t, "requires_grad", False) for t in tensors)
    if out is not None and (grads or torch.compiler.is_compiling()):
        raise ValueError("out: cannot be combined with gradients or tracing; leave it out or use torch.no_grad()")
    if grads:
        check(x, w, bias, norm, activation, residual, out_dtype, out)
        return linear_with_gradients(x, w, bias, norm, activation, residual, residual_before_norm, out_dtype)
    if torch.compiler.is_compiling():
        return traced_linear(x, w, bias, norm, activation, residual, residual_before_norm, out_dtype)
    return run(x, w, bias, norm, activation, residual, residual_before_norm, out_dtype, out)


def check(
    x: torch.Tensor,
    w: PackedWeight,
    bias: torch.Tensor | None,
    norm: Norm | None,
    activation: str | None,
    residual: torch.Tensor | None,
    out_dtype: torch.dtype | None,
    out: torch.Tensor | None,
) -> None:
    """Raise for the first argument of :func:`linear` that no kernel could take."""
    expect_tensor("x", x, _FLOATS)
    if x.dim() == 0 or x.shape[-1] != w.k:
        raise ValueError(
            f"x: shape {list(x.shape)} does not fit weight {list(w.shape)}; the last dimension must be K = {w.k}"
        )
    shape = [*x.shape[:-1], w.n]
    if activation is not None:
        choice("activation", activation, ACTIVATIONS)
    if out_dtype is not None and out_dtype not in _FLOATS:
        raise TypeError(f"out_dtype: expected torch.float32 or torch.bfloat16, found {out_dtype}")
    vectors = [("bias", bias)]
    if norm is not None:
        vectors += [("norm.weight", norm.weight), ("norm.bias", norm.bias)]
    for name, vector in vectors:
        if vector is not None and expect_tensor(name, vector, (torch.float32,), 1).shape[0] != w.n:
            raise ValueError(f"{name}: has {vector.shape[0]} elements; expected N = {w.n}")
    for name, tensor in (("residual", residual), ("out", out)):
        if tensor is not None and list(expect_tensor(name, tensor, _FLOATS).shape) != shape:
            raise ValueError(f"{name}: shape {list(tensor.shape)}; expected {shape}")
    if out is not None:
        if out_dtype is not None and out.dtype != out_dtype:
            raise TypeError(f"out: is {out.dtype} but out_dtype is {out_dtype}")
        if out.dim() > 1 and not (out.is_contiguous() or (out.dim() == 2 and out.stride(1) == 1)):
            raise ValueError("out: rows must be contiguous; pass a contiguous tensor or a row slice of one")
    for name, tensor in [("x", x), *vectors, ("residual", residual), ("out", out)]:
        if tensor is not None and tensor.device != w.device:
            raise ValueError(f"{name}: is on {tensor.device} but the weight is on {w.device}; move one with .to()")


def run(
    x: torch.Tensor,
    w: PackedWeight,
    bias: torch.Tensor | None = None,
    norm: Norm | None = None,
    activation: str | None = None,
    residual: torch.Tensor | None = None,
    residual_before_norm: bool = False,
    out_dtype: torch.dtype | None = None,
    out: torch.Tensor | None = None,
    kernel: _core.Kernel | None = None,
) -> torch.Tensor:
    """The eager path of :func:`linear`, without gradients. ``kernel`` runs that one instead of the chosen one."""
    check(x, w, bias, norm, activation, residual, out_dtype, out)
    dtype = out.dtype if out is not None else x.dtype if out_dtype is None else out_dtype
    y = torch.empty((*x.shape[:-1], w.n), dtype=dtype, device=x.device) if out is None else out
    rows = as_rows(x)
    m = rows.shape[0]
    if m == 0 or w.n == 0:
        return y
    y_rows = y if y.dim() == 2 else y.view(m, w.n)
    bias = None if bias is None else bias.contiguous()
    norm = _contiguous(norm)
    r_rows = None if residual is None else as_rows(residual)
    if kernel is None:
        where = None if residual is None else "before" if residual_before_norm else "after"
        epilogue = describe(bias is not None, norm.kind if norm else None, activation, where)
        kernel = chosen(w, m, rows.dtype, dtype, epilogue)
    if kernel.library != "octavo":
        kernel.count()
        z = kernels.externals[kernel.name](rows, w)
        y_rows.copy_(apply_epilogue(z.float(), bias, norm, activation, r_rows, residual_before_norm))
        return y
    _core.linear(
        kernel,
        rows.data_ptr(),
        m,
        rows.stride(0) if m > 1 else w.k,
        _BF16 if rows.dtype is torch.bfloat16 else _F32,
        w.core(),
        y_rows.data_ptr(),
        y_rows.stride(0) if m > 1 else w.n,
        _BF16 if dtype is torch.bfloat16 else _F32,
        _epilogue(bias, norm, activation),
        0 if r_rows is None else r_rows.data_ptr(),
        0 if r_rows is None else r_rows.stride(0) if m > 1 else w.n,
        _BF16 if r_rows is not None and r_rows.dtype is torch.bfloat16 else _F32,
        residual_before_norm,
        torch.cuda.current_stream(x.device).cuda_stream if x.is_cuda else 0,
    )
    return y


def chosen(w: PackedWeight, m: int, x_dtype: torch.dtype, out_dtype: torch.dtype, epilogue: str) -> _core.Kernel:
    """The kernel that serves ``w``'s class on m rows, remembered on the weight."""
    key = (m, x_dtype, out_dtype, epilogue, torch.get_num_threads())
    kernel = w.route(key)
    if kernel is None:
        from octavo.ops.dispatch.choice import kernel_for

        kernel = kernel_for(w, m, x_dtype, out_dtype, epilogue)
        w.remember(key, kernel)
    return kernel


def _contiguous(norm: Norm | None) -> Norm | None:
    if norm is None or all(v is None or v.is_contiguous() for v in (norm.weight, norm.bias)):
        return norm
    weight, bias = (None if v is None else v.contiguous() for v in (norm.weight, norm.bias))
    return Norm(norm.kind, weight, bias, norm.eps, norm.block)


def _epilogue(bias: torch.Tensor | None, norm: Norm | None, activation: str | None) -> _core.Epilogue:
    """The core's epilogue for these addresses; it holds plain values, so one is reused while they are the same."""

    def address(vector: torch.Tensor | None) -> int:
        return 0 if vector is None else vector.data_ptr()

    b = address(bias)
    key: tuple[Any, ...]
    if norm is None:
        key = (b, 0, 0, 0, 0.0, 256, _ACTIVATION_KINDS[activation])
    else:
        key = (b, _NORM_KINDS[norm.kind], address(norm.weight), address(norm.bias), norm.eps, norm.block,
               _ACTIVATION_KINDS[activation])  # fmt: skip
    epilogue = _epilogues.get(key)
    if epilogue is None:
        if len(_epilogues) >= 4096:
            _epilogues.clear()
        epilogue = _epilogues[key] = _core.Epilogue(*key)
    return epilogue
