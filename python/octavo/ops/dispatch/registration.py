"""Adding a kernel of another library to the table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

from octavo import _core
from octavo.ops import kernels
from octavo.ops._types import ALL_NUMERICS, DTYPES, choice
from octavo.ops.epilogue import Norm


class Chain(Protocol):
    """A whole layer of x [M, K] in one call, y [M, N] in ``out_dtype``: the product and its epilogue."""

    def __call__(
        self,
        x: torch.Tensor,
        weight: Any,
        bias: torch.Tensor | None,
        norm: Norm | None,
        activation: str | None,
        residual: torch.Tensor | None,
        residual_before_norm: bool,
        out_dtype: torch.dtype,
    ) -> torch.Tensor: ...


def register(
    name: str,
    numerics: str,
    run: Callable[[torch.Tensor, Any], torch.Tensor],
    *,
    op: str = "linear",
    library: str,
    device: str = "cpu",
    accepts: Callable[[int, int, int], bool] | None = None,
    product: str = "float32",
    tolerance: float = 1e-5,
    chain: Chain | None = None,
    only_measured: bool = False,
    trusted: bool = False,
    deterministic: bool = True,
    overhead_us: float = 5.0,
    gmacs_per_s: float = 10.0,
    gbytes_per_s: float = 5.0,
) -> None:
    """Add a linear kernel of another library as a candidate; it is qualified like octavo's own before it may run.

    Args:
        name: ``library.device.linear.class``, unique.
        numerics: the one class it serves exactly (``bf16``, ``e4m3_row``, ``e4m3_weight_only``, ``int8_dynamic``,
            ``e4m3_row_fast``, ``e4m3_block``).
        run: ``run(x [M, K] float32 or bfloat16, weight: PackedWeight) -> x W^T [M, N]``; the epilogue is applied after
            it. For ``op`` ``linear_grad_input``: ``run(grad [M, N], weight) -> grad W [M, K]``; for
            ``linear_grad_weight``: ``run(grad [M, N], x [M, K]) -> grad^T x [N, K]``.
        op: ``linear``, ``linear_grad_input`` or ``linear_grad_weight``.
        accepts: ``accepts(m, n, k) -> bool``; None = every shape.
        product: what the product is rounded to, ``float32`` or ``bfloat16``; one in BF16 serves BF16 outputs only.
        tolerance: error of FP32 outputs, in parts of the largest element, with which it qualifies; FP8 tensor cores
            keep about 14 bits of a sum.
        chain: runs whole layers, epilogue included; ``run`` then serves calls that keep what lies between, and
            qualification checks both.
        only_measured: never chosen by its prior, only for problems that ``tune`` or ``measure`` timed it on: for what
            compiles at its first call.
        trusted: skip qualification. Leave it False.
        overhead_us, gmacs_per_s, gbytes_per_s: the cost prior, per thread on a CPU; measurements replace it.

    Example::

        def run(x, weight):  # a slow but correct BF16 product
            return x.bfloat16().float() @ weight.codes.float().T

        ops.dispatch.register("mylib.cpu.linear.bf16", "bf16", run, library="mylib", gmacs_per_s=30)
        print(ops.dispatch.explain(ops.dispatch.Problem("linear", 256, 512, 512)))
    """
    choice("numerics", numerics, ALL_NUMERICS)
    choice("op", op, ("linear", "linear_grad_input", "linear_grad_weight"))
    choice("device", device, ("cpu", "cuda"))
    choice("product", product, ("float32", "bfloat16"))
    _core.register(
        name=name, op=_core.Op[op], numerics=_core.Numerics[numerics], library=library,
        device=_core.Device[device], trusted=trusted, deterministic=deterministic,
        product=DTYPES[getattr(torch, product)], overhead_us=overhead_us, gmacs_per_s=gmacs_per_s,
        gbytes_per_s=gbytes_per_s, accepts=accepts, tolerance=tolerance, only_measured=only_measured,
    )  # fmt: skip
    kernels.externals[name] = run
    if chain is not None:
        kernels.chains[name] = chain
    if accepts is not None:
        kernels.limits[name] = accepts
    kernels.new_generation()
