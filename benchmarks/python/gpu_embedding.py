"""Embedding bags and their training on a GPU, rows far beyond L2: their share of the bandwidth of a copy, and torch.

Bytes are those a call must move: rows read and, in a backward, rows and states read and written once for every row that
is touched; indices; gradients; outputs. torch's way is an ``EmbeddingBag`` a table with sparse gradients and its
element-wise Adagrad, forward and backward on both sides; it synchronises, so it is called, not recorded in a graph,
and so is octavo in that contest.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gpu_run
import peers
import torch
from gpu_run import GpuRun
from harness import Entry, where

from octavo.ops.embedding import TableSet, bag_backward, bag_forward
from octavo.ops.table_formats import FORMATS, decode_rows, encode_rows

FORWARD, TRAINED = ("fp32", "e4m3", "int8"), ("fp32", "e4m3")
LR = 0.01
STEP, TORCH = "octavo fp32, forward and step", "torch sparse Adagrad, forward and step"


@dataclass(frozen=True)
class Case:
    """``tables`` of ``rows`` x ``dim``; bags of ``length`` indices, uniform."""

    tables: int
    rows: int
    dim: int
    batch: int
    length: int

    def shape(self) -> dict[str, int]:
        return {"tables": self.tables, "rows": self.rows, "dim": self.dim, "batch": self.batch, "length": self.length}


CASES = {
    "smoke": [Case(2, 50, 8, 16, 3)],
    "quick": [Case(8, 1 << 20, 128, 8192, 20)],  # 4 GiB of FP32 rows
    "full": [Case(8, 1 << 20, 128, 8192, 20), Case(16, 1 << 20, 64, 8192, 20), Case(8, 1 << 20, 128, 32768, 1)],
}


class Bags:
    """Index sets of a case, and the gradient of its pooled rows; calls take the sets in turn."""

    def __init__(self, case: Case, device: str) -> None:
        self.case, self.device = case, device
        generator = torch.Generator(device).manual_seed(case.dim)
        count = case.tables * case.batch * case.length
        self.values = [torch.randint(case.rows, (count,), generator=generator, device=device) for _ in range(4)]
        self.offsets = torch.arange(0, count + 1, case.length, device=device)
        self.grad = torch.randn(case.batch, case.tables * case.dim, generator=generator, device=device)
        self.touched = sum(len(part.unique()) for part in self.values[0].chunk(case.tables))

    def at(self, i: int) -> torch.Tensor:
        return self.values[i % len(self.values)]

    def tables(self, dtype: str) -> TableSet:
        """In a row format, with a state for row-wise Adagrad."""
        case, made = self.case, []
        generator = torch.Generator(self.device).manual_seed(1)
        for _ in range(case.tables):
            rows = torch.randn(case.rows, case.dim, generator=generator, device=self.device)
            made.append(encode_rows(rows, dtype))
        rows, scales = zip(*made, strict=True)
        return TableSet(rows, scales, states=[torch.ones(case.rows, device=self.device) for _ in range(case.tables)])

    def pooled(self, tables: TableSet) -> torch.Tensor:
        """What a forward of the first set gives: [B, T * D] FP32."""
        parts = zip(self.at(0).chunk(self.case.tables), tables.rows, tables.scales, strict=True)
        return torch.cat([decode_rows(rows[v], None if scale is None else scale[v]).view(self.case.batch, -1,
                          self.case.dim).sum(1) for v, rows, scale in parts], 1)  # fmt: skip

    def row_bytes(self, dtype: str) -> int:
        """Of codes and scale."""
        format = FORMATS[dtype]
        return self.case.dim * format.element.itemsize + (0 if format.scale is None else 4 * max(1, sum(format.scale)))

    def forward_bytes(self, dtype: str) -> int:
        return len(self.values[0]) * (self.row_bytes(dtype) + 8) + self.grad.nbytes

    def backward_bytes(self, dtype: str) -> int:
        """Of row-wise Adagrad: a state of 4 bytes a row."""
        return len(self.values[0]) * (8 + 4 * self.case.dim) + self.touched * 2 * (self.row_bytes(dtype) + 4)


def forward(run: GpuRun, bags: Bags, dtype: str) -> None:
    """One row format, pooled."""
    tables = bags.tables(dtype)

    def call(i: int) -> torch.Tensor:
        return bag_forward(tables, bags.at(i), bags.offsets, bounds="ignore")

    peers.agrees(call(0), bags.pooled(tables), "fp32")
    ours = [Entry(f"octavo {dtype}", call, io="float32", group=f"forward {dtype}", bytes=bags.forward_bytes(dtype),
                  roof=run.copy_roof())]  # fmt: skip
    run.contest("bag_forward", {**bags.case.shape(), "row_format": dtype}, ours, [])


def stepper(tables: TableSet, bags: Bags) -> Callable[[int], object]:
    """The backward of the i-th call with row-wise Adagrad."""

    def call(i: int) -> torch.Tensor:
        bag_backward(tables, bags.at(i), bags.offsets, None, bags.grad, "row_wise_adagrad", LR, bounds="ignore")
        return tables.rows[0]

    return call


def backward(run: GpuRun, bags: Bags, dtype: str) -> None:
    """One row format, the backward alone."""
    ours = [Entry(f"octavo {dtype}", stepper(bags.tables(dtype), bags), io="float32", group=f"backward {dtype}",
                  bytes=bags.backward_bytes(dtype), roof=run.copy_roof())]  # fmt: skip
    run.contest("bag_backward", {**bags.case.shape(), "row_format": dtype}, ours, [])


def torch_stepper(rows: list[torch.Tensor], bags: Bags) -> Callable[[int], torch.Tensor]:
    """Forward, backward and step as a torch user writes them."""
    weights = [torch.nn.Parameter(table.clone()) for table in rows]
    optimizer = torch.optim.Adagrad(weights, lr=LR)
    starts = bags.offsets[: bags.case.batch]

    def call(i: int) -> torch.Tensor:
        parts = zip(bags.at(i).chunk(bags.case.tables), weights, strict=True)
        pooled = torch.cat([torch.nn.functional.embedding_bag(v, weight, starts, mode="sum", sparse=True)
                            for v, weight in parts], 1)  # fmt: skip
        pooled.backward(bags.grad)
        optimizer.step()
        optimizer.zero_grad()
        return pooled.detach()

    return call


def against_torch(run: GpuRun, bags: Bags) -> None:
    """FP32 rows, forward and step."""
    tables = bags.tables("fp32")
    expected, step = bags.pooled(tables), stepper(tables, bags)
    rivals: list[Entry] = []
    absent: dict[str, str] = {}

    def rival() -> Entry:
        call = torch_stepper(list(tables.rows), bags)
        peers.agrees(call(0), expected, "fp32")
        return Entry(TORCH, call, io="float32", group="torch", captures=False)

    peers.admit(rivals, absent, TORCH, rival)

    def call(i: int) -> object:
        bag_forward(tables, bags.at(i), bags.offsets, bounds="ignore")
        return step(i)

    ours = [Entry(STEP, call, io="float32", group="step", captures=False)]
    run.contest("bag_backward", {**bags.case.shape(), "row_format": "fp32", "with": "forward"}, ours, rivals, absent)


def body(run: GpuRun) -> None:
    """Every case, then the figures."""
    for case in CASES[run.effort.name]:
        if not run.has_time("bag_forward", case.shape()):
            continue
        bags = Bags(case, run.device)
        for dtype in FORWARD:
            forward(run, bags, dtype)
        for dtype in TRAINED:
            backward(run, bags, dtype)
        against_torch(run, bags)
    multi: Any = lambda shape: shape["length"] > 1  # noqa: E731 - one index a bag is bound by outputs, not rows
    for dtype in FORWARD:
        run.share(f"gpu_embedding_forward_{dtype}_share", where(group=f"forward {dtype}"), 0.75, multi, worst=True)
    for dtype in TRAINED:
        run.share(f"gpu_embedding_backward_{dtype}_share", where(group=f"backward {dtype}"), 0.45, multi, worst=True)
    run.finding("gpu_embedding_step_vs_torch", where(group="step"), where(group="torch"), (TORCH,), 3.0, worst=True)


if __name__ == "__main__":
    sys.exit(gpu_run.main("gpu_embedding", body))
