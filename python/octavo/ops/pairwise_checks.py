"""What the pairwise kernels are held to before they may be chosen."""

from __future__ import annotations

import torch

from octavo import _core
from octavo.ops.checks import BF16_TOLERANCE, FP32_TOLERANCE, relative_to_largest
from octavo.ops.pairwise import PAIRS, run
from octavo.ops.reference import pairwise_reference

# B, F, G, D: the smallest, tails in each, DLRM's 27 features, more rows and columns than a tile on few samples.
SHAPES = ((1, 1, 1, 1), (3, 2, 37, 5), (5, 27, 27, 64), (61, 33, 17, 31), (2, 130, 70, 129))


def check_pairwise_dots(kernel: _core.Kernel) -> str:
    """Every pair, both triangles and the product with a triangle, in each type and order of strides, in FP64."""
    for shape in SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            for across in (False, True):
                if failure := _failure(kernel, shape, dtype, across):
                    return failure
    return ""


def _failure(kernel: _core.Kernel, shape: tuple[int, int, int, int], dtype: torch.dtype, across: bool) -> str:
    batch, rows, columns, depth = shape
    numerics = kernel.numerics.name
    g = torch.Generator().manual_seed(sum(shape))

    def operand(a: int, b: int) -> torch.Tensor:
        t = torch.randn((batch, b, a) if across else (batch, a, b), generator=g).to(dtype)
        return t.mT if across else t

    def there(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        first = a.to(kernel.device.name)  # with its strides
        return first, first if a is b else b.to(kernel.device.name)

    x, y, wide = operand(rows, depth), operand(columns, depth), operand(columns, rows)
    packed = operand(1, rows * (rows - 1) // 2)[:, 0]
    cases = [(x, y, "all", "all"), (packed, wide, "lower", "all"), (packed, wide, "upper", "all")]
    cases += [(x, x, "all", pairs) for pairs in PAIRS]
    for a, b, a_pairs, pairs in cases:
        ref = pairwise_reference(a, b, a_pairs, pairs, numerics)
        for out_dtype, bound in ((torch.float32, FP32_TOLERANCE), (torch.bfloat16, BF16_TOLERANCE)):
            result = run(*there(a, b), a_pairs, pairs, numerics, out_dtype, kernel=kernel)
            found = relative_to_largest(result, ref)
            if not found <= bound:
                return (
                    f"pairwise_dots [b, f, g, d] = {list(shape)} {dtype} -> {out_dtype}, pairs {a_pairs} -> {pairs}, "
                    f"{'columns' if across else 'rows'} contiguous: expected error <= {bound:.1e} of the largest "
                    f"element, found {found:.1e}"
                )
    return ""
