"""What qualifies the batches of a linear kernel: layers of one shape in one launch."""

from __future__ import annotations

from typing import cast

import torch

from octavo import _core
from octavo.ops.checks import relative_to_largest, tolerance
from octavo.ops.epilogue import Norm
from octavo.ops.grouped import side_by_side
from octavo.ops.packing import PackedWeight, pack_as
from octavo.ops.prepared import prepare_linear
from octavo.ops.reference import linear_reference

_COUNT = 3
_SHAPES = ((5, 16, 48), (70, 67, 33), (130, 264, 128))  # M, N, K: aligned, odd, more than one tile


def batch_failure(kernel: _core.Kernel) -> str:
    """Layers with and without a norm, their x in columns of one tensor, against FP64; "" where all are right."""
    for shape in _SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            for norm in (None, "layer", "rms"):
                if failure := _failure(kernel, shape, dtype, norm):
                    return failure
    return ""


def _failure(kernel: _core.Kernel, shape: tuple[int, int, int], dtype: torch.dtype, norm: str | None) -> str:
    m, n, k = shape
    g = torch.Generator().manual_seed(m + n + k)
    device, numerics = kernel.device.name, kernel.numerics.name
    weights = [pack_as(torch.randn(n, k, generator=g) / k**0.5, numerics) for _ in range(_COUNT)]
    xs = torch.randn(m, _COUNT * k, generator=g).to(dtype)
    biases, factors = torch.randn(2, _COUNT, n, generator=g)
    there = [
        prepare_linear(w, bias, None if norm is None else Norm(norm, factor), "silu", x_dtype=dtype)
        for w, bias, factor in zip(_side_by_side(weights, device), biases.to(device), factors.to(device), strict=True)
    ]
    for layer in there:
        _core.set_prepared_kernel(layer, m, False, kernel)
    parts = xs.to(device).split(k, dim=1)
    found = _core.serve_group(tuple(there), parts, side_by_side(there, parts))
    for i, (y, x, w) in enumerate(zip(found, xs.split(k, dim=1), weights, strict=True)):
        own = None if norm is None else Norm(norm, factors[i])
        expected = linear_reference(x, w.dequantize().double(), numerics, biases[i], own, "silu", None, False)
        error = relative_to_largest(cast(torch.Tensor, y), expected)
        bound = tolerance(kernel, dtype, norm)
        if not error <= bound:
            return (
                f"batch of {_COUNT} layers m={m} n={n} k={k}, norm {norm}, layer {i}: expected error <= {bound:.1e} of "
                f"the largest element, found {error:.1e}"
            )
    return ""


def _side_by_side(weights: list[PackedWeight], device: str) -> list[PackedWeight]:
    """The same codes and scales on the device, each kind in one tensor."""
    codes = torch.stack([w.codes for w in weights]).to(device)
    given = [w.scale for w in weights if w.scale is not None]
    scales = torch.stack(given).to(device) if given else [None] * len(weights)
    return [PackedWeight(c, s, w.numerics) for c, s, w in zip(codes, scales, weights, strict=True)]
