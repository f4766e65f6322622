"""Gradients of a linear layer by kernels: of what the norm saw (z), then of x and of the weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from octavo import _core
from octavo.ops import kernels
from octavo.ops._types import DTYPES, choice
from octavo.ops.packing import PackedWeight
from octavo.ops.quantization import as_rows

# The classes of each direction; ``fp32`` is torch.
GRAD_INPUT = ("fp32", "bf16", "e4m3_row", "int8_dynamic")
GRAD_WEIGHT = ("fp32", "bf16", "e4m3_row")
# What the name of one class means: the classes of grad_input and of grad_weight.
BACKWARDS = {
    "bf16": ("bf16", "bf16"),
    "e4m3_row": ("e4m3_row", "e4m3_row"),
    "int8_dynamic": ("int8_dynamic", "bf16"),
    "fp32": ("fp32", "fp32"),
}
Backward = str | tuple[str, str]
# The classes of weights whose codes and scales a class of grad_input multiplies; others read any.
_OWN_WEIGHTS = {"e4m3_row": ("e4m3_row", "e4m3_row_fast", "e4m3_weight_only"), "int8_dynamic": ("int8_dynamic",)}
_F32 = int(_core.DType.f32)
_chosen: dict[tuple[Any, ...], _core.Kernel] = {}


def backward_classes(backward: Backward) -> tuple[str, str]:
    """The classes of grad_input and of grad_weight: of a pair, or of a name in ``BACKWARDS``. Raises ValueError."""
    if isinstance(backward, str):
        choice("backward", backward, tuple(BACKWARDS))
        return BACKWARDS[backward]
    if not isinstance(backward, tuple) or len(backward) != 2:
        raise ValueError(f"backward: found {backward!r}; expected a class, or a pair (grad_input, grad_weight) of them")
    choice("backward[0], of grad_input", backward[0], GRAD_INPUT)
    choice("backward[1], of grad_weight", backward[1], GRAD_WEIGHT)
    return backward


def multiplies(grad_input: str, numerics: str) -> bool:
    """Whether grad_input of this class can read a weight of class ``numerics``."""
    return numerics in _OWN_WEIGHTS.get(grad_input, (numerics,))


def check_codes(grad_input: str, numerics: str) -> None:
    """Raise ValueError unless grad_input of this class can read a weight of class ``numerics``."""
    if not multiplies(grad_input, numerics):
        raise ValueError(
            f"backward: {grad_input!r} multiplies a weight of class {' or '.join(_OWN_WEIGHTS[grad_input])}, this one "
            f"is {numerics}; use 'bf16' or 'fp32', or give backward_weight"
        )


def by_kernels(device: torch.device, classes: tuple[str, str]) -> bool:
    """Whether gradients come from saved values and kernels; else they are torch's, in FP32, the product made again.

    A CPU has kernels of every class. On CUDA octavo's must be there and qualified, torch's round FP32 gradients.
    """
    if device.type == "cpu":
        return True
    needed: list[tuple[_core.Op, str | None]] = [(_core.Op.linear_epilogue_backward, None)]
    products = (_core.Op.linear_grad_input, _core.Op.linear_grad_weight)
    needed += [(op, numerics) for op, numerics in zip(products, classes, strict=True) if numerics != "fp32"]
    return all(kernels.has_own(op, device.type, numerics) for op, numerics in needed)


def gradients(
    grad: torch.Tensor,
    x: torch.Tensor,
    z: torch.Tensor | None,
    w: PackedWeight,
    epilogue: _core.Epilogue,
    classes: tuple[str, str],
    residual: torch.dtype | None,
    before: bool,
    needs: Sequence[bool],
) -> list[torch.Tensor | None]:
    """Gradients of x, weight, bias, norm weight, norm bias and residual; None where ``needs`` has none.

    ``grad`` [..., N] and ``z`` [..., N], what the norm saw, have the output's type; ``z`` is None where neither norm
    nor activation follows the product. Those of x and the residual have their types, the others are FP32. The gradient
    of z is rounded to BF16, unless a product of it is wanted in FP32.
    """
    need_x, need_weight, need_bias, need_norm_weight, need_norm_bias, need_residual = needs
    rows = as_rows(grad)
    m, n = rows.shape
    early = need_residual and before
    gz: torch.Tensor | None
    exact = (need_x and classes[0] == "fp32") or (need_weight and classes[1] == "fp32")
    gz_dtype = torch.float32 if exact else torch.bfloat16
    plain = z is None and (rows.dtype in (torch.bfloat16, gz_dtype) or not (need_x or need_weight))
    if plain and not need_bias:
        gz, g_bias, g_norm_weight, g_norm_bias, g_early = rows, None, None, None, None
    else:
        wanted = need_x or need_weight
        gz = rows if plain else rows.new_empty((m, n), dtype=gz_dtype) if wanted else None
        g_bias, g_norm_weight, g_norm_bias = (
            rows.new_empty(n, dtype=torch.float32) if need else None
            for need in (need_bias, need_norm_weight, need_norm_bias)
        )
        g_early = rows.new_empty((m, n), dtype=residual) if early and z is not None else None
        run_epilogue(
            _kernel_for(_core.Op.linear_epilogue_backward, rows.device, m, n, 0, rows.dtype, gz_dtype, None),
            z, rows, epilogue, None if plain else gz, g_early, g_bias, g_norm_weight, g_norm_bias,
        )  # fmt: skip
    g_residual = None
    if need_residual:
        g_residual = (rows if g_early is None else g_early).reshape(grad.shape).to(residual)
    g_x = g_weight = None
    if need_x or need_weight:
        assert gz is not None
        g_x, g_weight = _products(gz, as_rows(x), w, classes, need_x, need_weight)
    return [None if g_x is None else g_x.view(x.shape), g_weight, g_bias, g_norm_weight, g_norm_bias, g_residual]


def _products(
    gz: torch.Tensor, x: torch.Tensor, w: PackedWeight, classes: tuple[str, str], need_x: bool, need_weight: bool
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """gz W [M, K] and gz^T x [N, K] by the kernels dispatch chooses, in one call where both round gz alike."""
    m, n = gz.shape
    by_x = by_weight = None
    if need_x and classes[0] != "fp32":
        by_x = _kernel_for(_core.Op.linear_grad_input, gz.device, m, n, w.k, gz.dtype, x.dtype, classes[0])
    if need_weight and classes[1] != "fp32":
        master = torch.float32 if w.master is None else w.master.dtype
        by_weight = _kernel_for(_core.Op.linear_grad_weight, gz.device, m, n, w.k, gz.dtype, master, classes[1])
    if by_x is not None and by_weight is not None and by_x.works_with(by_weight):
        return run_gradients(by_x, by_weight, gz, w, x)
    g_x = g_weight = None
    if need_x:
        g_x = (gz.float() @ w.dequantize()).to(x.dtype) if by_x is None else run_grad_input(by_x, gz, w, x.dtype)
    if need_weight:
        g_weight = gz.float().T @ x.float() if by_weight is None else run_grad_weight(by_weight, gz, x)
    return g_x, g_weight


def run_epilogue(
    kernel: _core.Kernel,
    z: torch.Tensor | None,
    grad: torch.Tensor,
    epilogue: _core.Epilogue,
    gz: torch.Tensor | None,
    extra: torch.Tensor | None,
    bias: torch.Tensor | None,
    norm_weight: torch.Tensor | None,
    norm_bias: torch.Tensor | None,
) -> None:
    """Launch: the gradient of z [M, N] into ``gz`` and ``extra``, its sums over rows into the vectors [N]."""
    m, n = grad.shape
    g_bias, g_norm_weight, g_norm_bias = (0 if v is None else v.data_ptr() for v in (bias, norm_weight, norm_bias))
    _core.linear_epilogue_backward(
        kernel, 0 if z is None else z.data_ptr(), grad.data_ptr(), grad.stride(0) if m > 1 else n,
        int(DTYPES[grad.dtype]), m, n, epilogue, *_address_and_type(gz), *_address_and_type(extra),
        g_bias, g_norm_weight, g_norm_bias, kernels.stream_of(grad),
    )  # fmt: skip


def run_grad_input(kernel: _core.Kernel, gz: torch.Tensor, w: PackedWeight, dtype: torch.dtype) -> torch.Tensor:
    """gz [M, N] W [N, K] -> [M, K] in ``dtype``."""
    if kernel.library != "octavo":
        kernel.count()
        external: torch.Tensor = kernels.externals[kernel.name](gz, w).to(dtype)
        return external
    m = gz.shape[0]
    out = gz.new_empty((m, w.k), dtype=dtype)
    stride = gz.stride(0) if m > 1 else w.n
    _core.linear_grad_input(
        kernel, gz.data_ptr(), m, stride, int(DTYPES[gz.dtype]), w.core(), out.data_ptr(), int(DTYPES[dtype]),
        kernels.stream_of(gz),
    )  # fmt: skip
    return out


def run_grad_weight(kernel: _core.Kernel, gz: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """gz [M, N]^T x [M, K] -> [N, K] FP32, or what a kernel of another library gives."""
    if kernel.library != "octavo":
        kernel.count()
        return kernels.externals[kernel.name](gz, x)
    (m, n), k = gz.shape, x.shape[1]
    out = gz.new_empty((n, k), dtype=torch.float32) if gz.is_cuda else _core.empty_output((n, k))
    _core.linear_grad_weight(
        kernel, gz.data_ptr(), gz.stride(0) if m > 1 else n, int(DTYPES[gz.dtype]),
        x.data_ptr(), x.stride(0) if m > 1 else k, int(DTYPES[x.dtype]), m, n, k, out.data_ptr(),
        kernels.stream_of(gz),
    )  # fmt: skip
    return out


def run_gradients(
    by_x: _core.Kernel, by_weight: _core.Kernel, gz: torch.Tensor, w: PackedWeight, x: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """gz [M, N] W [N, K] in x's type and gz^T x [M, K] in FP32, by kernels that work together (octavo's, CUDA's)."""
    m = gz.shape[0]
    g_x, g_weight = gz.new_empty((m, w.k), dtype=x.dtype), gz.new_empty((w.n, w.k), dtype=torch.float32)
    _core.linear_gradients(
        by_x, by_weight, gz.data_ptr(), m, gz.stride(0) if m > 1 else w.n, int(DTYPES[gz.dtype]), w.core(),
        g_x.data_ptr(), int(DTYPES[x.dtype]), x.data_ptr(), x.stride(0) if m > 1 else w.k, int(DTYPES[x.dtype]),
        g_weight.data_ptr(), kernels.stream_of(gz),
    )  # fmt: skip
    return g_x, g_weight


