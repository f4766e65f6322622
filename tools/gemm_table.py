"""The section of docs/kernels.md on Hopper's GEMM kernels: one row per instantiation, with where it is the choice.

Ranges are read off the choice itself (cuda/gemm/tile_choice.cpp, 132 multiprocessors), so they say what it does.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from octavo import _core

ROWS = [1, 8, 16, 17, 32, 64, 65, 128, 129, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536]
COLUMNS = [8, 16, 64, 120, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048]
DEPTHS = [16, 64, 128, 256, 512, 1024, 2048]
CLASSES = {
    "e4m3": "`e4m3_row`",
    "e4m3_fast": "`e4m3_row_fast`",
    "e4m3_block": "`e4m3_block`",
    "bf16": "`bf16`",
    "e5m2": "`e4m3_row` gradients",
}
STORES = {
    "tma": "BF16 out, aligned rows",
    "direct": "FP32, or BF16 of any width",
    "norm": "a norm over rows or blocks that it holds, BF16 or codes out",
}
MAJORS = {("k", "k"): "", ("k", "mn"): "grad_input: ", ("mn", "mn"): "grad_weight: "}


def chosen() -> dict[str, list[tuple[int, int, int]]]:
    """Tile -> the sampled (m, n, k) at which it is ranked first."""
    found: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
    for m in ROWS:
        for n in COLUMNS:
            for k in DEPTHS:
                for product in CLASSES:
                    for options in requests(product, m, n):
                        ranked = _core.rank_gemm_tiles(product, options.pop("m", m), n, k, **options)
                        if ranked:
                            found[ranked[0][0]].append((m, n, k))
    return found


def requests(product: str, m: int, n: int) -> list[dict[str, Any]]:
    """What layers ask of a GEMM of this class."""
    if product == "e5m2":
        return [{"d_is_f32": True}]
    own: list[dict[str, Any]] = [{}, {"d_is_f32": True}, {"norm": True}, {"norm": True, "norm_block": 128}]
    if product == "bf16":
        own.append({"w_major": "mn", "d_is_f32": True})
        own.append({"x_major": "mn", "w_major": "mn", "d_is_f32": True, "m": -(-m // 8) * 8})
    return own


def span(values: list[int]) -> str:
    """``a to b`` of what was sampled."""
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low:,} to {high:,}"


def section() -> str:
    """The whole section."""
    tiles, ranges = _core.gemm_tiles(), chosen()
    lines = [
        "## GEMM kernels for Hopper", "",
        f"The {len(tiles)} instantiations behind `cuda.sm90.linear.*` and their gradients (at most 24;",
        "`cuda/gemm/tiles.hpp`). A call takes the one that `cuda/gemm/tile_choice.cpp` ranks first of those that can",
        "do it: a model of waves, products, loads and epilogues, never measured. M, N, K are the product's, sampled",
        f"up to {ROWS[-1]:,} x {COLUMNS[-1]:,} x {DEPTHS[-1]:,}; a kernel is the choice somewhere in its range, not",
        "everywhere.", "",
        "| kernel | class | tile M x N x K | schedule | what it is there for | chosen at M | N | K |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for tile in tiles:
        m, n, k = tile["shape"]
        schedule = tile["schedule"] + (f", {tile['cluster']} blocks sharing loads" if tile["cluster"] > 1 else "")
        purpose = MAJORS[tile["x_major"], tile["w_major"]] + STORES[tile["store"]]
        if tile["swap"]:
            purpose += "; d^T, for few rows"
        at = ranges[tile["name"]]
        columns = [span([point[axis] for point in at]) for axis in range(3)]
        lines.append(
            f"| `{tile['name']}` | {CLASSES[tile['product']]} | {m} x {n} x {k} | {schedule} | {purpose} | "
            + " | ".join(columns) + " |"
        )  # fmt: skip
    return "\n".join(lines) + "\n"
