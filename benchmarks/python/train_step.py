"""One training step of a DLRM, from indices to updated weights: octavo against torch and against FBGEMM's tables.

26 tables of 200,000 x 64 in FP32 (20 with one index a row of the batch, 6 with 20), row-wise Adagrad; bottom 512-256-64
on 13 dense features, pairwise dot interaction, top 512-512-256-1, Adam; binary cross-entropy; batch 2048. octavo runs
its modules, dense layers in a numerics class on BF16 activations; torch runs an ``EmbeddingBag`` per table with sparse
gradients (its element-wise Adagrad, the nearest it has) or FBGEMM's fused tables, dense layers in FP32 or under BF16
autocast, eager or compiled. All start from the same weights; losses of the first steps must agree.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import embedding_peers
import harness
import peers
import torch
from embedding_peers import Case
from harness import Entry, where
from torch.nn import functional

from octavo import nn, ops

DENSE, LR, TABLE_LR, EPS = 13, 1e-3, 0.02, 1e-8
CLASSES = ("bf16", "int8_dynamic")
CHECKED_STEPS, LOSS_TOLERANCE = 3, 2e-3
Step = Callable[[int], torch.Tensor]


@dataclass(frozen=True)
class Size:
    """Tables with one index and with ``length``, rows, width and batch; hidden widths of both MLPs."""

    single: int = 20
    multi: int = 6
    length: int = 20
    rows: int = 200_000
    dim: int = 64
    batch: int = 2048
    bottom: tuple[int, ...] = (512, 256, 64)
    top: tuple[int, ...] = (512, 512, 256, 1)

    @property
    def tables(self) -> int:
        return self.single + self.multi

    @property
    def case(self) -> Case:
        return Case(self.tables, self.rows, self.dim, 1, self.batch)


SIZES = {"smoke": Size(2, 1, 3, 50, 8, 16, (16, 8), (16, 1)), "quick": Size(), "full": Size()}


class Inputs:
    """Batches that come again after ``count`` steps: dense features, indices and offsets, labels."""

    def __init__(self, size: Size, count: int) -> None:
        g = torch.Generator().manual_seed(5)
        lengths = [1] * size.single + [size.length] * size.multi
        counts = torch.tensor(lengths).repeat_interleave(size.batch)
        self.offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
        self.table_offsets = [torch.arange(size.batch + 1) * length for length in lengths]
        sizes = [size.batch * length for length in lengths]
        self.dense = [torch.randn(size.batch, DENSE, generator=g) for _ in range(count)]
        self.values = [torch.randint(size.rows, (sum(sizes),), generator=g) for _ in range(count)]
        self.per_table = [list(v.split(sizes)) for v in self.values]
        self.labels = [(torch.rand(size.batch, generator=g) < 0.3).float() for _ in range(count)]


class Towers(torch.nn.Module):
    """The dense half: bottom MLP, dot interaction, top MLP. ``layer(k, n, relu)`` makes a layer, ``interact`` the dot
    products [B, F (F - 1) / 2] of every pair of [B, F, D].
    """

    def __init__(self, size: Size, layer: Callable[[int, int, bool], torch.nn.Module], interact: torch.nn.Module):
        super().__init__()
        self.features, self.dim, self.interact = size.tables + 1, size.dim, interact

        def mlp(widths: list[int]) -> torch.nn.Sequential:
            last = len(widths) - 2
            return torch.nn.Sequential(
                *(layer(k, n, i < last or widths[-1] > 1) for i, (k, n) in enumerate(itertools.pairwise(widths)))
            )

        self.bottom = mlp([DENSE, *size.bottom])
        self.top = mlp([size.dim + self.features * (self.features - 1) // 2, *size.top])

    def forward(self, dense: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
        bottom = self.bottom(dense)
        features = torch.cat([bottom.to(pooled.dtype), pooled], 1).view(-1, self.features, self.dim)
        dots = self.interact(features)
        return self.top(torch.cat([bottom, dots.to(bottom.dtype)], 1)).float().squeeze(-1)


class TorchDots(torch.nn.Module):
    """bmm, then the lower triangle."""

    pairs: torch.Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        pairs = torch.tril_indices(features, features, offset=-1)
        self.register_buffer("pairs", pairs[0] * features + pairs[1], persistent=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return torch.bmm(features, features.transpose(1, 2)).flatten(1).index_select(1, self.pairs)


class OctavoDots(torch.nn.Module):
    """The lower triangle at once, operands in BF16."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return ops.pairwise_dots(features, pairs="lower", numerics="bf16", out_dtype=torch.bfloat16)


class TorchLayer(torch.nn.Module):
    """Linear, then ReLU."""

    def __init__(self, k: int, n: int, relu: bool) -> None:
        super().__init__()
        self.weight, self.bias, self.relu = *torch.nn.Linear(k, n).parameters(), relu

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.linear(x, self.weight, self.bias)
        return functional.relu(y) if self.relu else y


