"""What kernels of a linear layer's gradients are held to: FP64 on the operands as their class rounds them."""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch

from octavo import _core
from octavo.ops._types import ACTIVATIONS
from octavo.ops.checks import BF16_TOLERANCE, FP32_TOLERANCE, relative_to_largest, tolerance, weight_on
from octavo.ops.epilogue import Norm, apply_epilogue
from octavo.ops.linear_backward import run_epilogue, run_grad_input, run_grad_weight, run_gradients
from octavo.ops.linear_call import Layer
from octavo.ops.packing import PackedWeight, pack_as
from octavo.ops.reference import dequantize_reference, quantize_reference

_TAILS = (19, 130, 257)
# M, N, K: the smallest, tails, and one that crosses the passes over the rows of grad_weight.
_SHAPES = ((1, 1, 1), (7, 64, 31), _TAILS, (1187, 33, 70))
_NORMS = (None, "layer", "rms", "block", "swish_rms")
_FLOATS = (torch.float32, torch.bfloat16)


def grad_input_reference(grad: torch.Tensor, w: PackedWeight, numerics: str) -> torch.Tensor:
    """grad [M, N] W [N, K] in FP64, operands rounded as ``numerics`` says."""
    if numerics == "bf16":
        return grad.bfloat16().double() @ w.dequantize().bfloat16().double()
    assert w.scale is not None
    folded = grad.float() * w.scale
    rounded = quantize_reference(folded, "e5m2" if numerics == "e4m3_row" else "int8")
    return dequantize_reference(*rounded) @ w.codes.double()


def grad_weight_reference(grad: torch.Tensor, x: torch.Tensor, numerics: str) -> torch.Tensor:
    """grad^T [N, M] x [M, K] in FP64, operands rounded as ``numerics`` says."""
    if numerics == "bf16":
        return grad.bfloat16().double().T @ x.bfloat16().double()
    left = dequantize_reference(*quantize_reference(grad.T.contiguous(), "e5m2"))
    return left @ dequantize_reference(*quantize_reference(x.T.contiguous(), "e4m3")).T


def check_grad_input(kernel: _core.Kernel) -> str:
    """Every shape in FP32, the one with tails in BF16 too, on weights of every format the class takes."""
    numerics, device = kernel.numerics.name, kernel.device.name
    formats = ("bf16", "e4m3_row", "e4m3_block", "int8_dynamic") if numerics == "bf16" else (numerics,)
    for (m, n, k), dtype in [*((shape, torch.float32) for shape in _SHAPES), (_TAILS, torch.bfloat16)]:
        g = torch.Generator().manual_seed(m + n + k)
        grad = (torch.randn(m, n, generator=g) * (1 + torch.randn(m, 1, generator=g).abs())).to(dtype)
        for format in formats:
            w = pack_as(torch.randn(n, k, generator=g), format)
            found = run_grad_input(kernel, grad.to(device), weight_on(w, device), dtype)
            error = relative_to_largest(found, grad_input_reference(grad, w, numerics))
            bound = tolerance(kernel, dtype)
            if not error <= bound:
                return f"linear_grad_input m={m} n={n} k={k}, weight {format}: {_miss(bound, error)}"
    return ""


