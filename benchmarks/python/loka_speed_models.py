"""The rankers that LoKA's speed is measured on, their events, and a short training of each under a Probe.

Wukong, DCN-V2, DLRM and a plain MLP of widths 256 to 1024 over hashed tables of Criteo's kind: few large,
many small, some with several ids an event, ids by Zipf's law. Labels come from effects of ids and dense features, so
that there is something to learn and NE says what an error costs.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.nn import functional

from octavo import loka, models, nn
from octavo.config import DLRMConfig, ModelConfig, build_config
from octavo.data import Batch, Dense, Label, Schema, Sparse
from octavo.evaluation import ne
from octavo.loka.candidates import own_candidate
from octavo.loka.costs import REFERENCE, forward_costs
from octavo.models.heads import build_heads
from octavo.models.layers import mlp
from octavo.models.tables import Tables
from octavo.ops import Jagged
from octavo.ops.dispatch import Plan, Requirement
from octavo.ops.dispatch.plan import LOW_PRECISION

TASK, DENSE, LR, TABLE_LR = "click", 13, 1e-3, 0.02
REQUIREMENT = Requirement(max_post_norm=0.05)
KINDS = ("wukong", "dcnv2", "dlrm", "mlp")
SERVED_ROWS = "int8"
ZIPF, BIAS, STRENGTH = 1.05, -1.5, 1.2  # of ids; of the labels' logit
WIDE: dict[str, dict[str, Any]] = {
    "wukong": {"layers": 3, "fmb_tokens": 16, "lcb_tokens": 16, "rank": 16, "fmb": [512], "bottom": [256],
               "top": [1024, 512]},
    "dcnv2": {"cross_layers": 3, "deep": [1024, 512]},
    "dlrm": {"bottom": [512, 256], "top": [1024, 512, 256]},
    "mlp": {"top": [1024, 512, 256]},
}  # fmt: skip
SMALL: dict[str, dict[str, Any]] = {
    "wukong": {"layers": 1, "fmb_tokens": 2, "lcb_tokens": 2, "rank": 2, "fmb": [16], "bottom": [8], "top": [16]},
    "dcnv2": {"cross_layers": 1, "deep": [16]},
    "dlrm": {"bottom": [8], "top": [16]},
    "mlp": {"top": [16]},
}  # fmt: skip


@dataclass(frozen=True)
class Size:
    """Rows of the tables with one id an event, of those with ``length`` ids, their width; batches that are served;
    batches of the training, with the Probe for the last two thirds; the rankers."""

    kinds: tuple[str, ...] = KINDS
    single: tuple[int, ...] = (500_000,) * 6 + (100_000,) * 6 + (5_000,) * 8
    multi: tuple[int, ...] = (500_000,) * 2 + (20_000,) * 4
    length: int = 10
    dim: int = 32
    shapes: Mapping[str, dict[str, Any]] = field(default_factory=lambda: WIDE)
    batches: tuple[int, ...] = (64, 256, 1024, 4096)
    train_batch: int = 1024
    train_steps: int = 60
    held_out: int = 4096
    draws: int = 100

    @property
    def rows(self) -> tuple[int, ...]:
        """Of every table."""
        return (*self.single, *self.multi)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Ids an event, by table."""
        return (1,) * len(self.single) + (self.length,) * len(self.multi)


SIZES = {
    "smoke": Size(KINDS, (50, 40), (30,), 2, 8, SMALL, (16,), 32, 6, 64, 8),
    "quick": Size(("dlrm", "mlp"), batches=(256, 1024), train_batch=512, train_steps=24, draws=16),
    "full": Size(),
}


