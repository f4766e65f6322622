"""What `make gpu-check` measures of the kernels that memory bounds: their share of the bandwidth of a copy.

Rows quantized, embedding bags and their backward, timed with CUDA events, interleaved with the copy and with torch's
own way. JSON lines: one row per candidate, then a summary line as every benchmark's. Bytes are those a call must move:
rows read and, in a backward, written; indices; gradients; outputs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_check import facts, times, unusable, write

from octavo import ops
from octavo.ops.embedding import TableSet, bag_backward, bag_forward
from octavo.ops.table_formats import FORMATS, encode_rows

Calls = dict[str, Callable[[], torch.Tensor]]
COPY = "copy"
TABLES, ROWS, DIM, BATCH, LOOKUPS = 8, 1 << 20, 128, 8192, 20  # 4 GiB of FP32 rows: beyond any L2
BARS = {"quantize_share": 0.85, "embedding_forward_share": 0.75, "embedding_backward_share": 0.45,
        "embedding_backward_vs_torch": 3.0}  # fmt: skip


def copies(size: int) -> tuple[Callable[[], torch.Tensor], int]:
    """A copy of ``size`` bytes, and the bytes it moves."""
    x = torch.empty(size, dtype=torch.uint8, device="cuda").random_()
    y = torch.empty_like(x)
    return lambda: y.copy_(x), 2 * size


def quantize_calls() -> tuple[Calls, dict[str, int]]:
    """BF16 rows of 2^24 elements and more to E4M3."""
    calls, moved = {}, {}
    for k in (64, 256, 512, 1024, 4096):
        x = torch.randn((1 << 26) // k, k, device="cuda", dtype=torch.bfloat16)
        out = ops.quantize(x)
        name = f"quantize_row bf16 -> e4m3, K {k}"
        calls[name] = lambda x=x, out=out: ops.quantize(x, out=out).data
        moved[name] = 3 * x.numel() + 4 * len(x)
    return calls, moved


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """values, offsets, gradient of the pooled rows."""
    values = torch.randint(0, ROWS, (TABLES * BATCH * LOOKUPS,), device="cuda")
    offsets = torch.arange(0, len(values) + 1, LOOKUPS, device="cuda")
    return values, offsets, torch.randn(BATCH, TABLES * DIM, device="cuda")


def tables_of(dtype: str) -> TableSet:
    """Tables in a row format, with a state for row-wise Adagrad."""
    rows, scales = zip(*(encode_rows(torch.randn(ROWS, DIM, device="cuda"), dtype) for _ in range(TABLES)), strict=True)
    return TableSet(rows, scales, states=[torch.ones(ROWS, device="cuda") for _ in range(TABLES)])


def row_bytes(dtype: str) -> int:
    """Of codes and scale."""
    format = FORMATS[dtype]
    return DIM * format.element.itemsize + (0 if format.scale is None else 4 * max(1, sum(format.scale)))


def embedding_calls() -> tuple[Calls, dict[str, int]]:
    """Forwards in three row formats, backwards in two, torch's dense rows beside them."""
    values, offsets, grad = batch()
    calls: Calls = {}
    moved = {}
    pooled = grad.numel() * 4
    for dtype in ("fp32", "e4m3", "int8"):
        tables = tables_of(dtype)
        name = f"bag_forward {dtype}"
        calls[name] = lambda tables=tables: bag_forward(tables, values, offsets, bounds="ignore")
        moved[name] = len(values) * (row_bytes(dtype) + 8) + pooled
        if dtype == "int8":
            continue
        touched = sum(len(part.unique()) for part in values.chunk(TABLES))
        name = f"bag_backward row-wise Adagrad {dtype}"

        def step(tables: TableSet = tables) -> torch.Tensor:
            bag_backward(tables, values, offsets, None, grad, "row_wise_adagrad", 0.01, bounds="ignore")
            return tables.rows[0]

        calls[name] = step
        moved[name] = len(values) * (8 + 4 * DIM) + touched * 2 * (row_bytes(dtype) + 4)
    weights = [torch.randn(ROWS, DIM, device="cuda", requires_grad=True) for _ in range(TABLES)]
    optimizer = torch.optim.Adagrad(weights, lr=0.01)
    starts = offsets[:BATCH]

    def torch_step() -> torch.Tensor:
        parts = [
            torch.nn.functional.embedding_bag(part, weight, starts, mode="sum", sparse=True)
            for part, weight in zip(values.chunk(TABLES), weights, strict=True)
        ]
        torch.cat(parts, 1).backward(grad)
        optimizer.step()
        optimizer.zero_grad()
        return weights[0]

    calls["torch embedding_bag, sparse Adagrad, forward and backward"] = torch_step
    return calls, moved


def measure() -> list[dict[str, Any]]:
    """Rows, then the summary."""
    ops.dispatch.qualify()
    rows = []
    shares: dict[str, list[float]] = {"quantize": [], "bag_forward": [], "bag_backward": []}
    ratio = None
    for made in (quantize_calls, embedding_calls):
        calls, moved = made()
        copy, copied = copies(1 << 30)
        measured = times({COPY: copy, **calls})
        bandwidth = copied / measured[COPY]
        for name, us in measured.items():
            p10, p50, p90 = np.quantile(us, [0.1, 0.5, 0.9])
            row = {"op": name, "p10_us": p10, "p50_us": p50, "p90_us": p90}
            if name in moved:
                share = float(np.median(moved[name] / us / bandwidth))
                row |= {"gbytes_per_s": moved[name] / p50 / 1e3, "share_of_copy": share}
                shares[next(op for op in shares if name.startswith(op))].append(share)
            rows.append({**facts(), **row})
        peer = next((us for name, us in measured.items() if name.startswith("torch")), None)
        if peer is not None:  # forward and backward on both sides
            ratio = float(
                np.median(peer / (measured["bag_forward fp32"] + measured["bag_backward row-wise Adagrad fp32"]))
            )
    figures = {
        "quantize_share": min(shares["quantize"]),
        "embedding_forward_share": min(shares["bag_forward"]),
        "embedding_backward_share": min(shares["bag_backward"]),
        "embedding_backward_vs_torch": ratio,
    }
    bars = [
        {"name": name, "figure": figure, "low": None, "high": None, "bar": BARS[name],
         "holds": figure is not None and figure >= BARS[name]}
        for name, figure in figures.items()
    ]  # fmt: skip
    return [*rows, {"summary": "gpu_simt", "bars": bars}]


def main() -> int:
    """Write the file that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    if unusable("gpu_simt"):
        return 1
    content = measure()
    write(arguments.out, content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
