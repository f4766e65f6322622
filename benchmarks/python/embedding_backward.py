"""Embedding bags, backward fused with row-wise Adagrad, FP32 rows: against FBGEMM and torch's sparse Adagrad.

``bag_backward`` times backward + update alone (the forward runs untimed before each), ``bag_backward with forward``
both; ``bag_backward two threads`` times octavo's own against itself with one. FBGEMM runs EXACT_ROWWISE_ADAGRAD, the
same rule. torch has no row-wise Adagrad: sparse gradients with its element-wise one, the nearest a torch user has, with
as many states as elements. A new index set in every call. The roof is a random gather of such rows: a touched row is
read and written.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import embedding_peers
import harness
import peers
import torch
from embedding_peers import WIDTH, Bags, Case
from harness import where

from octavo import nn

LR, EPS = 0.02, 1e-8
CASES = {
    "smoke": [Case(2, 500, 16, 5, batch=16)],
    "quick": [Case(8, 200_000, 64, 20), Case(8, 200_000, 64, 1), Case(8, 200_000, 16, 20)],
    "full": [
        Case(8, 200_000, 64, 20), Case(8, 200_000, 64, 20, skew=4.0), Case(8, 200_000, 64, 1),
        Case(8, 200_000, 16, 20), Case(8, 200_000, 128, 20), Case(4, 2_000_000, 64, 20),
    ],
}  # fmt: skip
CHECKED = Case(2, 40, 8, 6, batch=16)  # small enough to follow, with rows that repeat within a bag and across bags
# One table alone: its rows are dealt to the threads.
FEW = {"smoke": Case(1, 500, 16, 40, batch=64), "quick": Case(1, 200_000, 64, 20, batch=4096),
       "full": Case(1, 2_000_000, 64, 20, batch=4096)}  # fmt: skip
TORCH, FBGEMM = "torch sparse Adagrad", "fbgemm rowwise Adagrad"
GATES = {"fbgemm": 3.0, "torch": 10.0}
SCALING, ONE_THREAD = "bag_backward two threads", "octavo fp32, one thread"


class Trainer(ABC):
    """Tables with their optimizer: ``forward(i)`` -> what ``backward`` wants."""

    def __init__(self, bags: Bags) -> None:
        self.bags = bags
        case = bags.case
        shape = (case.batch, case.tables * case.dim)
        self.grad = torch.randn(shape, generator=torch.Generator().manual_seed(3))

    @abstractmethod
    def forward(self, i: int) -> Any: ...

    @abstractmethod
    def backward(self, out: Any) -> None: ...

    def step(self, i: int) -> None:
        self.backward(self.forward(i))


class Fused(Trainer):
    """A module with the update inside backward: octavo's and FBGEMM's."""

    def __init__(self, bags: Bags, module: Any) -> None:
        super().__init__(bags)
        self.module = module

    def forward(self, i: int) -> torch.Tensor:
        return self.module(self.bags.all(i), self.bags.offsets)

    def backward(self, out: torch.Tensor) -> None:
        out.backward(self.grad)


class SparseAdagrad(Trainer):
    """torch: an EmbeddingBag per table with sparse gradients, and torch.optim.Adagrad."""

    def __init__(self, bags: Bags, rows: list[torch.Tensor]) -> None:
        super().__init__(bags)
        self.tables = [
            torch.nn.EmbeddingBag.from_pretrained(
                r.clone(), freeze=False, mode="sum", sparse=True, include_last_offset=True
            )
            for r in rows
        ]
        self.optimizer = torch.optim.Adagrad([t.weight for t in self.tables], lr=LR, eps=EPS)
        self.grads = [g.contiguous() for g in self.grad.split(bags.case.dim, 1)]

    def forward(self, i: int) -> list[torch.Tensor]:
        pairs = zip(self.tables, self.bags.per_table(i), strict=True)
        return [table(values, self.bags.table_offsets) for table, values in pairs]

    def backward(self, outs: list[torch.Tensor]) -> None:
        torch.autograd.backward(outs, self.grads)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def octavo_trainer(bags: Bags) -> Fused:
    """octavo's module in training mode."""
    return Fused(bags, embedding_peers.octavo_bags(bags.case, nn.RowWiseAdagrad(lr=LR, eps=EPS)).train())


def fbgemm_trainer(bags: Bags, rows: list[torch.Tensor]) -> Fused:
    """FBGEMM's module over the same rows."""
    return Fused(bags, embedding_peers.fbgemm_training(rows, LR, EPS))


def stepped(trainer: Trainer, rows: list[torch.Tensor], row_wise: bool) -> torch.Tensor:
    """Table 0 after one step by the rule in FP64, from zero state."""
    case, gradient = trainer.bags.case, torch.zeros(rows[0].shape, dtype=torch.float64)
    values = trainer.bags.per_table(0)[0]
    part = trainer.grad[:, : case.dim].double()
    gradient.index_add_(0, values, part.repeat_interleave(case.length, 0))
    square = gradient.square()
    state = square.mean(1, keepdim=True) if row_wise else square
    return rows[0].double() - LR * gradient / (state.sqrt() + EPS)


