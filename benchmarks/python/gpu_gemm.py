"""FP8 products alone on a GPU: E4M3 codes with a scale per row on both sides to BF16, against ``torch._scaled_mm``.

x is rounded before the clock starts. octavo's two classes (sums moved to FP32 every 128 of K, and sums that stay in the
tensor core) against ``_scaled_mm`` row-wise (cuBLASLt, or CUTLASS where torch's build asks for it) with and without its
fast sums. Shapes: those of DeepGEMM's published test, and layers of large recommendation models.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import gpu_run
import peers
import torch
from gpu_run import GpuRun, own_kernel, rotating
from harness import Entry, where

from octavo import ops
from octavo.ops.linear_call import run as run_linear
from octavo.ops.packing import pack_as

# github.com/deepseek-ai/DeepGEMM, tests/test_core.py and its README: M, and (N, K).
DEEPGEMM_ROWS = (64, 128, 4096)
DEEPGEMM = ((2112, 7168), (24576, 1536), (32768, 512), (7168, 16384), (4096, 7168), (7168, 2048))
LRM_ROWS = (256, 4096, 65536)
LRM = ((128, 128), (256, 256), (256, 512), (512, 512), (512, 1024), (1024, 1024), (2048, 1024), (2048, 2048))
SHAPES = {
    "smoke": {"deepgemm": [(3, 32, 64)], "lrm": [(16, 16, 32)]},
    "quick": {"deepgemm": [(128, n, k) for n, k in DEEPGEMM[::2]], "lrm": [(4096, n, k) for n, k in LRM[::2]]},
    "full": {
        "deepgemm": [(m, n, k) for m in DEEPGEMM_ROWS for n, k in DEEPGEMM],
        "lrm": [(m, n, k) for m in LRM_ROWS for n, k in LRM],
    },
}
CLASSES = {"e4m3_row": False, "e4m3_row_fast": True}  # whether sums may stay in the tensor core
BARS = {"deepgemm": 0.95, "lrm": 1.1}
PEERS = {False: "_scaled_mm row-wise", True: "_scaled_mm row-wise, fast sums"}


def contest(run: GpuRun, kind: str, m: int, n: int, k: int) -> None:
    """One product."""
    generator = torch.Generator(run.device).manual_seed(m + n + k)

    def normal(rows: int) -> torch.Tensor:
        return torch.randn(rows, k, generator=generator, device=run.device)

    weight, io = normal(n) / k**0.5, "bfloat16" if run.device == "cuda" else "float32"
    x = rotating(lambda i: ops.quantize(normal(m), "e4m3", "row"), m * k, run.device)
    w = pack_as(weight, "e4m3_row")
    assert w.scale is not None
    scale, out_dtype = w.scale[None, :], getattr(torch, io)
    expected = x(0).dequantize() @ w.dequantize().T
    moved = m * k + n * k + m * n * out_dtype.itemsize + 4 * (m + n)

    def entry(name: str, call: Callable[[int], Any], group: str, fast: bool) -> Entry:
        peers.agrees(call(0), expected, "bf16")
        return Entry(name, call, io=io, group=group, flops=2.0 * m * n * k, bytes=moved, facts={"fast": fast})

    ours, rivals = [], []
    absent: dict[str, str] = {}
    for numerics, fast in CLASSES.items():
        kernel = own_kernel(numerics, run.device)
        if kernel is not None:
            own = pack_as(weight, numerics)

            def call(i: int, own: Any = own, kernel: Any = kernel) -> torch.Tensor:
                y: torch.Tensor = run_linear(x(i), own, out_dtype=out_dtype, kernel=kernel)
                return y

            ours.append(entry(f"octavo {numerics}", call, "octavo", fast))

        def scaled_mm(i: int, fast: bool = fast) -> torch.Tensor:
            q = x(i)
            return torch._scaled_mm(q.data, w.codes.T, q.scale[:, None], scale, out_dtype=out_dtype,
                                    use_fast_accum=fast)  # fmt: skip

        peers.admit(rivals, absent, PEERS[fast], lambda f=fast, c=scaled_mm: entry(PEERS[f], c, "torch", f))  # type: ignore[misc]
    run.contest("linear", {"kind": kind, "m": m, "n": n, "k": k}, ours, rivals, absent)


@torch.no_grad()
def body(run: GpuRun) -> None:
    """Every shape, then the figures."""
    for kind, shapes in SHAPES[run.effort.name].items():
        for m, n, k in shapes:
            if run.has_time("linear", {"kind": kind, "m": m, "n": n, "k": k}):
                contest(run, kind, m, n, k)
    for kind, bar in BARS.items():

        def among(shape: Any, kind: str = kind) -> bool:
            return bool(shape["kind"] == kind)

        run.finding(f"gpu_gemm_{kind}_vs_scaled_mm", where(group="octavo"), where(group="torch"), tuple(PEERS.values()),
                    bar, among)  # fmt: skip
        run.finding(f"gpu_gemm_{kind}_worst", where(group="octavo"), where(group="torch"), among=among, worst=True)
        for fast, word in ((False, "promoted"), (True, "fast")):
            run.finding(f"gpu_gemm_{kind}_{word}", where(fast=fast), where(fast=fast), among=among)


if __name__ == "__main__":
    sys.exit(gpu_run.main("gpu_gemm", body))
