"""Examples a second of whole training steps of four rankers: octavo under LoKA's plan against torch, FBGEMM and BF16.

A step is forward, loss, backward and both optimizers: row-wise Adagrad for the tables, Adam for the rest. octavo's
plan has all three directions (``loka.solve(..., training=True)``); ``octavo bf16`` has every layer in BF16, gradients
too. torch's layers are in FP32 or BF16 autocast, eager or compiled, over an ``EmbeddingBag`` per table or one for all
tables, with sparse gradients and torch's element-wise Adagrad, or over FBGEMM's fused tables. All start from the same
trained weights; losses of the first steps must agree (torch's Adagrad: of the first).
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import harness
import torch
from embedding_peers import rows_of
from harness import Entry, where
from loka_speed_models import LR, SIZES, TASK, Study, classes_of, loss_of, twin
from loka_speed_torch import towers_of
from training_steps import (
    Fused,
    Inputs,
    SparseAdagrad,
    Step,
    Tables,
    admit_steps,
    agreeing,
    fbgemm_tables,
    first_losses,
    inputs_of,
)

from octavo import loka, models
from octavo.data import Batch
from octavo.training.numerics import run_all_in

TORCH, FBGEMM = ("torch", "torch, one table"), "fbgemm + torch"


class OneTable(SparseAdagrad):
    """All tables one below the other in one ``EmbeddingBag``: one call, one gradient."""

    def __init__(self, inputs: Inputs, rows: list[torch.Tensor]) -> None:
        super().__init__(inputs, [torch.cat(rows)])

    def pooled(self, at: int) -> torch.Tensor:
        return super().pooled(at).view(len(self.inputs.labels[at]), -1)

    def reset(self, rows: list[torch.Tensor]) -> None:
        super().reset([torch.cat(rows)])


def fed_to(study: Study, batches: list[Batch]) -> tuple[Inputs, Inputs]:
    """The batches for tables apart and for one of all."""
    dense, labels = [batch.dense for batch in batches], [batch.labels[TASK] for batch in batches]
    apart = inputs_of(study.size.lengths, dense, [batch.sparse.values for batch in batches], labels)
    stacked = [study.events.stacked(batch) for batch in batches]
    values, offsets = [values for values, _ in stacked], stacked[0][1]
    return apart, Inputs(dense, values, offsets, [[v] for v in values], [offsets], labels)


def octavo_step(model: models.Ranker, batches: list[Batch]) -> Step:
    """The whole step of octavo's model, whose tables train in backward; it returns the loss."""
    optimizer = torch.optim.Adam(model.parameters(), lr=LR, fused=True)
    model.train()

    def step(i: int) -> torch.Tensor:
        batch = batches[i % len(batches)]
        loss = loss_of(model(batch)[TASK], batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def contest(run: harness.Run, study: Study) -> None:
    """One model."""
    size = study.size
    batches = study.events.batches(size.train_batch, 3 if run.is_smoke else 16)
    apart, stacked = fed_to(study, batches)
    plan = study.training_plan()
    bags: Any = study.model.embeddings
    bags = bags.bags
    state = [tensor for name, tensor in bags.state_dict().items() if name.startswith("state.")]
    own = Fused(apart, bags, rows_of(bags), state)
    rows = [table.clone() for table in own.rows]
    own.reset(rows)
    expected = first_losses(octavo_step(twin(study.model), batches))
    ours = []
    for name in ("octavo plan", "octavo bf16"):
        model = twin(study.model)
        facts: dict[str, Any] = {"numerics": "bf16"}
        if name == "octavo plan":
            loka.install(model, plan, training=True)
            facts = {"numerics": "plan", **{way: classes_of(plan, way) for way in loka.DIRECTIONS}}
        else:
            run_all_in(model, "bf16")
        own.reset(rows)
        step = agreeing(octavo_step(model, batches), expected)
        ours.append(Entry(name, step, io="float32", group=name, facts=facts, items=size.train_batch, captures=False))
    rivals: list[Entry] = []
    absent: dict[str, str] = {}
    makers: dict[str, Callable[[], Tables]] = {
        FBGEMM: lambda: fbgemm_tables(apart, rows),
        TORCH[0]: lambda: SparseAdagrad(apart, rows),
        TORCH[1]: lambda: OneTable(stacked, rows),
    }
    if study.events.device == "cuda":
        del makers[FBGEMM]  # its tables here are the CPU's

    def towers() -> torch.nn.Module:
        return towers_of(study.kind, study.model, len(size.rows), size.dim).to(study.events.device)

    admit_steps(rivals, absent, makers, rows, towers, apart, expected, not run.is_smoke)
    shape = {"model": study.kind, "batch": size.train_batch, "tables": len(size.rows), "dim": size.dim}
    run.contest("loka_training", shape, ours, rivals, absent)


def body(run: harness.Run) -> None:
    """Every model, then the figures."""
    size = SIZES[run.effort.name]
    for kind in size.kinds:
        study = Study(kind, size)
        contest(run, study)
        del study
        torch.compiler.reset()
        gc.collect()

    def of_torch(entry: Entry) -> bool:
        return entry.group in TORCH

    plan = where(group="octavo plan")
    setups = [f"{library} {dtype} {mode}" for library in (TORCH[0], FBGEMM) for dtype in ("float32", "bfloat16")
              for mode in ("eager", "compiled")]  # fmt: skip
    run.finding("loka_training_vs_best_torch", plan, of_torch, setups[: 4 : 1 + run.is_smoke], 1.5)
    run.finding("loka_training_vs_fbgemm", plan, where(group=FBGEMM), setups[4 :: 1 + run.is_smoke], 1.5)
    run.rivalry("loka_training_vs_octavo_bf16", "octavo plan", "octavo bf16", 1.0)
    for kind in size.kinds:

        def of_kind(shape: Any, kind: str = kind) -> bool:
            return bool(shape["model"] == kind)

        run.finding(f"loka_training_{kind}_vs_best_torch", plan, of_torch, among=of_kind)
        run.finding(f"loka_training_{kind}_vs_fbgemm", plan, where(group=FBGEMM), among=of_kind)
        run.rivalry(f"loka_training_{kind}_vs_octavo_bf16", "octavo plan", "octavo bf16", among=of_kind)


if __name__ == "__main__":
    harness.main("loka_training", body)
