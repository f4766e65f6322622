"""Embedding bags, forward, sum pooling: octavo's row formats against torch and FBGEMM.

The grid is section 3 of the design's cpu-ceilings: T tables x rows x dim, L indices a bag, batch 1024, uniform int64
indices, another index set in every call; output FP32. octavo checks bounds (``bounds="error"``), FBGEMM does not. All
tables are on transparent huge pages (torch's and FBGEMM's through THP_MEM_ALLOC_ENABLE=1, set before torch is loaded).
The roof is the best random gather of whole 64-byte lines (codes only), GB/s count row codes and output. A case is
"inside L3" when all tables in FP32 fit it, "beyond L3" otherwise. ``e4m3 pow2`` has scales that are powers of two.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import embedding_peers
import harness
import peers
import torch
from embedding_peers import ROW_BYTES, WIDTH, Bags, Case
from harness import where
from machine import memory_bytes

DEFAULT_L3 = 32 << 20  # bytes, where the system does not say
BOTH = (20, 1)
# tables, rows, dim, lengths of bags
GRIDS = {
    "smoke": [(2, 500, 16, BOTH), (2, 70_000, 64, BOTH)],
    "quick": [(8, 10_000, 64, (20,)), (8, 200_000, 64, BOTH), (8, 200_000, 16, BOTH)],
    "full": [(8, 10_000, 64, (20,)), (8, 200_000, 64, BOTH), (8, 200_000, 16, BOTH), (8, 200_000, 32, BOTH),
             (8, 200_000, 128, BOTH), (8, 2_000_000, 16, BOTH), (8, 2_000_000, 32, BOTH), (4, 2_000_000, 64, BOTH),
             (2, 2_000_000, 128, BOTH)],
}  # fmt: skip
# entry: row format, where its scale lies
OCTAVO = {"fp32": ("fp32", "auto"), "fp16": ("fp16", "auto"), "bf16": ("bf16", "auto"), "e4m3": ("e4m3", "auto"),
          "e4m3 pow2": ("e4m3", "power_of_two"), "int8": ("int8", "auto"), "int4": ("int4", "auto")}  # fmt: skip
NARROW = ("e4m3", "int8", "int4")
BYTES_PER_ELEMENT = 34  # of every copy of the tables together
TORCH = ("torch float32", "torch bfloat16", "torch byte", "torch 4bit")
FBGEMM = ("fbgemm fp32", "fbgemm fp16", "fbgemm int8", "fbgemm split float32")


def own_entries(
    run: harness.Run, case: Case, bags: Bags, modules: Mapping[str, torch.nn.Module]
) -> list[harness.Entry]:
    """octavo's module in each row format, as a user calls it."""
    entries = []
    inside = case.tables * case.rows * case.dim * 4 <= (run.machine["l3_bytes"] or DEFAULT_L3)
    for name, (width, scale) in OCTAVO.items():
        row_bytes = int(case.dim * ROW_BYTES[width])
        module = modules[name]

        def call(i: int, module: torch.nn.Module = module) -> torch.Tensor:
            with torch.no_grad():
                return module(bags.all(i), bags.offsets)

        entries.append(
            harness.Entry(
                f"octavo {name}", call, io=WIDTH[width], group="octavo",
                facts={"numerics": width, "scale": scale, "route": "nn.EmbeddingBags",
                       "tables": "inside L3" if inside else "beyond L3",
                       "narrow": width in NARROW, "dim": case.dim, "length": case.length},
                bytes=case.lookups * row_bytes + 4 * case.batch * case.tables * case.dim, items=case.lookups,
                roof=run.roofs.lines(row_bytes, case.tables * case.rows * row_bytes),
            )
        )  # fmt: skip
    return entries


def grid_point(run: harness.Run, tables: int, rows: int, dim: int, lengths: Sequence[int]) -> None:
    """One set of tables, each length of bag."""
    needed = tables * rows * dim * BYTES_PER_ELEMENT
    available = memory_bytes("MemAvailable")
    first = Case(tables, rows, dim, lengths[0], batch=32 if run.is_smoke else 1024)
    if available is not None and needed > available:
        reason = f"the copies of the tables need {needed >> 20} MiB, {available >> 20} MiB are available"
        run.skip("bag_forward", first.shape(), reason)
        return
    master = embedding_peers.octavo_bags(first)
    modules = {name: master if width == "fp32" else master.to_dtype(width, scale)
               for name, (width, scale) in OCTAVO.items()}  # fmt: skip
    weights = embedding_peers.rows_of(master)
    for length in lengths:
        case = Case(tables, rows, dim, length, batch=first.batch)
        bags = Bags(case, run.is_smoke)
        expected = embedding_peers.reference(weights, bags)
        ours = [embedding_peers.check(entry, expected) for entry in own_entries(run, case, bags, modules)]
        rivals: list[harness.Entry] = []
        absent: dict[str, str] = {}
        for name, build in {
            **embedding_peers.torch_peers(weights, bags),
            **embedding_peers.fbgemm_peers(weights, bags),
        }.items():
            peers.admit(rivals, absent, name, partial(_checked, build, expected))
        run.contest("bag_forward", case.shape(), ours, rivals, absent)
        del ours, rivals
        gc.collect()


def _checked(build: Callable[[], harness.Entry], expected: torch.Tensor) -> harness.Entry:
    return embedding_peers.check(build(), expected)


def body(run: harness.Run) -> None:
    """The grid, then the figures."""
    for tables, rows, dim, lengths in GRIDS[run.effort.name]:
        grid_point(run, tables, rows, dim, lengths)
    beyond = {"tables": "beyond L3"}
    run.finding("embedding_forward_8bit_beyond_l3", where(narrow=True, **beyond), where(), TORCH + FBGEMM, 2.2)
    run.finding(
        "embedding_forward_8bit_inside_l3", where(narrow=True, tables="inside L3"), where(), TORCH + FBGEMM, 0.85
    )
    fp32 = where(numerics="fp32", **beyond), where(io=WIDTH["fp32"]), ("torch float32", "fbgemm fp32")
    run.finding("embedding_forward_fp32_beyond_l3", *fp32, 1.6)
    run.finding("embedding_forward_fp32_worst", *fp32, 1.1, worst=True)
    run.share(
        "embedding_forward_gather_roof_share", where(numerics="e4m3", dim=64, length=20, **beyond), 0.75, worst=True
    )
    for width, named in (("fp32", ("torch float32", "fbgemm fp32")), ("bf16", ("torch bfloat16", "fbgemm fp16")),
                         ("int8", ("torch byte", "fbgemm int8"))):  # fmt: skip
        run.finding(
            f"embedding_forward_{width}_vs_best_same_width", where(numerics=width), where(io=WIDTH[width]), named
        )
    for width in ("e4m3", "int8"):
        run.finding(f"embedding_forward_{width}_vs_best_of_any_dtype", where(numerics=width), where(), TORCH + FBGEMM)
    run.finding("embedding_forward_best_vs_best_fbgemm", where(), where(group="fbgemm"), FBGEMM)


if __name__ == "__main__":
    harness.main("embedding_forward", body)