def towers_of(size: Size, numerics: str | None) -> Towers:
    """torch's towers, or octavo's in a class, from the same initial weights."""
    torch.manual_seed(0)
    reference = Towers(size, TorchLayer, TorchDots(size.tables + 1))
    if numerics is None:
        return reference

    def layer(k: int, n: int, relu: bool) -> torch.nn.Module:
        return nn.LinearNorm(k, n, norm=None, activation="relu" if relu else None)

    ours = Towers(size, layer, OctavoDots())
    ours.load_state_dict(reference.state_dict())
    for module in ours.modules():
        if isinstance(module, nn.LinearNorm):
            module.numerics = numerics
    return ours


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


def octavo_tables(size: Size, inputs: Inputs) -> Fused:
    """octavo's module in training mode."""
    module = embedding_peers.octavo_bags(size.case, nn.RowWiseAdagrad(lr=TABLE_LR, eps=EPS)).train()
    state = module.state_dict()
    states = [tensor for name, tensor in state.items() if name.startswith("state.")]
    return Fused(inputs, module, embedding_peers.rows_of(module), states)


def fbgemm_tables(size: Size, inputs: Inputs, rows: list[torch.Tensor]) -> Fused:
    """FBGEMM's module over the same rows."""
    module = embedding_peers.fbgemm_training(rows, TABLE_LR, EPS)
    states = [state for table in module.split_optimizer_states() for state in table]
    return Fused(inputs, module, module.split_embedding_weights(), states)


def step_of(
    inputs: Inputs,
    towers: torch.nn.Module,
    tables: Tables,
    autocast: bool = False,
    compiled: bool = False,
    dense_dtype: torch.dtype = torch.float32,
) -> Step:
    """The whole step; it returns the loss. Compiled: towers and loss, as users compile around sparse tables."""
    optimizer = torch.optim.Adam(towers.parameters(), lr=LR, fused=True)

    def loss_of(dense: torch.Tensor, rows: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = towers(dense, rows)
        return functional.binary_cross_entropy_with_logits(logits, labels)

    run = torch.compile(loss_of) if compiled else loss_of

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


def agreeing(step: Step, expected: list[float] | None) -> Step:
    """The step, when its first losses are the expected ones; torch's Adagrad is another rule and has no expectation."""
    losses = first_losses(step)
    if expected is not None and max(abs(a - b) for a, b in zip(losses, expected, strict=True)) > LOSS_TOLERANCE:
        raise peers.Wrong(f"losses {losses} of the first steps, expected {expected}")
    return step


def body(run: harness.Run) -> None:
    """One contest of whole steps."""
    size = SIZES[run.effort.name]
    inputs = Inputs(size, 3 if run.is_smoke else 16)
    own = octavo_tables(size, inputs)
    rows = [table.mul(0.02) for table in own.rows]
    own.reset(rows)
    expected = first_losses(step_of(inputs, towers_of(size, None), own))
    ours = []
    for numerics in CLASSES:
        own.reset(rows)
        step = agreeing(step_of(inputs, towers_of(size, numerics), own, dense_dtype=torch.bfloat16), expected)
        ours.append(Entry(f"octavo {numerics}", step, io="float32", group="octavo", facts={"numerics": numerics}))
    rivals: list[Entry] = []
    absent: dict[str, str] = {}
    makers: dict[str, Callable[[], Tables]] = {
        "fbgemm + torch": lambda: fbgemm_tables(size, inputs, rows),
        "torch": lambda: SparseAdagrad(inputs, rows),
    }
    for library, make in makers.items():
        made: list[Tables] = []
        for dtype, mode in itertools.product(("float32", "bfloat16"), ("eager", "compiled")):
            name = f"{library} {dtype} {mode}"
            if run.is_smoke and mode == "compiled":
                absent[name] = "not in the smoke run: compiling takes seconds"
                continue

            def build(name: str = name, library: str = library, make: Callable[[], Tables] = make,
                      made: list[Tables] = made, dtype: str = dtype, mode: str = mode) -> Entry:  # fmt: skip
                if not made:
                    made.append(make())
                made[0].reset(rows)
                step = step_of(inputs, towers_of(size, None), made[0], dtype == "bfloat16", mode == "compiled")
                agreeing(step, expected if library != "torch" else None)
                return Entry(name, step, io="float32", group=library)

            peers.admit(rivals, absent, name, build)
    shape = {"tables": size.tables, "rows": size.rows, "dim": size.dim, "batch": size.batch}
    run.contest("bag_backward train_step", shape, ours, rivals, absent)
    named = tuple(f"{library} bfloat16 {mode}" for library in makers for mode in ("eager", "compiled"))
    run.finding("train_step", where(group="octavo"), where(), named, 1.5)
    for library, slug in (("torch", "torch"), ("fbgemm + torch", "fbgemm")):
        run.finding(f"train_step_vs_{slug}", where(group="octavo"), where(group=library))


if __name__ == "__main__":
    harness.main("train_step", body)