def _address_and_type(tensor: torch.Tensor | None) -> tuple[int, int]:
    return (0, _F32) if tensor is None else (tensor.data_ptr(), int(DTYPES[tensor.dtype]))


def _kernel_for(
    op: _core.Op, device: torch.device, m: int, n: int, k: int, in_dtype: torch.dtype, out_dtype: torch.dtype,
    numerics: str | None,
) -> _core.Kernel:  # fmt: skip
    """The fastest qualified kernel of ``op`` and class for m rows, chosen once."""
    key = (kernels.generation, _core.threads(), op, device.type, m, n, k, in_dtype, out_dtype, numerics)
    kernel = _chosen.get(key)
    if kernel is None:
        from octavo.ops import qualification
        from octavo.ops.dispatch.choice import choose  # dispatch measures by running operators
        from octavo.ops.dispatch.problem import Problem

        x_name, y_name = (str(dtype).removeprefix("torch.") for dtype in (in_dtype, out_dtype))
        problem = Problem(op.name, m, n, k, x_name, y_name, device=device.type, numerics=numerics)
        kernel = kernels.by_name(choose(problem).kernel)
        if qualification.is_settled(op):
            if len(_chosen) >= 4096:
                _chosen.clear()
            # The first choice of all qualifies kernels, which starts a new generation.
            _chosen[(kernels.generation, *key[1:])] = kernel
    return kernel
