"""The models that ``loka_prediction`` and ``loka_faults`` look at: four kinds, trained for a stretch, on inputs as they
are or with offsets, skews or outlier rows planted in them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from loka_sites import BATCH, GROUPS, ROWS, ranker, real_operands, trained

from octavo import loka
from octavo.data import Batch, EventLog, Schema

SHAPES: dict[str, dict[str, Any]] = {
    "wukong": {
        "layers": 2, "fmb_tokens": 8, "lcb_tokens": 8, "rank": 8, "fmb": [96], "bottom": [96], "top": [128, 80]
    },
    "dcnv2": {"cross_layers": 2, "deep": [128, 72]},
    "dlrm": {"bottom": [96, 48], "top": [136, 64]},
    "mlp": {"widths": (160, 96, 48)},
}  # fmt: skip
PLANTS = ("none", "offset", "skew", "outlier rows")
OUTLIERS, FACTOR = 0.02, 20.0  # share of the events, and how much larger their inputs are
OFFSET, POOLED_OFFSET = 4.0, 1.0  # of dense features, whose deviation is about 1, and of pooled embeddings


class Plain(torch.nn.Module):
    """A user's own ranker in plain torch: hashed embeddings beside the dense features, an MLP with ReLU, a head."""

    HASHED, DIM = 1 << 14, 16

    def __init__(self, schema: Schema, seed: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.tasks = schema.heads
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embeddings = Hashed(self.HASHED, self.DIM)
            width = len(schema.dense) + len(schema.sparse) * self.DIM
            layers: list[torch.nn.Module] = []
            for out in widths:
                layers += [torch.nn.Linear(width, out), torch.nn.ReLU()]
                width = out
            self.mlp = torch.nn.Sequential(*layers, torch.nn.Linear(width, len(self.tasks)))

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Logits [B] by task."""
        x = torch.cat([batch.dense, self.embeddings(batch).flatten(1)], 1)
        return dict(zip(self.tasks, self.mlp(x).unbind(1), strict=True))


class Hashed(torch.nn.Module):
    """Pooled embeddings [B, F, dim] of a batch's sparse features, all from one hashed table."""

    def __init__(self, rows: int, dim: int) -> None:
        super().__init__()
        self.rows, self.table = rows, torch.nn.EmbeddingBag(rows, dim, mode="sum", include_last_offset=True)
        torch.nn.init.uniform_(self.table.weight, -0.1, 0.1)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Feature by feature in ``batch.sparse``, event by event within."""
        events, offsets = len(batch), batch.sparse.offsets
        bag = torch.repeat_interleave(torch.arange(len(offsets) - 1), offsets.diff())
        codes = (batch.sparse.values + (bag // max(events, 1)) * 7919) % self.rows
        pooled: torch.Tensor = self.table(codes, offsets)
        return pooled.view(-1, events, pooled.shape[1]).transpose(0, 1)


class Planted(torch.nn.Module):
    """``model`` with its dense features and pooled embeddings changed as ``plant`` says, in training and after it."""

    def __init__(self, model: torch.nn.Module, plant: str) -> None:
        super().__init__()
        self.model, self.plant = model, plant
        self._factors = torch.ones(0)
        if plant != "none":
            tables: Any = model.embeddings
            tables.register_forward_hook(self._pooled)

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Logits [B] by task."""
        hashed = (batch.id * 2654435761 % (1 << 32)).double() / (1 << 32)
        self._factors = torch.where(hashed < OUTLIERS, FACTOR, 1.0)[:, None]
        dense = {
            "none": lambda x: x, "offset": lambda x: x + OFFSET, "skew": lambda x: x.clamp_max(4).exp(),
            "outlier rows": lambda x: x * self._factors,
        }[self.plant](batch.dense)  # fmt: skip
        logits: dict[str, torch.Tensor] = self.model(dataclasses.replace(batch, dense=dense.contiguous()))
        return logits

    def _pooled(self, module: torch.nn.Module, args: Any, output: Any) -> Any:
        pooled, *rest = output if isinstance(output, tuple) else (output,)
        pooled = {
            "offset": lambda x: x + POOLED_OFFSET, "skew": lambda x: x + 5 * x.relu(),
            "outlier rows": lambda x: x * self._factors[:, None],
        }[self.plant](pooled)  # fmt: skip
        return (pooled, *rest) if isinstance(output, tuple) else pooled


@dataclass(frozen=True)
class Subject:
    """A trained model: its Probe, and its layers' operands on events after those it trained on."""

    name: str
    data: str
    plant: str
    probe: loka.Probe
    operands: dict[str, loka.Operands]


def subject(log: EventLog, data: str, name: str, plant: str, steps: int, seed: int) -> Subject:
    """Train ``name`` on the log's first ``steps`` batches under a Probe of the last third."""
    shape = SHAPES[name]
    bare = Plain(log.schema, seed, **shape) if name == "mlp" else ranker(log, name, seed=seed, **shape)
    model = Planted(bare, plant).train()
    probe = trained(model, _batches(log, steps), watched_from=math.ceil(steps * 2 / 3), every=4)
    start = steps * BATCH
    held_out = log.read(start, start + ROWS * GROUPS)
    return Subject(name, data, plant, probe, real_operands(model, held_out, seed))


def _batches(log: EventLog, steps: int) -> Iterator[Batch]:
    return (log.read(step * BATCH, (step + 1) * BATCH) for step in range(steps))