class Events:
    """Batches of one world, by number: the same for the same seed, on ``device``."""

    def __init__(self, size: Size, seed: int = 0, device: str = "cpu") -> None:
        self.size, self.device = size, device
        generator = torch.Generator().manual_seed(seed)
        self._laws = {rows: torch.arange(1, rows + 1).double().pow(-ZIPF).cumsum(0) for rows in set(size.rows)}
        self._effects = [torch.randn(rows, generator=generator) for rows in size.rows]
        self._weights = torch.randn(DENSE, generator=generator) / DENSE**0.5

    @property
    def schema(self) -> Schema:
        """Dense features, a table a sparse feature, one label."""
        sparse = tuple(
            Sparse(f"f{t}", rows, multi=length > 1)
            for t, (rows, length) in enumerate(zip(self.size.rows, self.size.lengths, strict=True))
        )
        return Schema(tuple(Dense(f"d{i}") for i in range(DENSE)), sparse, labels=(Label(TASK),))

    def batch(self, events: int, seed: int) -> Batch:
        """``events`` fresh ones."""
        generator = torch.Generator().manual_seed(1_000_003 * events + seed)
        dense = torch.randn(events, DENSE, generator=generator).exp().log1p()  # counts, as they are fed
        logits = BIAS + STRENGTH * (dense - dense.mean(0)) @ self._weights
        values = []
        for rows, length, effects in zip(self.size.rows, self.size.lengths, self._effects, strict=True):
            law = self._laws[rows]
            drawn = torch.rand(events * length, generator=generator, dtype=torch.float64) * law[-1]
            ranks = torch.searchsorted(law, drawn).clamp_max(rows - 1)
            ids = (ranks * 2_654_435_761 + rows // 3) % rows  # hashed: neighbours in rank are none in memory
            values.append(ids)
            logits += STRENGTH * effects[ids].view(events, length).mean(1) / len(self._effects) ** 0.5
        lengths = torch.tensor(self.size.lengths).repeat_interleave(events)
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        labels = (torch.rand(events, generator=generator) < logits.sigmoid()).float()
        none, numbers = torch.full((events,), -1), torch.arange(events)
        return Batch(
            dense=dense, sparse=Jagged(torch.cat(values), offsets), sequences={}, labels={TASK: labels}, user=none,
            item=none, request=none, domain=none, weight=torch.ones(events), time=numbers, delay={}, id=numbers,
        ).to(self.device)  # fmt: skip

    def batches(self, events: int, count: int) -> list[Batch]:
        """``count`` batches of that size."""
        return [self.batch(events, seed) for seed in range(count)]

    def stacked(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """A batch's ids and offsets [B * T + 1] event by event, over all tables one below the other."""
        events, first = len(batch), 0
        parts, above = [], 0
        for rows, length in zip(self.size.rows, self.size.lengths, strict=True):
            parts.append(batch.sparse.values[first : first + events * length].view(events, length) + above)
            first, above = first + events * length, above + rows
        ends = torch.tensor(self.size.lengths).repeat(events).cumsum(0)
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), ends])
        return torch.cat(parts, 1).flatten(), offsets.to(self.device)


class PlainMLP(models.Ranker):
    """Pooled embeddings and dense features, side by side, through hidden layers: what every ranker is compared with."""

    def __init__(self, schema: Schema, config: DLRMConfig) -> None:
        super().__init__(schema, config)
        self.embeddings = Tables(schema, config, config.embedding_dim)
        self.top = mlp(len(schema.sparse) * config.embedding_dim + len(schema.dense), config.top, config)
        self.embed_dim = config.top[-1]
        self.heads = build_heads(self.embed_dim, self.tasks, config)

    def embed(self, batch: Batch) -> torch.Tensor:
        hidden: torch.Tensor = self.top(torch.cat([self.embeddings(batch)[0].flatten(1), batch.dense], 1))
        return hidden


def ranker(kind: str, events: Events) -> models.Ranker:
    """A new model for the events: LoKA's hidden layers (linear, LayerNorm, Hard Swish), row-wise Adagrad."""
    values = {"kind": "dlrm" if kind == "mlp" else kind, "embedding_dim": events.size.dim, "table_init": 0.05,
              "table_optimizer": {"kind": "row_wise_adagrad", "lr": TABLE_LR}, **events.size.shapes[kind]}  # fmt: skip
    config: ModelConfig = build_config({"model": values}).model
    if isinstance(config, DLRMConfig) and kind == "mlp":
        return PlainMLP(events.schema, config).train()
    return models.build(events.schema, config).train()


