"""What `make gpu-check` measures on a GPU: every CUDA kernel's qualification, layers against torch, tiles in turns.

``--qualify`` checks the kernels and writes one JSON object. ``--tiles`` times every GEMM instantiation that takes a
shape beside the one that the model ranks first: its regret, and what the model's constants should be. Without either,
layers of each class, bare and with a norm, are timed with CUDA events, interleaved with torch's BF16 linear and with
torch's ``_scaled_mm`` (row-wise, quantization of x included). JSON lines: one row per candidate and shape, then a
summary line as every benchmark's.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import shutil
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import commit
from torch.nn import functional

import octavo
from octavo import _core, ops
from octavo.ops import Norm, kernels
from octavo.ops.linear_call import run
from octavo.ops.packing import pack_as

SHAPES = [
    (m, n, k)
    for n, k in ((128, 128), (256, 512), (512, 512), (512, 1024), (1024, 1024), (2048, 2048))
    for m in (16, 256, 4096, 65536)
]
CLASSES = ("bf16", "e4m3_row", "e4m3_row_fast")
ROUNDS = 30


def facts() -> dict[str, Any]:
    """Device, versions, commit, date."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "device": _core.cuda_info(),
        "torch": torch.__version__,
        "octavo": octavo.__version__,
        "commit": commit() if shutil.which("git") else "unknown",
    }


def qualification() -> dict[str, Any]:
    """Every CUDA kernel's state, and why where it failed."""
    ops.dispatch.qualify(fresh=True)
    rows = [k for k in _core.kernels() if k.device == _core.Device.cuda]
    return {**facts(), "kernels": {k.name: {"state": k.state, "note": k.note} for k in rows}}


def candidates(m: int, n: int, k: int, norm: bool) -> dict[str, Callable[[], torch.Tensor]]:
    """The layer x [m, k] BF16 -> [m, n] BF16 by each contestant, bare or with LayerNorm and SiLU."""
    x = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(n, k, device="cuda") / k**0.5
    bf16, e4m3 = weight.bfloat16(), pack_as(weight, "e4m3_row")
    assert e4m3.scale is not None
    scale = e4m3.scale[None, :]
    gamma, beta = torch.ones(n, device="cuda"), torch.zeros(n, device="cuda")
    narrow = gamma.bfloat16(), beta.bfloat16()
    spec = Norm("layer", gamma, beta) if norm else None

    def finished(z: torch.Tensor) -> torch.Tensor:
        return functional.silu(functional.layer_norm(z, (n,), *narrow)) if norm else z

    def scaled_mm() -> torch.Tensor:
        q = ops.quantize(x, "e4m3", "row")
        return finished(torch._scaled_mm(q.data, e4m3.codes.T, q.scale[:, None], scale, out_dtype=torch.bfloat16))

    found: dict[str, Callable[[], torch.Tensor]] = {"torch bf16": lambda: finished(functional.linear(x, bf16))}
    found["torch bf16 compiled"] = torch.compile(found["torch bf16"], dynamic=False)
    found["torch _scaled_mm row-wise, octavo quantizer"] = scaled_mm
    for numerics in CLASSES:
        kernel, w = kernels.by_name(f"cuda.sm90.linear.{numerics}"), pack_as(weight, numerics)
        if kernel.state == "qualified":
            found[f"octavo {numerics}"] = functools.partial(
                run, x, w, None, spec, "silu" if norm else None, kernel=kernel
            )
    return found


def tile_calls(product: str, m: int, n: int, k: int) -> dict[str, Callable[[], None]]:
    """Every instantiation that makes this product in BF16, the model's first choice first."""
    dtype = torch.bfloat16 if product == "bf16" else torch.float8_e4m3fn
    x, w = (torch.randn(rows, k, device="cuda").to(dtype) for rows in (m, n))
    d = torch.empty(m, n, device="cuda", dtype=torch.bfloat16)

    def call(tile: str) -> None:
        _core.run_gemm_tile(tile, m, n, k, x.data_ptr(), w.data_ptr(), 0, 0, d.data_ptr(), False,
                            torch.cuda.current_stream().cuda_stream)  # fmt: skip

    return {name: functools.partial(call, name) for name, _ in _core.rank_gemm_tiles(product, m, n, k)}