def check_grad_weight(kernel: _core.Kernel) -> str:
    """Every shape, the types of the operands taking turns; and the bits of a call that makes grad_input too."""
    device = kernel.device.name
    for i, (m, n, k) in enumerate((*_SHAPES, _TAILS)):
        dtype, x_dtype = _FLOATS[i % 2], _FLOATS[i // 2 % 2]
        g = torch.Generator().manual_seed(m + n + k)
        grad = torch.randn(m, n, generator=g).to(dtype)
        x = torch.randn(m, k, generator=g).to(x_dtype)
        found = run_grad_weight(kernel, grad.to(device), x.to(device))
        error = relative_to_largest(found, grad_weight_reference(grad, x, kernel.numerics.name))
        if not error <= kernel.tolerance:
            return f"linear_grad_weight m={m} n={n} k={k}: {_miss(kernel.tolerance, error)}"
    partners = [other for other in _core.kernels() if other.works_with(kernel)]
    return next((failure for other in partners if (failure := _pair_failure(other, kernel))), "")


def _pair_failure(by_x: _core.Kernel, by_weight: _core.Kernel) -> str:
    """Empty where one call gives the bits of both kernels alone, tails and padded sides included."""
    numerics, device = by_x.numerics.name, by_x.device.name
    for (m, n, k), dtype in itertools.product(_SHAPES, _FLOATS):
        g = torch.Generator().manual_seed(m + n + k)
        w = weight_on(pack_as(torch.randn(n, k, generator=g), numerics), device)
        grad, x = (torch.randn(m, size, generator=g).to(device, dtype) for size in (n, k))
        found = run_gradients(by_x, by_weight, grad, w, x)
        alone = run_grad_input(by_x, grad, w, dtype), run_grad_weight(by_weight, grad, x)
        if not all(map(torch.equal, found, alone)):
            return f"linear_gradients m={m} n={n} k={k}, {dtype}: other bits than of {by_x.name} and {by_weight.name}"
    return ""


def check_epilogue_backward(kernel: _core.Kernel) -> str:
    """Every norm with every activation, shapes and types taking turns, against FP64 autograd."""
    cases = itertools.product(enumerate(_NORMS), enumerate((None, *ACTIVATIONS)))
    for (i, kind), (j, activation) in cases:
        if kind == "swish_rms" and activation is not None:
            continue  # refused: the norm is its own activation
        shape, dtype = ((37, 67), (19, 130), (3, 5))[(i + j) % 3], _FLOATS[(i + j) % 2]
        if failure := _epilogue_failure(kernel, shape, kind, activation, dtype):
            return failure
    return ""


def _epilogue_failure(
    kernel: _core.Kernel, shape: tuple[int, int], kind: str | None, activation: str | None, dtype: torch.dtype
) -> str:
    m, n = shape
    g = torch.Generator().manual_seed(m * n)
    z, grad = ((torch.randn(m, n, generator=g) * 2 + 0.3).to(dtype) for _ in range(2))
    weight = 1 + 0.2 * torch.randn(n, generator=g) if kind in ("layer", "rms", "swish_rms") else None
    shift = 0.3 * torch.randn(n, generator=g) if kind == "layer" else None
    norm = None if kind is None else Norm(kind, weight, shift, 1e-5, 48)
    leaves = [t.requires_grad_() for t in (z.double(), weight, shift) if t is not None]
    with torch.enable_grad():
        exact = apply_epilogue(leaves[0], None, norm, activation)
        expected = list(torch.autograd.grad(exact, leaves, grad.double()))
    expected.insert(1, expected[0].sum(0))
    there = kernel.device.name
    if norm is not None:
        weight_there, shift_there = (None if t is None else t.detach().to(there) for t in (weight, shift))
        norm = replace(norm, weight=weight_there, bias=shift_there)
    layer = Layer(pack_as(torch.zeros(n, 1, device=there), "bf16"), None, norm, activation, False, dtype, dtype)
    gz, extra = torch.empty(m, n, dtype=dtype, device=there), torch.empty(m, n, device=there)
    sums = [None if lacks else torch.empty(n, device=there) for lacks in (False, weight is None, shift is None)]
    run_epilogue(kernel, z.to(there), grad.to(there), layer.epilogue, gz, extra, sums[0], sums[1], sums[2])
    found = [gz, *(s for s in sums if s is not None), extra]
    bounds = [BF16_TOLERANCE if dtype == torch.bfloat16 else FP32_TOLERANCE, *[FP32_TOLERANCE] * (len(found) - 1)]
    for name, y, ref, bound in zip(
        ("z", "bias", "norm weight", "norm bias")[: len(expected)] + ("residual",), found, [*expected, expected[0]],
        bounds, strict=True,
    ):  # fmt: skip
        if not (error := relative_to_largest(y, ref)) <= bound:
            return (
                f"linear_epilogue_backward m={m} n={n}, norm {kind}, activation {activation}, gradient of {name}: "
                f"{_miss(bound, error)}"
            )
    return ""


def _miss(bound: float, error: float) -> str:
    return f"expected error <= {bound:.1e} of the largest element, found {error:.1e}"