def check(smoke: bool) -> dict[str, str]:
    """One step of each on a small case against the rule. Raises when octavo's is wrong; peers' verdicts by name."""
    bags = Bags(CHECKED, smoke)
    ours = octavo_trainer(bags)
    rows = [r.clone() for r in embedding_peers.rows_of(ours.module)]
    ours.step(0)
    peers.agrees(embedding_peers.rows_of(ours.module)[0], stepped(ours, rows, True).float(), "fp32")
    verdicts: dict[str, str] = {}

    def verify_torch() -> harness.Entry:
        trainer = SparseAdagrad(bags, rows)
        trainer.step(0)
        peers.agrees(trainer.tables[0].weight.detach(), stepped(trainer, rows, False).float(), "fp32")
        return harness.Entry(TORCH, trainer.step)

    def verify_fbgemm() -> harness.Entry:
        trainer = fbgemm_trainer(bags, rows)
        trainer.step(0)
        weights = trainer.module.split_embedding_weights()
        peers.agrees(weights[0].detach(), stepped(trainer, rows, True).float(), "fp32")
        return harness.Entry(FBGEMM, trainer.step)

    for name, verify in ((TORCH, verify_torch), (FBGEMM, verify_fbgemm)):
        peers.admit([], verdicts, name, verify)
    return verdicts


def contest(run: harness.Run, case: Case, absent: dict[str, str]) -> None:
    """One case: backward alone, then with its forward."""
    bags = Bags(case, run.is_smoke)
    ours = octavo_trainer(bags)
    rows = embedding_peers.rows_of(ours.module)
    trainers: dict[str, Trainer] = {"octavo fp32": ours}
    if TORCH not in absent:
        trainers[TORCH] = SparseAdagrad(bags, rows)
    if FBGEMM not in absent:
        trainers[FBGEMM] = fbgemm_trainer(bags, rows)
    row_bytes = 4 * case.dim
    dense_bytes = 4 * case.batch * case.tables * case.dim
    roof = run.roofs.gather(-(-row_bytes // 64) * 64, case.tables * case.rows * row_bytes)
    for op, passes, alone in (("bag_backward", 2, True), ("bag_backward with forward", 3, False)):
        entries = [
            harness.Entry(
                name, trainer.backward if alone else trainer.step, prepare=trainer.forward if alone else None,
                io=WIDTH["fp32"], group=op, facts={"route": "nn.EmbeddingBags, training"},
                bytes=passes * case.lookups * row_bytes + dense_bytes, items=passes * case.lookups, roof=roof,
            )
            for name, trainer in trainers.items()
        ]  # fmt: skip
        run.contest(op, case.shape(), entries[:1], entries[1:], absent)


def scaling(run: harness.Run, case: Case) -> None:
    """One case with two threads and with one, backward alone."""
    bags = Bags(case, run.is_smoke)
    ours = octavo_trainer(bags)
    row_bytes = 4 * case.dim

    def entry(name: str, threads: int) -> harness.Entry:
        def prepare(i: int) -> torch.Tensor:
            torch.set_num_threads(threads)
            return ours.forward(i)

        return harness.Entry(
            name, ours.backward, prepare=prepare, io=WIDTH["fp32"], group=SCALING, facts={"threads": threads},
            bytes=2 * case.lookups * row_bytes + 4 * case.batch * case.tables * case.dim, items=2 * case.lookups,
        )  # fmt: skip

    before = torch.get_num_threads()
    try:
        run.contest(SCALING, case.shape(), [entry("octavo fp32", 2)], [entry(ONE_THREAD, 1)])
    finally:
        torch.set_num_threads(before)


def body(run: harness.Run) -> None:
    """Every case, then the figures."""
    absent = check(run.is_smoke)
    for case in CASES[run.effort.name]:
        contest(run, case, absent)
    for case in [*CASES[run.effort.name], FEW[run.effort.name]]:
        scaling(run, case)
    for op, word in (("bag_backward", "backward"), ("bag_backward with forward", "forward_backward")):
        for peer, short in ((FBGEMM, "fbgemm"), (TORCH, "torch")):
            bar = GATES.get(short) if word == "backward" else None
            run.finding(f"embedding_{word}_vs_{short}", where(group=op), where(name=peer), named=(peer,), bar=bar)
    run.finding("embedding_backward_two_threads", where(group=SCALING), where(name=ONE_THREAD), named=(ONE_THREAD,),
                bar=1.7, worst=True)  # fmt: skip


if __name__ == "__main__":
    harness.main("embedding_backward", body)