def measure_tiles() -> list[dict[str, Any]]:
    """Rows of measured and predicted times, then the regret of the model's first choices."""
    rows, regrets = [], []
    for product in ("bf16", "e4m3", "e4m3_fast"):
        for m, n, k in SHAPES:
            measured = {
                name: float(np.median(us)) for name, us in times(tile_calls(product, m, n, k), graphs=True).items()
            }
            predicted = dict(_core.rank_gemm_tiles(product, m, n, k))
            chosen, best = next(iter(measured)), min(measured.values())
            regrets.append(measured[chosen] / best - 1)
            rows += [
                {**facts(), "op": "gemm", "product": product, "shape": [m, n, k], "kernel": name, "p50_us": us,
                 "predicted_us": predicted[name], "chosen": name == chosen}
                for name, us in measured.items()
            ]  # fmt: skip
    bars = [
        {"name": "tile_regret_mean", "figure": float(np.mean(regrets)), "bar": 0.03},
        {"name": "tile_regret_max", "figure": float(np.max(regrets)), "bar": 0.10},
    ]
    ends = {"low": min(regrets), "high": max(regrets)}
    return [*rows, {"summary": "gpu_tiles", "bars": [{**b, **ends, "holds": b["figure"] <= b["bar"]} for b in bars]}]


def ten_times(call: Callable[[], Any], graph: bool) -> Callable[[], None]:
    """Ten calls; as one CUDA graph what the host does beside them is not measured."""

    def loop() -> None:
        for _ in range(10):
            call()

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        loop()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    if not graph:
        return loop
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        loop()
    return captured.replay


def times(calls: dict[str, Callable[[], Any]], graphs: bool = False) -> dict[str, np.ndarray]:
    """us of every call in every round, the order rotating, by CUDA events around ten calls or graphs of ten."""
    ten = {name: ten_times(call, graphs) for name, call in calls.items()}
    names = list(calls)
    found: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(ROUNDS):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            ten[name]()
            end.record()
            end.synchronize()
            found[name].append(start.elapsed_time(end) * 100.0)  # ms for 10 calls -> us for one
    return {name: np.array(us) for name, us in found.items()}


def measure() -> list[dict[str, Any]]:
    """Rows, then the summary."""
    ops.dispatch.qualify()
    rows, ratios = [], []
    for (m, n, k), norm in itertools.product(SHAPES, (False, True)):
        measured = times(candidates(m, n, k, norm), graphs=True)
        peers = {name: us for name, us in measured.items() if not name.startswith("octavo")}
        best = min(peers, key=lambda name: float(np.median(peers[name])))
        for name, us in measured.items():
            p10, p50, p90 = np.quantile(us, [0.1, 0.5, 0.9])
            ratio = float(np.median(measured[best] / us))
            row = {
                "op": "linear_norm" if norm else "linear", "shape": [m, n, k], "candidate": name,
                "p10_us": p10, "p50_us": p50, "p90_us": p90, "tflops": 2 * m * n * k / p50 / 1e6,
                "best_peer": best, "ratio_to_best_peer": ratio,
            }  # fmt: skip
            rows.append({**facts(), **row})
            if name == "octavo e4m3_row":
                ratios.append(ratio)
    figure = float(np.exp(np.mean(np.log(ratios)))) if ratios else None
    low, high = (min(ratios), max(ratios)) if ratios else (None, None)
    bar = {"name": "e4m3_row_vs_best_torch", "figure": figure, "low": low, "high": high, "bar": None}
    return [*rows, {"summary": "gpu_check", "bars": [{**bar, "holds": None if ratios else False}]}]


def main() -> int:
    """Write the file that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--qualify", action="store_true")
    parser.add_argument("--tiles", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    if unusable("gpu_check"):
        return 1
    if arguments.qualify:
        write(arguments.out, [qualification()], indent=1)
    else:
        write(arguments.out, measure_tiles() if arguments.tiles else measure())
    return 0


def unusable(script: str) -> bool:
    """Whether there is nothing to run on; says why."""
    if _core.cuda_info() is not None:
        return False
    why = "octavo was built without CUDA" if not _core.built_with_cuda else "no usable CUDA device"
    print(f"{script}: {why}; see docs/gpu.md", file=sys.stderr)
    return True


def write(path: Path, content: list[dict[str, Any]], indent: int | None = None) -> None:
    """JSON lines by one rename; the last one goes to stdout."""
    lines = [json.dumps(line, indent=indent) for line in content]
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    temporary.replace(path)
    print(lines[-1])


if __name__ == "__main__":
    sys.exit(main())
