"""What the kernels of ``add_norm`` are held to before they may be chosen."""

from __future__ import annotations

from itertools import product

import torch

from octavo import _core
from octavo.ops._types import NORMS
from octavo.ops.add_norm import joined, run, run_backward
from octavo.ops.checks import BF16_TOLERANCE, FP32_TOLERANCE, relative_to_largest
from octavo.ops.epilogue import Norm

# B, tokens of each part, D: the smallest, a Wukong's, tails of lanes and of groups of four.
SHAPES = ((1, (1,), 1), (5, (16, 16), 32), (3, (5, 1, 20), 37), (2, (27,), 130))


def check_add_norm(kernel: _core.Kernel) -> str:
    """Each norm and none, with a residual and without, rows and columns contiguous, each type, both ways, in FP64."""
    for shape, dtype, kind, across in product(
        SHAPES, (torch.float32, torch.bfloat16), (None, *NORMS), ("none", "parts", "residual")
    ):
        for has_residual in (False, True):
            if failure := _failure(kernel, shape, dtype, kind, across, has_residual):
                return failure
    return ""


def _failure(
    kernel: _core.Kernel, shape: tuple[int, tuple[int, ...], int], dtype: torch.dtype, kind: str | None, across: str,
    has_residual: bool,
) -> str:  # fmt: skip
    batch, tokens, depth = shape
    g = torch.Generator().manual_seed(depth)

    def operand(rows: int, is_across: bool) -> torch.Tensor:
        t = torch.randn((batch, depth, rows) if is_across else (batch, rows, depth), generator=g).to(dtype)
        return t.mT if is_across else t

    # The last part lies across: rows and columns side by side in one panel.
    parts = [operand(rows, across == "parts" and i == len(tokens) - 1) for i, rows in enumerate(tokens)]
    residual = operand(sum(tokens), across == "residual") if has_residual else None
    weight = torch.rand(depth, generator=g) + 0.5 if kind in ("layer", "rms", "swish_rms") else None
    bias = torch.randn(depth, generator=g) if kind == "layer" else None
    norm = None if kind is None else Norm(kind, weight, bias, block=24)
    expected = joined([p.double() for p in parts], None if residual is None else residual.double(), norm)
    bound = FP32_TOLERANCE if dtype == torch.float32 else BF16_TOLERANCE
    saved = torch.empty_like(expected, dtype=dtype)
    y, transposed = run(parts, residual, norm, True, kernel, saved)
    results = [("y", y, expected), ("y^T", transposed.mT, expected)]
    # The backward starts from what the norm saw, whatever it was the sum of; over one column gradients are zero.
    if not has_residual and depth > 1:
        grads = operand(sum(tokens), False), operand(sum(tokens), True)
        of_z, *of_vectors = run_backward(grads[0], grads[1].mT, saved, norm, kernel)
        leaves = [saved.double(), *(v for v in (weight, bias) if v is not None)]
        for leaf in leaves:
            leaf.requires_grad_()
        with torch.enable_grad():
            total = (joined(leaves[:1], None, norm) * (grads[0].double() + grads[1].double())).sum()
        wanted = torch.autograd.grad(total, leaves)
        named = zip(("gradient of z", "of the weight", "of the bias"), (of_z, *of_vectors), wanted, strict=False)
        results += [(name, result, exact) for name, result, exact in named if result is not None]
    for name, result, exact in results:
        found = relative_to_largest(result, exact)
        if not found <= bound:
            return (
                f"add_norm b={batch}, tokens {list(tokens)}, d={depth} {dtype}, {kind or 'no'} norm, "
                f"{'a' if has_residual else 'no'} residual, {across} across: expected {name} within {bound:.1e} of the "
                f"largest element, found {found:.1e}"
            )
    return ""
