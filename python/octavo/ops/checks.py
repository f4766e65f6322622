"""What each family of kernels is held to before it may be chosen."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

import torch

from octavo import _core
from octavo.ops import kernels
from octavo.ops._types import FORMATS
from octavo.ops.epilogue import Norm
from octavo.ops.linear_call import ACTIVATION_FORMATS, run
from octavo.ops.packing import PackedWeight, activation_scaling, pack_as
from octavo.ops.quantization import CODES, SCALINGS, QuantizedTensor, scale_dtype, scale_shape
from octavo.ops.reference import linear_reference, quantize_reference

FP32_TOLERANCE = 1e-5  # of the largest reference element, per check
BF16_TOLERANCE = 2.0**-8

# M, N, K: the smallest, tails in each, multiples of 16 and of 128 for kernels that take no others, and one that crosses
# every blocking limit on all threads.
_TAILS = (19, 130, 257)
LINEAR_SHAPES = ((1, 1, 1), (1, 67, 515), (7, 64, 31), (37, 48, 272), (18, 256, 384), _TAILS, (211, 331, 1090))
QUANTIZE_SHAPES = ((1, 1), (5, 67), (67, 515), (3, 16390))


@dataclass(frozen=True)
class _Case:
    norm: str | None = None
    activation: str | None = None
    residual: bool = False
    before: bool = False
    dtype: torch.dtype = torch.float32


_PLAIN = _Case()
_CASES = (
    _Case("layer", "hardswish", dtype=torch.bfloat16),
    _Case("rms", "gelu", residual=True),
    _Case("block", "silu", residual=True, before=True, dtype=torch.bfloat16),
    _Case("swish_rms", dtype=torch.bfloat16),
    _Case(None, "sigmoid"),
    _Case(None, "relu", dtype=torch.bfloat16),
)


def check_linear(kernel: _core.Kernel) -> str:
    """Every shape bare, every epilogue on one with tails, and batches, against FP64 on dequantized operands."""
    takes = kernels.limits.get(kernel.name)
    shapes = [shape for shape in LINEAR_SHAPES if takes is None or takes(*shape)]
    if not shapes:
        return f"takes none of the shapes that kernels are checked on, {LINEAR_SHAPES}"
    half = kernel.product == _core.DType.bf16  # such a kernel serves BF16 outputs only
    for shape in shapes:
        if failure := _linear_failure(kernel, shape, _Case(dtype=torch.bfloat16) if half else _PLAIN):
            return failure
    for case in (case for case in _CASES if not half or case.dtype == torch.bfloat16):
        if failure := _linear_failure(kernel, _TAILS if _TAILS in shapes else shapes[0], case):
            return failure
    if kernel.takes_batches:
        from octavo.ops.batch_checks import batch_failure  # whose bounds are from here

        if failure := batch_failure(kernel):
            return failure
    return _codes_failure(kernel) or _codes_behind_norms_failure(kernel) if kernel.takes_codes else ""


def _linear_failure(kernel: _core.Kernel, shape: tuple[int, int, int], case: _Case) -> str:
    m, n, k = shape
    device = kernel.device.name
    numerics = kernel.numerics.name
    g = torch.Generator().manual_seed(m * 7919 + n * 31 + k)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=g)

    x = (normal(m, k) * (1 + normal(m, 1).abs()) + 0.1).to(case.dtype)
    w = pack_as(normal(n, k) / max(k, 1) ** 0.5, numerics)
    bias, residual = normal(n), normal(m, n).to(case.dtype) if case.residual else None
    norm = None
    if case.norm is not None:
        weight = None if case.norm == "block" else 1 + 0.1 * normal(n)
        norm = Norm(case.norm, weight, 0.1 * normal(n) if case.norm == "layer" else None)
    ref = linear_reference(x, w.dequantize().double(), numerics, bias, norm, case.activation, residual, case.before)

    def there(t: torch.Tensor | None) -> torch.Tensor | None:
        return None if t is None else t.to(device)

    if norm is not None:
        norm = Norm(norm.kind, there(norm.weight), there(norm.bias), norm.eps, norm.block)
    w = weight_on(w, device)
    y = run(x.to(device), w, there(bias), norm, case.activation, there(residual), case.before, kernel=kernel)
    error = relative_to_largest(y, ref)
    bound = tolerance(kernel, case.dtype, case.norm)
    if error <= bound:
        return ""
    epilogue = f", norm {case.norm}, activation {case.activation}" if case.norm or case.activation else ""
    return (
        f"linear m={m} n={n} k={k}{epilogue}: expected error <= {bound:.1e} of the largest element, found {error:.1e}"
    )


def weight_on(w: PackedWeight, device: str) -> PackedWeight:
    """``w`` with the same codes there."""
    if device == "cpu":
        return w
    return PackedWeight(w.codes.to(device), None if w.scale is None else w.scale.to(device), w.numerics)


def tolerance(kernel: _core.Kernel, dtype: torch.dtype, norm: str | None = None) -> float:
    """The largest error of an output of this type behind this norm, of the largest element."""
    if kernel.product == _core.DType.bf16:
        return 2 * BF16_TOLERANCE
    if dtype == torch.float32:
        return kernel.tolerance
    roundings = 2 if kernel.norm_input == _core.DType.bf16 and norm in ("rms", "block", "swish_rms") else 1
    return roundings * BF16_TOLERANCE + (kernel.tolerance if kernel.tolerance > FP32_TOLERANCE else 0.0)


_OUT_FORMATS: tuple[Literal["e4m3", "int8"], ...] = ("e4m3", "int8")
_CODE_SHAPES = ((1, 1, 1), _TAILS)


def _codes_failure(kernel: _core.Kernel) -> str:
    """Rows quantized before give the bits of the floats they came from, outputs those of quantizing the FP32 output."""
    numerics, device = kernel.numerics.name, kernel.device.name
    format = ACTIVATION_FORMATS.get(numerics)
    for m, n, k in _CODE_SHAPES:
        g = torch.Generator().manual_seed(m * 7919 + n * 31 + k)
        x, weight, bias = (torch.randn(*size, generator=g) for size in ((m, k), (n, k), (n,)))
        w, norm = weight_on(pack_as(weight, numerics), device), Norm("layer")
        there = bias.to(device)
        y = run(x.to(device), w, there, norm, "hardswish", kernel=kernel)
        if format is not None:
            scaling = activation_scaling(numerics)
            codes, scale = quantize_reference(x, format, scaling)
            rows = QuantizedTensor(codes.to(device), scale.to(device), format, scaling)
            wrong = int((~_same(run(rows, w, there, norm, "hardswish", kernel=kernel), y)).sum())
            if wrong:
                return f"linear m={m} n={n} k={k}, x in {format}: expected the bits of float x, found {wrong} others"
        for out in _OUT_FORMATS:
            q = run(x.to(device), w, there, norm, "hardswish", kernel=kernel, out_format=out)
            codes, scale = quantize_reference(y.cpu(), out)
            wrong = int((~_same(q.data.cpu().float(), codes.float())).sum()) + int((~_same(q.scale.cpu(), scale)).sum())
            if wrong:
                return (
                    f"linear m={m} n={n} k={k}, out {out}: expected quantize's codes and scales, found {wrong} others"
                )
    return ""


def _codes_behind_norms_failure(kernel: _core.Kernel) -> str:
    """Where a GEMM may norm and encode its rows itself: codes of an output that is as exact as one in BF16."""
    numerics, device = kernel.numerics.name, kernel.device.name
    m, n, k = 19, 128, 257
    g = torch.Generator().manual_seed(n)
    x, weight, bias, residual = (torch.randn(*size, generator=g) for size in ((m, k), (n, k), (n,), (m, n)))
    residual = residual.bfloat16().float()
    w = pack_as(weight, numerics)
    for kind in ("layer", "rms", "block"):
        ref = linear_reference(x, w.dequantize().double(), numerics, bias, Norm(kind), "hardswish", residual)
        there = (bias.to(device), Norm(kind), "hardswish", residual.to(device, torch.bfloat16))
        q = run(x.to(device), weight_on(w, device), *there, kernel=kernel, out_format="e4m3")
        y, scale = q.dequantize().double().cpu(), q.scale.double().cpu()[:, None]
        own = tolerance(kernel, torch.bfloat16, kind) * ref.abs().max()
        bound = torch.maximum(ref.abs() / 16, scale / 1024) + 17 / 16 * own  # half a step, of a value so far off
        wrong = int((~((y - ref).abs() <= bound)).sum())
        if wrong:
            return f"linear m={m} n={n} k={k}, norm {kind}, out e4m3: expected the nearest codes, found {wrong} others"
    return ""


def relative_to_largest(y: torch.Tensor, ref: torch.Tensor) -> float:
    """max |y - ref| / max |ref|; inf when y holds NaN where ref does not."""
    if ref.numel() == 0:
        return 0.0
    error = (y.double().cpu() - ref).abs().max() / ref.abs().max().clamp_min(1e-30)
    return float(error) if bool(error == error) else float("inf")


def check_quantize(kernel: _core.Kernel) -> str:
    """Codes and scales equal the definition, bit for bit, special values and all-zero rows included."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for format in CODES:
            for scaling in SCALINGS:
                words = (str(dtype).removeprefix("torch."), format, scaling)
                if not kernels.allows(kernel.formats, words):
                    continue
                for shape in QUANTIZE_SHAPES:
                    for pow2 in (False,) if scaling == "mx" else (False, True):
                        if failure := _quantize_failure(kernel, shape, dtype, format, scaling, pow2):
                            return failure
    return ""


