"""Embedding tables over a schema's sparse features and sequences, some of which may share a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from octavo import nn
from octavo.config import ModelConfig, TableOptimizerConfig
from octavo.data import Batch, Schema
from octavo.models.selection import Selection
from octavo.ops import Jagged

OPTIMIZERS = {"sgd": nn.SGD, "adagrad": nn.Adagrad, "row_wise_adagrad": nn.RowWiseAdagrad, "adam": nn.Adam}


@dataclass(frozen=True)
class Reader:
    """A feature that reads a table. ``place``: where in ``batch.sparse``, or the name of a sequence."""

    name: str
    table: str
    place: int | str
    attended: bool = False


class Tables(torch.nn.Module):
    """``forward(batch)`` -> pooled features [B, F, dim], and the rows [V, dim] of ``attended`` sequences by name.

    The F pooled features (``pooled``) are the schema's sparse features, then its sequences that are not
    attended, in the schema's order. A backward must update a table once whoever reads it, so all its readers are served
    by one module:

    * ``bags``: the tables of one pooled feature each
    * ``shared.<i>``: a table of k pooled features, whose bags are those of all k, [k * B]
    * ``unpooled``: the tables of attended sequences, looked up row by row; their pooled readers are pooled afterwards

    ``stream`` tells apart the initial values of several Tables of one model. Raises ValueError for two tables of one
    name.
    """

    def __init__(
        self, schema: Schema, config: ModelConfig, dim: int, attended: Sequence[str] = (), stream: int = 1
    ) -> None:
        super().__init__()
        self.dim, self.mode = dim, config.pooling
        readers = _readers(schema, attended)
        by_table: dict[str, list[Reader]] = {}
        for reader in readers:
            by_table.setdefault(reader.table, []).append(reader)
        attended_tables = sorted({r.table for r in readers if r.attended})
        alone = [found[0] for table, found in by_table.items() if len(found) == 1 and table not in attended_tables]
        several = [found for table, found in by_table.items() if len(found) > 1 and table not in attended_tables]
        features_of = {feature.name: feature for feature in (*schema.sequences, *schema.sparse)}
        age = config.dynamic.max_age_hours
        dynamic = nn.Dynamic(config.dynamic.admit_after, None if age is None else max(1, round(age * 3_600_000)))
        optimizer = table_optimizer(config.table_optimizer)

        def tables(names: Sequence[str]) -> list[nn.Table]:
            each = ((name, features_of[name]) for name in names)
            return [
                nn.Table(name, f.rows, dim, pooling=config.pooling, dynamic=dynamic if f.dynamic else None)
                for name, f in each
            ]

        self.bags = nn.EmbeddingBags(tables([r.table for r in alone]), optimizer) if alone else None
        self.shared = torch.nn.ModuleList(nn.EmbeddingBags(tables([found[0].table]), optimizer) for found in several)
        self.unpooled = nn.EmbeddingCollection(tables(attended_tables), optimizer) if attended_tables else None
        self.pooled = [r for r in readers if not r.attended]
        features = len(schema.sparse)
        self._shape = (features, len(schema.dense))
        self._alone = (Selection([r.place for r in alone], features), alone)
        self._several = [(Selection([r.place for r in found], features), found) for found in several]
        self._whole = [(Selection([r.place for r in by_table[t]], features), by_table[t]) for t in attended_tables]
        generator = torch.Generator().manual_seed(config.seed + stream)
        for module in self._modules_of_tables():
            module.reset_parameters(config.table_init, generator)
        self._dynamic = [module for module in self._modules_of_tables() if module.ids is not None]

    def _modules_of_tables(self) -> list[nn.EmbeddingBags]:
        every = (self.bags, *self.shared, self.unpooled)
        return [module for module in every if isinstance(module, nn.EmbeddingBags)]

    def forward(self, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Pooled features [B, F, dim] float32 and the attended sequences' rows.

        Raises ValueError for a batch of another schema.
        """
        size = len(batch)
        features, columns = self._shape
        if batch.sparse.bags != features * size or batch.dense.shape[1] != columns:
            found = f"{batch.sparse.bags} sparse bags of {size} events and {batch.dense.shape[1]} dense columns"
            raise ValueError(
                f"batch: holds {found}, but the model's schema has {features} sparse and {columns} dense features; "
                "encode it with that one"
            )
        if self._dynamic and self.training and size:
            now = int(batch.time.max())
            for dynamic in self._dynamic:
                dynamic.now = now
        pooled: dict[Reader, torch.Tensor] = {}
        rows: dict[str, torch.Tensor] = {}
        if self.bags is not None:
            select, readers = self._alone
            alone = self.bags(select(batch)).view(size, len(readers), self.dim)
            if readers == self.pooled and self.unpooled is None:
                return alone, rows
            pooled |= zip(readers, alone.unbind(1), strict=True)
        for module, (select, readers) in zip(self.shared, self._several, strict=True):
            pooled |= zip(readers, module(select(batch)).view(len(readers), size, self.dim).unbind(0), strict=True)
        if self.unpooled is not None:
            self._look_up(batch, pooled, rows)
        return torch.stack([pooled[reader] for reader in self.pooled], 1), rows

    @torch.compiler.disable  # lengths decide shapes
    def _look_up(self, batch: Batch, pooled: dict[Reader, torch.Tensor], rows: dict[str, torch.Tensor]) -> None:
        """The rows of the tables in ``unpooled``: all readers of a table are one bag, split again afterwards."""
        assert self.unpooled is not None
        size = len(batch)
        found = [select(batch) for select, _ in self._whole]
        ends = torch.tensor([0] + [len(bags.values) for bags in found]).cumsum(0)
        tables = self.unpooled(Jagged(torch.cat([bags.values for bags in found]), ends))
        for (_, readers), bags, table in zip(self._whole, found, tables.values(), strict=True):
            for i, reader in enumerate(readers):
                offsets = bags.offsets[i * size : (i + 1) * size + 1]
                own = slice(int(offsets[0]), int(offsets[-1]))
                if reader.attended:
                    rows[reader.name] = table[own]
                    continue
                weights = None if bags.weights is None else bags.weights[own]
                pooled[reader] = pool_rows(table[own], offsets - offsets[0], weights, self.mode)


