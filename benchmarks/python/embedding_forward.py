"""Embedding bags, forward, sum pooling: octavo's row formats against torch and FBGEMM.

The grid is section 3 of the design's cpu-ceilings: T tables x rows x dim, L indices a bag, batch 1024, uniform int64
indices, another index set in every call; output FP32. octavo checks bounds (``bounds="error"``), FBGEMM does not. All
tables are on transparent huge pages (torch's and FBGEMM's through THP_MEM_ALLOC_ENABLE=1, set before torch is loaded).
The roof is a random gather of whole 64-byte lines of such rows (codes only), GB/s count row codes and output.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from functools import partial

import embedding_peers
import harness
import peers
import torch
from embedding_peers import ROW_BYTES, WIDTH, Bags, Case
from harness import where
from machine import memory_bytes

_LENGTHS = (20, 1)
GRIDS = {
    "smoke": [(2, 500, 16)],
    "quick": [(8, 10_000, 64), (8, 200_000, 64), (8, 200_000, 16)],
    "full": [(8, 10_000, 64), (8, 200_000, 64), (8, 200_000, 16), (8, 200_000, 32), (8, 200_000, 128),
             (8, 2_000_000, 16), (8, 2_000_000, 32), (4, 2_000_000, 64), (2, 2_000_000, 128)],
}  # fmt: skip
OCTAVO = ("fp32", "bf16", "e4m3", "int8")
BYTES_PER_ELEMENT = 30  # of every copy of the tables together
TORCH = ("torch float32", "torch bfloat16", "torch byte")
FBGEMM = ("fbgemm fp32", "fbgemm fp16", "fbgemm int8", "fbgemm split float32")


def own_entries(
    run: harness.Run, case: Case, bags: Bags, modules: Mapping[str, torch.nn.Module]
) -> list[harness.Entry]:
    """octavo's module in each row format, as a user calls it."""
    entries = []
    for width in OCTAVO:
        row_bytes = int(case.dim * ROW_BYTES[width])
        module = modules[width]

        def call(i: int, module: torch.nn.Module = module) -> torch.Tensor:
            with torch.no_grad():
                return module(bags.all(i), bags.offsets)

        entries.append(
            harness.Entry(
                f"octavo {width}", call, io=WIDTH[width], group="octavo",
                facts={"numerics": width, "route": "nn.EmbeddingBags"},
                bytes=case.lookups * row_bytes + 4 * case.batch * case.tables * case.dim, items=case.lookups,
                roof=run.roofs.gather(-(-row_bytes // 64) * 64, case.tables * case.rows * row_bytes),
            )
        )  # fmt: skip
    return entries


def grid_point(run: harness.Run, tables: int, rows: int, dim: int) -> None:
    """One set of tables, each length of bag."""
    needed = tables * rows * dim * BYTES_PER_ELEMENT
    available = memory_bytes("MemAvailable")
    first = Case(tables, rows, dim, _LENGTHS[0], batch=32 if run.is_smoke else 1024)
    if available is not None and needed > available:
        reason = f"the copies of the tables need {needed >> 20} MiB, {available >> 20} MiB are available"
        run.skip("bag_forward", first.shape(), reason)
        return
    master = embedding_peers.octavo_bags(first)
    modules = {"fp32": master, **{width: master.to_dtype(width) for width in OCTAVO[1:]}}
    weights = embedding_peers.rows_of(master)
    for length in _LENGTHS:
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
    for tables, rows, dim in GRIDS[run.effort.name]:
        grid_point(run, tables, rows, dim)
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
