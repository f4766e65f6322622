"""What `make gpu-check` measures on a GPU: every CUDA kernel's qualification, and the E4M3 linear against torch.

``--qualify`` checks the kernels and writes one JSON object; without it, row-wise E4M3 layers are timed with CUDA
events, interleaved with torch's BF16 linear and with torch's ``_scaled_mm`` (row-wise, quantization of x included), and
JSON lines are written: one row per candidate and shape, then a summary line as every benchmark's.
"""

from __future__ import annotations

import argparse
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

import octavo
from octavo import _core, ops
from octavo.ops import kernels
from octavo.ops.linear_call import run
from octavo.ops.packing import pack_as

SHAPES = [(m, n, k) for n, k in ((256, 512), (512, 512), (512, 1024), (1024, 1024)) for m in (256, 4096, 65536)]
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


def candidates(m: int, n: int, k: int) -> dict[str, Callable[[], torch.Tensor]]:
    """The layer x [m, k] BF16 -> [m, n] BF16 by each contestant."""
    x = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(n, k, device="cuda") / k**0.5
    bf16, e4m3 = weight.bfloat16(), pack_as(weight, "e4m3_row")
    assert e4m3.scale is not None
    scale = e4m3.scale[None, :]
    kernel = kernels.by_name("cuda.sm90.linear.e4m3_row")

    def scaled_mm() -> torch.Tensor:
        q = ops.quantize(x, "e4m3", "row")
        return torch._scaled_mm(q.data, e4m3.codes.T, q.scale[:, None], scale, out_dtype=torch.bfloat16)

    found: dict[str, Callable[[], torch.Tensor]] = {"torch bf16 linear": lambda: torch.nn.functional.linear(x, bf16)}
    found["torch _scaled_mm row-wise, octavo quantizer"] = scaled_mm
    if kernel.state == "qualified":
        found["octavo e4m3_row"] = lambda: run(x, e4m3, kernel=kernel)
    return found


def times(calls: dict[str, Callable[[], torch.Tensor]]) -> dict[str, np.ndarray]:
    """us of every call in every round, the order rotating, by CUDA events."""
    for call in calls.values():
        for _ in range(5):
            call()
    names, found = list(calls), {name: [] for name in calls}
    for number in range(ROUNDS):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(10):
                calls[name]()
            end.record()
            end.synchronize()
            found[name].append(start.elapsed_time(end) * 100.0)  # ms for 10 calls -> us for one
    return {name: np.array(us) for name, us in found.items()}


def measure() -> list[dict[str, Any]]:
    """Rows, then the summary."""
    ops.dispatch.qualify()
    rows, ratios = [], []
    for m, n, k in SHAPES:
        measured = times(candidates(m, n, k))
        peers = {name: us for name, us in measured.items() if not name.startswith("octavo")}
        best = min(peers, key=lambda name: float(np.median(peers[name])))
        for name, us in measured.items():
            p10, p50, p90 = np.quantile(us, [0.1, 0.5, 0.9])
            ratio = float(np.median(measured[best] / us))
            row = {"op": "linear", "shape": [m, n, k], "candidate": name, "p10_us": p10, "p50_us": p50, "p90_us": p90,
                   "tflops": 2 * m * n * k / p50 / 1e6, "best_peer": best, "ratio_to_best_peer": ratio}  # fmt: skip
            rows.append({**facts(), **row})
            if name.startswith("octavo"):
                ratios.append(ratio)
    figure = float(np.exp(np.mean(np.log(ratios)))) if ratios else None
    low, high = (min(ratios), max(ratios)) if ratios else (None, None)
    bar = {"name": "e4m3_row_vs_best_torch", "figure": figure, "low": low, "high": high, "bar": None}
    return [*rows, {"summary": "gpu_check", "bars": [{**bar, "holds": None if ratios else False}]}]


def main() -> int:
    """Write the file that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--qualify", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    if unusable("gpu_check"):
        return 1
    if arguments.qualify:
        write(arguments.out, [qualification()], indent=1)
    else:
        write(arguments.out, measure())
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
