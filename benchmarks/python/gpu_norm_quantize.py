"""Rows rounded to E4M3, and rows normalised, activated and rounded, on a GPU: their share of the bandwidth of a copy.

``quantize``: BF16 or FP32 rows to codes with a scale a row (``octavo.ops.quantize``). ``norm``: the kernel that ends a
layer, FP32 products to codes of act(norm(z)) (``_core.finish_linear``; on a CPU, in tests, its definition). Arrays of
2^24 elements and more. Peers are torch's expressions, eager and compiled; bytes are those read and written once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import gpu_run
import peers
import torch
from gpu_run import GpuRun
from harness import Entry, where
from quantize import torch_e4m3

from octavo import _core, ops
from octavo.ops import kernels
from octavo.ops.epilogue import Norm, apply_epilogue
from octavo.ops.linear_call import epilogue_of

ELEMENTS = {"smoke": 1 << 10, "quick": 1 << 26, "full": 1 << 26}
WIDTHS = {"smoke": (16,), "quick": (256, 1024), "full": (128, 256, 512, 1024, 2048, 4096)}
NORMS = ("layer", "rms", "block", "swish_rms")
BAR, TORCH, COMPILED = 0.85, "torch eager", "torch compiled"


def rivals_of(
    run: GpuRun,
    expression: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
    x: torch.Tensor,
    compiles: bool,
) -> tuple[list[Entry], dict[str, str]]:
    """torch's expression, eager and, where seconds are spent on it, compiled."""
    found: list[Entry] = []
    absent: dict[str, str] = {}
    peers.admit(found, absent, TORCH, lambda: Entry(TORCH, lambda i: expression(x), group="torch"))
    if run.is_smoke or not compiles:
        absent[COMPILED] = "not in the smoke run, nor for every type and norm: compiling takes seconds"
    else:

        def compiled() -> Entry:
            function = torch.compile(expression, dynamic=False)
            function(x)
            return Entry(COMPILED, lambda i: function(x), group="torch")

        peers.admit(found, absent, COMPILED, compiled)
    return found, absent


def quantize_contest(run: GpuRun, m: int, k: int, dtype: torch.dtype) -> None:
    """Rows to codes."""
    x = torch.randn(m, k, device=run.device).to(dtype)
    q = ops.quantize(x)
    codes, scale = torch_e4m3(x)
    peers.agrees(q.dequantize(), codes.float() * scale, "codes")
    moved = x.nbytes + m * k + 4 * m
    ours = [Entry("octavo quantize", lambda i: ops.quantize(x, out=q), group="quantize", bytes=moved,
                  roof=run.copy_roof())]  # fmt: skip
    shape = {"m": m, "k": k, "io": str(dtype).removeprefix("torch.")}
    run.contest("quantize", shape, ours, *rivals_of(run, torch_e4m3, x, dtype == torch.bfloat16))


def norm_of(kind: str, n: int, device: str) -> Norm:
    """With parameters where the kind has them."""
    weight = None if kind == "block" else torch.rand(n, device=device) + 0.5
    return Norm(kind, weight, torch.randn(n, device=device) * 0.1 if kind == "layer" else None)


def finisher(z: torch.Tensor, norm: Norm, activation: str | None) -> Callable[[int], ops.QuantizedTensor]:
    """act(norm(z)) in codes: octavo's kernel on CUDA, which overwrites z; its definition elsewhere."""
    if not z.is_cuda:
        return lambda i: ops.quantize(apply_epilogue(z, None, norm, activation))
    (m, n), (epilogue, vectors) = z.shape, epilogue_of(None, norm, activation)
    q = ops.QuantizedTensor(torch.empty(m, n, dtype=torch.float8_e4m3fn, device=z.device),
                            torch.empty(m, device=z.device), "e4m3", "row")  # fmt: skip

    def call(i: int, alive: Any = vectors) -> ops.QuantizedTensor:
        _core.finish_linear(z.data_ptr(), m, n, epilogue, q.data.data_ptr(), _core.DType.e4m3, q.scale.data_ptr(),
                            kernels.stream_of(z))  # fmt: skip
        return q

    return call


def norm_contest(run: GpuRun, m: int, n: int, kind: str) -> None:
    """FP32 products to codes."""
    norm, activation = norm_of(kind, n, run.device), None if kind == "swish_rms" else "silu"
    z = torch.randn(m, n, device=run.device)

    def expression(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch_e4m3(apply_epilogue(x, None, norm, activation))

    codes, scale = expression(z)
    call = finisher(z.clone(), norm, activation)
    peers.agrees(call(0).dequantize(), codes.float() * scale, "bf16")
    ours = [Entry("octavo finish_linear", call, group="norm", bytes=5 * m * n + 4 * m, roof=run.copy_roof())]
    run.contest("linear", {"m": m, "n": n, "norm": kind}, ours, *rivals_of(run, expression, z, kind == NORMS[0]))


@torch.no_grad()
def body(run: GpuRun) -> None:
    """Every width, then the figures."""
    level = run.effort.name
    for width in WIDTHS[level]:
        torch._dynamo.reset()
        m = ELEMENTS[level] // width
        for dtype in (torch.bfloat16, torch.float32):
            if run.has_time("quantize", {"m": m, "k": width}):
                quantize_contest(run, m, width, dtype)
        for kind in NORMS if run.is_full or run.is_smoke else NORMS[:1]:
            if run.has_time("linear", {"m": m, "n": width, "norm": kind}):
                norm_contest(run, m, width, kind)
    for group in ("quantize", "norm"):
        run.share(f"gpu_norm_quantize_{group}_share", where(group=group), BAR)
        run.share(f"gpu_norm_quantize_{group}_share_worst", where(group=group), BAR, worst=True)
        run.finding(f"gpu_norm_quantize_{group}_vs_torch", where(group=group), where(group="torch"), (TORCH,))


if __name__ == "__main__":
    sys.exit(gpu_run.main("gpu_norm_quantize", body))
