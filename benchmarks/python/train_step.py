"""One training step of a DLRM, from indices to updated weights: octavo against torch and against FBGEMM's tables.

26 tables of 200,000 x 64 in FP32 (20 with one index a row of the batch, 6 with 20), row-wise Adagrad; bottom 512-256-64
on 13 dense features, pairwise dot interaction, top 512-512-256-1, Adam; binary cross-entropy; batch 2048. octavo runs
its modules, dense layers in a numerics class on BF16 activations; torch runs an ``EmbeddingBag`` per table with sparse
gradients (its element-wise Adagrad, the nearest it has) or FBGEMM's fused tables, dense layers in FP32 or under BF16
autocast, eager or compiled. All start from the same weights; losses of the first steps must agree.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import embedding_peers
import harness
import torch
from embedding_peers import Case
from harness import Entry, where
from torch.nn import functional
from training_steps import (
    EPS,
    TABLE_LR,
    Fused,
    Inputs,
    SparseAdagrad,
    Tables,
    admit_steps,
    agreeing,
    fbgemm_tables,
    first_losses,
    inputs_of,
    step_of,
)

from octavo import nn, ops

DENSE = 13
CLASSES = ("bf16", "int8_dynamic")


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


def inputs(size: Size, count: int) -> Inputs:
    """``count`` random batches."""
    g = torch.Generator().manual_seed(5)
    lengths = [1] * size.single + [size.length] * size.multi
    dense = [torch.randn(size.batch, DENSE, generator=g) for _ in range(count)]
    values = [torch.randint(size.rows, (size.batch * sum(lengths),), generator=g) for _ in range(count)]
    labels = [(torch.rand(size.batch, generator=g) < 0.3).float() for _ in range(count)]
    return inputs_of(lengths, dense, values, labels)


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


def octavo_tables(size: Size, inputs: Inputs) -> Fused:
    """octavo's module in training mode."""
    module = embedding_peers.octavo_bags(size.case, nn.RowWiseAdagrad(lr=TABLE_LR, eps=EPS)).train()
    state = module.state_dict()
    states = [tensor for name, tensor in state.items() if name.startswith("state.")]
    return Fused(inputs, module, embedding_peers.rows_of(module), states)


def body(run: harness.Run) -> None:
    """One contest of whole steps."""
    size = SIZES[run.effort.name]
    fed = inputs(size, 3 if run.is_smoke else 16)
    own = octavo_tables(size, fed)
    rows = [table.mul(0.02) for table in own.rows]
    own.reset(rows)
    expected = first_losses(step_of(fed, towers_of(size, None), own))
    ours = []
    for numerics in CLASSES:
        own.reset(rows)
        step = agreeing(step_of(fed, towers_of(size, numerics), own, dense_dtype=torch.bfloat16), expected)
        ours.append(Entry(f"octavo {numerics}", step, io="float32", group="octavo", facts={"numerics": numerics}))
    rivals: list[Entry] = []
    absent: dict[str, str] = {}
    makers: dict[str, Callable[[], Tables]] = {
        "fbgemm + torch": lambda: fbgemm_tables(fed, rows),
        "torch": lambda: SparseAdagrad(fed, rows),
    }
    admit_steps(rivals, absent, makers, rows, lambda: towers_of(size, None), fed, expected, not run.is_smoke)
    shape = {"tables": size.tables, "rows": size.rows, "dim": size.dim, "batch": size.batch}
    run.contest("bag_backward train_step", shape, ours, rivals, absent)
    named = tuple(f"{library} bfloat16 {mode}" for library in makers for mode in ("eager", "compiled"))
    run.finding("train_step", where(group="octavo"), where(), named, 1.5)
    for library, slug in (("torch", "torch"), ("fbgemm + torch", "fbgemm")):
        run.finding(f"train_step_vs_{slug}", where(group="octavo"), where(group=library))


if __name__ == "__main__":
    harness.main("train_step", body)