def pool_rows(
    rows: torch.Tensor, offsets: torch.Tensor, weights: torch.Tensor | None = None, mode: str = "sum"
) -> torch.Tensor:
    """[B, dim]: sum or mean of each event's ``rows`` [V, dim], times ``weights`` [V]; zeros for an event without rows.
    ``offsets`` [B+1]. Gradients flow to both.
    """
    if weights is not None and mode != "sum":
        rows, weights = rows * weights.unsqueeze(1), None
    each = torch.arange(len(rows), device=rows.device)
    return functional.embedding_bag(
        each, rows, offsets, mode=mode, per_sample_weights=weights, include_last_offset=True
    )


def table_optimizer(config: TableOptimizerConfig) -> nn.SGD | nn.Adagrad | nn.RowWiseAdagrad | nn.Adam:
    """The optimizer that the tables train with inside their backward."""
    chosen = {"eps": config.eps, "betas": config.betas, "lazy": None if config.lazy else False}
    options = {name: value for name, value in chosen.items() if value is not None}
    return OPTIMIZERS[config.kind](lr=config.lr, weight_decay=config.weight_decay, **options)


def _readers(schema: Schema, attended: Sequence[str]) -> list[Reader]:
    sparse = {feature.name for feature in schema.sparse}
    both = next((s.name for s in schema.sequences if s.name in sparse and s.table is None), None)
    if both is not None:
        raise ValueError(
            f"schema: {both!r} is a sparse feature and a sequence with a table each; let the sequence read the "
            f"feature's (table={both!r})"
        )
    found = [Reader(f.name, f.table or f.name, place) for place, f in enumerate(schema.sparse)]
    return found + [Reader(s.name, s.table or s.name, s.name, s.name in attended) for s in schema.sequences]
