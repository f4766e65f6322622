"""The eager path of ``linear``: arguments checked once, a kernel chosen once, the prepared call remembered."""

from __future__ import annotations

import torch

from octavo import _core
from octavo.ops import kernels
from octavo.ops._types import ACTIVATIONS, choice, expect_tensor
from octavo.ops.epilogue import Norm, apply_epilogue, describe
from octavo.ops.packing import PackedWeight
from octavo.ops.quantization import as_rows

_FLOATS = (torch.float32, torch.bfloat16)
_F32 = int(_core.DType.f32)
_CODES = {torch.float32: _F32, torch.bfloat16: int(_core.DType.bf16)}
_NORM_KINDS = {None: 0, "layer": 1, "rms": 2, "block": 3}
_ACTIVATION_KINDS = {None: 0} | {name: 1 + i for i, name in enumerate(ACTIVATIONS)}


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
        if not isinstance(norm, Norm):
            raise TypeError(f"norm: expected an octavo.ops.Norm, found {type(norm).__name__}")
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
    """The eager path of :func:`linear`, without gradients. ``kernel`` runs that one instead of the chosen one.

    Arguments are checked and a kernel is chosen once per combination of types, shape of x and epilogue; the prepared
    call is remembered on the weight.
    """
    try:
        bias = bias if bias is None or bias.is_contiguous() else bias.contiguous()
        norm = _contiguous(norm)
        key = (
            kernel, x.shape, x.dtype, x.get_device(), out_dtype, activation, residual_before_norm,
            None if residual is None else (residual.shape, residual.dtype, residual.get_device()),
            None if out is None else (out.shape, out.dtype, out.stride(), out.get_device()),
            0 if bias is None else bias.data_ptr(),
            None if norm is None else (norm.kind, norm.eps, norm.block, norm.addresses()),
        )  # fmt: skip
    except (AttributeError, TypeError):  # no tensors: say which
        check(x, w, bias, norm, activation, residual, out_dtype, out)
        raise
    call = w.route(key)
    if call is None:
        check(x, w, bias, norm, activation, residual, out_dtype, out)
        call = _Call(x, w, bias, norm, activation, residual, residual_before_norm, out_dtype, out, kernel)
        w.remember(key, call)
    result: torch.Tensor = call(x, w, residual, out)
    return result


class _Call:
    """One combination of arguments, checked, with its kernel and everything that does not change between calls."""

    __slots__ = ("before", "core", "dtype", "epilogue", "k", "kernel", "m", "n", "parts", "shape", "x_code", "y_code")

    def __init__(
        self,
        x: torch.Tensor,
        w: PackedWeight,
        bias: torch.Tensor | None,
        norm: Norm | None,
        activation: str | None,
        residual: torch.Tensor | None,
        before: bool,
        out_dtype: torch.dtype | None,
        out: torch.Tensor | None,
        kernel: _core.Kernel | None,
    ) -> None:
        self.shape, self.n, self.k = torch.Size((*x.shape[:-1], w.n)), w.n, w.k
        self.m = x.shape[:-1].numel()
        self.dtype = out.dtype if out is not None else x.dtype if out_dtype is None else out_dtype
        self.x_code, self.y_code = _CODES[x.dtype], _CODES[self.dtype]
        # Detached, so that they keep alive what the key's addresses name when a parameter gets other data.
        bias, norm = None if bias is None else bias.detach(), _detached(norm)
        self.parts = (bias, norm, activation)
        self.before = before
        where = None if residual is None else "before" if before else "after"
        words = describe(bias is not None, norm.kind if norm else None, activation, where)
        self.kernel = kernel or _kernel_for(w, self.m, x.dtype, self.dtype, words)
        self.epilogue = _epilogue(bias, norm, activation)
        self.core = self.kernel.library == "octavo"

    def __call__(
        self, x: torch.Tensor, w: PackedWeight, residual: torch.Tensor | None, out: torch.Tensor | None
    ) -> torch.Tensor:
        m, n, k = self.m, self.n, self.k
        y = torch.empty(self.shape, dtype=self.dtype, device=x.device) if out is None else out
        if m == 0 or n == 0:
            return y
        rows = x if x.is_contiguous() else as_rows(x)
        if not self.core:
            return self._run_external(x, w, residual, y)
        r = None if residual is None else as_rows(residual)
        _core.linear(
            self.kernel,
            rows.data_ptr(),
            m,
            k if m == 1 or (rows is x and x.is_contiguous()) else rows.stride(0),
            self.x_code,
            w.core(),
            y.data_ptr(),
            n if out is None or m == 1 else as_rows(y).stride(0),
            self.y_code,
            self.epilogue,
            0 if r is None else r.data_ptr(),
            0 if r is None else r.stride(0) if m > 1 else n,
            _F32 if r is None else _CODES[r.dtype],
            self.before,
            torch.cuda.current_stream(x.device).cuda_stream if x.is_cuda else 0,
        )
        return y

    def _run_external(
        self, x: torch.Tensor, w: PackedWeight, residual: torch.Tensor | None, y: torch.Tensor
    ) -> torch.Tensor:
        bias, norm, activation = self.parts
        self.kernel.count()
        z = kernels.externals[self.kernel.name](as_rows(x), w).float()
        r = None if residual is None else as_rows(residual)
        return y.copy_(apply_epilogue(z, bias, norm, activation, r, self.before).view(self.shape))


def _kernel_for(w: PackedWeight, m: int, x_dtype: torch.dtype, out_dtype: torch.dtype, epilogue: str) -> _core.Kernel:
    from octavo.ops.dispatch.choice import kernel_for  # dispatch measures by running linear

    return kernel_for(w, m, x_dtype, out_dtype, epilogue)


def _contiguous(norm: Norm | None) -> Norm | None:
    if norm is None or all(v is None or v.is_contiguous() for v in (norm.weight, norm.bias)):
        return norm
    weight, bias = (None if v is None else v.contiguous() for v in (norm.weight, norm.bias))
    return Norm(norm.kind, weight, bias, norm.eps, norm.block)


def _detached(norm: Norm | None) -> Norm | None:
    if norm is None:
        return None
    weight, bias = (None if v is None else v.detach() for v in (norm.weight, norm.bias))
    return Norm(norm.kind, weight, bias, norm.eps, norm.block)


def _epilogue(bias: torch.Tensor | None, norm: Norm | None, activation: str | None) -> _core.Epilogue:
    address = 0 if bias is None else bias.data_ptr()
    if norm is None:
        return _core.Epilogue(address, 0, 0, 0, 0.0, 256, _ACTIVATION_KINDS[activation])
    weight, shift = norm.addresses()
    kind = _NORM_KINDS[norm.kind]
    return _core.Epilogue(address, kind, weight, shift, norm.eps, norm.block, _ACTIVATION_KINDS[activation])
