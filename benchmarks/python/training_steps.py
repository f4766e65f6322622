"""Whole training steps, from indices to updated weights, and the peers of such contests: torch's tables with sparse
gradients and FBGEMM's fused ones, under torch's dense layers in FP32 or BF16 autocast, eager or compiled."""

from __future__ import annotations

import copy
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import embedding_peers
import peers
import torch
from harness import Entry
from torch.nn import functional

LR, TABLE_LR, EPS = 1e-3, 0.02, 1e-8
CHECKED_STEPS, LOSS_TOLERANCE = 3, 2e-3
Step = Callable[[int], torch.Tensor]
Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
SETUPS = tuple(itertools.product(("float32", "bfloat16"), ("eager", "compiled")))


@dataclass(frozen=True)
class Inputs:
    """Batches that come again: dense [B, n], ids of all tables feature-major with ``offsets`` [T * B + 1], and the
    same ``per_table`` with ``table_offsets`` [B + 1] each; labels [B]."""

    dense: Sequence[torch.Tensor]
    values: Sequence[torch.Tensor]
    offsets: torch.Tensor
    per_table: Sequence[Sequence[torch.Tensor]]
    table_offsets: Sequence[torch.Tensor]
    labels: Sequence[torch.Tensor]


def inputs_of(
    lengths: Sequence[int],
    dense: Sequence[torch.Tensor],
    values: Sequence[torch.Tensor],
    labels: Sequence[torch.Tensor],
) -> Inputs:
    """Batches of ``lengths[t]`` ids an event in table t."""
    batch = len(labels[0])
    counts = torch.tensor(lengths).repeat_interleave(batch)
    device = values[0].device
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]).to(device)
    sizes = [batch * length for length in lengths]
    table_offsets = [torch.arange(batch + 1, device=device) * length for length in lengths]
    return Inputs(dense, values, offsets, [list(v.split(sizes)) for v in values], table_offsets, labels)


class Tables(ABC):
    """Tables trained inside or after backward. Contestants of one library share them: five copies would not fit."""

    @abstractmethod
    def pooled(self, at: int) -> torch.Tensor: ...

    @abstractmethod
    def reset(self, rows: list[torch.Tensor]) -> None:
        """To ``rows``, with optimizers that have seen nothing."""

    def update(self) -> None:  # noqa: B027 - nothing by default
        """After backward, where that has not updated them."""


class Fused(Tables):
    """octavo's and FBGEMM's module: the update is in backward."""

    def __init__(self, inputs: Inputs, module: torch.nn.Module, rows: list[torch.Tensor], states: list[torch.Tensor]):
        self.inputs, self.module, self.rows, self.states = inputs, module, rows, states

    def pooled(self, at: int) -> torch.Tensor:
        out: torch.Tensor = self.module(self.inputs.values[at], self.inputs.offsets)
        return out

    def reset(self, rows: list[torch.Tensor]) -> None:
        with torch.no_grad():
            for own, table in zip(self.rows, rows, strict=True):
                own.copy_(table)
            for state in self.states:
                state.zero_()


class SparseAdagrad(Tables):
    """torch: an EmbeddingBag a table, sparse gradients."""

    def __init__(self, inputs: Inputs, rows: list[torch.Tensor]) -> None:
        self.inputs = inputs
        self.tables = [
            torch.nn.EmbeddingBag.from_pretrained(
                r.clone(), freeze=False, mode="sum", sparse=True, include_last_offset=True
            )
            for r in rows
        ]
        self.optimizer = torch.optim.Adagrad([t.weight for t in self.tables], lr=TABLE_LR, eps=EPS)

    def pooled(self, at: int) -> torch.Tensor:
        parts = zip(self.tables, self.inputs.per_table[at], self.inputs.table_offsets, strict=True)
        return torch.cat([table(values, offsets) for table, values, offsets in parts], 1)

    def update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def reset(self, rows: list[torch.Tensor]) -> None:
        with torch.no_grad():
            for table, row in zip(self.tables, rows, strict=True):
                table.weight.copy_(row)
                self.optimizer.state[table.weight]["sum"].zero_()