def _quantize_failure(
    kernel: _core.Kernel, shape: tuple[int, int], dtype: torch.dtype, format: str, scaling: str, pow2: bool
) -> str:
    m, k = shape
    device = kernel.device.name
    x = _quantize_input(m, k, dtype)
    data = torch.empty(m, k, dtype=FORMATS[format], device=device)
    scale = torch.empty(scale_shape(x.shape, scaling), dtype=scale_dtype(scaling), device=device)
    kernels.run_quantize(kernel, x.to(device), CODES[format], _core.Scaling[scaling], pow2, data, scale)
    codes, scales = quantize_reference(x, format, scaling, pow2)
    wrong_scales = int((~same_bits(scale.cpu(), scales)).sum())
    wrong_codes = int((~same_bits(data.cpu(), codes)).sum())
    if wrong_codes == 0 and wrong_scales == 0:
        return ""
    name = str(dtype).removeprefix("torch.")
    return (
        f"quantize {name} [{m}, {k}] -> {format}, {scaling}{', pow2' if pow2 else ''}: expected equal codes "
        f"and scales, found {wrong_codes} wrong codes and {wrong_scales} wrong scales"
    )


@functools.cache
def _quantize_input(m: int, k: int, dtype: torch.dtype) -> torch.Tensor:
    """Rows of many sizes, with special values where there are enough; the same for every format and scaling."""
    g = torch.Generator().manual_seed(m + k)
    x = torch.randn(m, k, generator=g) * torch.exp2(torch.randint(-12, 12, (m, 1), generator=g))
    if m > 2:
        x[0] = 0
        x[1, k // 2] = float("inf")
        x[2, k // 3] = float("nan")
    if m > 4:
        x[3] = x[3].relu()
        x[4] = x[4] * torch.exp2(torch.randint(-30, 1, (k,), generator=g))  # subnormal codes, ties to zero
        x[4, ::7] = -0.0
    return x.to(dtype)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Element by element: equal bits, the sign of zero included, or NaN in both."""
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[a.element_size()]
    return (a.view(integers) == b.contiguous().view(integers)) | (a.float().isnan() & b.float().isnan())


def _same(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a == b) | (a.isnan() & b.isnan())