def loss_of(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Mean binary cross-entropy."""
    return functional.binary_cross_entropy_with_logits(logits, batch.labels[TASK])


class Study:
    """A model of one kind, trained for a stretch under a Probe that watched it, and events it has not seen."""

    EVERY = 4

    def __init__(self, kind: str, size: Size, device: str = "cpu") -> None:
        self.kind, self.size, self.events = kind, size, Events(size, device=device)
        self.model = ranker(kind, self.events).to(device)
        if device == "cuda":  # as torch's bags there, which do not wait for a count of indices outside either
            for module in self.model.modules():
                if isinstance(module, nn.EmbeddingBags):
                    module.bounds = "ignore"
        optimizer = torch.optim.Adam(self.model.parameters(), LR, fused=True)
        self.probe: loka.Probe | None = None
        self._reports: dict[bool, loka.Report] = {}
        for step in range(size.train_steps):
            if step == size.train_steps // 3:
                self.probe = loka.Probe(self.model, every=self.EVERY)
            batch = self.events.batch(size.train_batch, 10_000 + step)
            loss = loss_of(self.model(batch)[TASK], batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if self.probe is not None:
                self.probe.step()
        assert self.probe is not None
        self.probe.close()
        self.held_out = self.events.batch(size.held_out, 20_000)

    def report(self, training: bool = False) -> loka.Report:
        """Every class's errors, judged once; of gradients too for training."""
        if training not in self._reports:
            assert self.probe is not None
            directions = loka.DIRECTIONS if training else ("forward",)
            candidates = [
                found for name in LOW_PRECISION for way in directions if (found := own_candidate(name, way)) is not None
            ]
            self._reports[training] = self.probe.evaluate(candidates, self.size.draws, requirement=REQUIREMENT)
        return self._reports[training]

    def plan(self, batch: Batch) -> Plan:
        """For serving batches of this size: the report's errors, and costs timed at the batch's numbers of rows."""
        assert self.probe is not None
        self.model.eval()
        report = self.report()
        with torch.no_grad(), loka.Probe(self.model, every=1, most_rows=1) as probe:
            self.model(batch)
            probe.step()
            costs = {path: forward_costs(site, timed=True) for path, site in probe.sites.items() if site.m > 0}
            rows = {path: site.m for path, site in probe.sites.items()}
        findings = [
            replace(f, us=costs[f.site].get(f.numerics), reference_us=costs[f.site][REFERENCE]) for f in report.findings
        ]
        infos = [replace(info, m=rows[info.path]) for info in report.sites]
        return loka.solve(replace(report, sites=tuple(infos), findings=tuple(findings)), REQUIREMENT)

    def training_plan(self) -> Plan:
        """For all three directions, at the training's batch."""
        return loka.solve(self.report(training=True), REQUIREMENT, training=True)

    def with_rows(self, dtype: str) -> models.Ranker:
        """The model for serving, its tables in that format, its layers as they are."""
        model: models.Ranker = loka.mods.apply(self.model, tables=dtype)  # type: ignore[assignment]
        return model.eval()


def twin(model: models.Ranker) -> models.Ranker:
    """A copy with layers of its own that reads, and trains, the same tables."""
    tables: Any = model.embeddings
    return copy.deepcopy(model, {id(tables): tables})


@torch.inference_mode()
def served_logits(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """[B] float32."""
    logits: torch.Tensor = model(batch)[TASK]
    return logits


def quality_facts(logits: torch.Tensor, reference: torch.Tensor, batch: Batch) -> dict[str, float]:
    """What serving these logits instead of ``reference`` costs. Raises ValueError where one is not finite."""
    if not bool(logits.isfinite().all()):
        raise ValueError("logits: not all are finite")
    labels = batch.labels[TASK].cpu().numpy()
    found, expected = (ne(z.float().cpu().numpy(), labels, logits=True) for z in (logits, reference))
    difference = float((logits.float() - reference).abs().sum() / reference.abs().sum())
    return {"rel_l1": round(difference, 6), "ne": round(found, 6), "ne_difference": round(found / expected - 1, 7)}


def classes_of(plan: Plan, direction: str = "forward") -> dict[str, int]:
    """How many layers a plan runs in each class."""
    found: dict[str, int] = {}
    for entry in plan.of_direction(direction):
        found[entry.numerics] = found.get(entry.numerics, 0) + 1
    return found