def fbgemm_tables(inputs: Inputs, rows: list[torch.Tensor]) -> Fused:
    """FBGEMM's module over the same rows."""
    module = embedding_peers.fbgemm_training(rows, TABLE_LR, EPS)
    states = [state for table in module.split_optimizer_states() for state in table]
    return Fused(inputs, module, module.split_embedding_weights(), states)


def loss_function(towers: torch.nn.Module, autocast: bool = False, compiled: bool = False) -> Loss:
    """Loss of (dense, pooled, labels). Compiled: towers and loss, as users compile around sparse tables."""

    def loss_of(dense: torch.Tensor, pooled: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.autocast(dense.device.type, torch.bfloat16, enabled=autocast):
            logits = towers(dense, pooled)
        return functional.binary_cross_entropy_with_logits(logits, labels)

    return torch.compile(loss_of) if compiled else loss_of


def step_of(
    inputs: Inputs,
    towers: torch.nn.Module,
    tables: Tables,
    loss_of: Loss | None = None,
    dense_dtype: torch.dtype = torch.float32,
) -> Step:
    """The whole step; it returns the loss. ``loss_of``: of these towers; None: eager, as they are."""
    optimizer = torch.optim.Adam(towers.parameters(), lr=LR, fused=True)
    run = loss_of or loss_function(towers)

    def step(i: int) -> torch.Tensor:
        at = i % len(inputs.values)
        loss = run(inputs.dense[at].to(dense_dtype), tables.pooled(at), inputs.labels[at])
        loss.backward()
        optimizer.step()
        tables.update()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def first_losses(step: Step) -> list[float]:
    """Of the first steps."""
    return [step(i).item() for i in range(CHECKED_STEPS)]


def agreeing(step: Step, expected: list[float]) -> Step:
    """The step, when its first losses are the expected ones. Of another rule than row-wise Adagrad give the first
    alone: it comes before any update."""
    losses = first_losses(step)
    if not max(abs(a - b) for a, b in zip(losses, expected, strict=False)) <= LOSS_TOLERANCE:
        raise peers.Wrong(f"losses {losses} of the first steps, expected {expected}")
    return step


def admit_steps(
    rivals: list[Entry],
    absent: dict[str, str],
    makers: Mapping[str, Callable[[], Tables]],
    rows: list[torch.Tensor],
    make_towers: Callable[[], torch.nn.Module],
    inputs: Inputs,
    expected: list[float],
    compiles: bool,
) -> None:
    """Admit every library of ``makers`` (its tables, made once) in every set-up (its towers, compiled once, are the
    same for all libraries): all start from ``rows`` and ``make_towers()``, and show the ``expected`` losses; torch's
    Adagrad, which is element-wise, the first of them."""
    towers = {setup: make_towers() for setup in SETUPS}
    losses = {
        (dtype, mode): loss_function(module, dtype == "bfloat16", mode == "compiled")
        for (dtype, mode), module in towers.items()
    }
    start = copy.deepcopy(make_towers().state_dict())
    for library, make in makers.items():
        made: list[Tables] = []
        for setup in SETUPS:
            name = f"{library} {setup[0]} {setup[1]}"
            if setup[1] == "compiled" and not compiles:
                absent[name] = "not in the smoke run: compiling takes seconds"
                continue

            def build(name: str = name, library: str = library, make: Callable[[], Tables] = make,
                      made: list[Tables] = made, setup: tuple[str, str] = setup) -> Entry:  # fmt: skip
                if not made:
                    made.append(make())
                made[0].reset(rows)
                towers[setup].load_state_dict(start)
                step = step_of(inputs, towers[setup], made[0], losses[setup])
                agreeing(step, expected if library.startswith("fbgemm") else expected[:1])
                return Entry(name, step, io="float32", group=library, captures=False)

            peers.admit(rivals, absent, name, build)
