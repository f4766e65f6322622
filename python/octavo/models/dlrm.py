"""DLRM [Naumov et al. 2019] over a Schema, with LoKA's Mods: every hidden layer is linear, norm, activation in one."""

from __future__ import annotations

import torch

from octavo import nn, ops
from octavo.config import DLRMConfig
from octavo.data import Batch, Schema


class DLRM(torch.nn.Module):
    """``forward(batch) -> {task: logits [B]}`` for every label of the schema.

    Dense features pass a bottom MLP to the width D of the tables; the dot products of every pair among it and the F
    pooled embeddings, the bottom's output and (``embeddings_to_top``) the embeddings themselves feed a top MLP; each
    task has a linear head. Initial values depend on ``config.seed`` only. Raises ValueError for a schema it cannot
    take.
    """

    def __init__(self, schema: Schema, config: DLRMConfig) -> None:
        super().__init__()
        if not schema.labels:
            raise ValueError("schema: has no labels; a ranker needs at least one task")
        if not schema.sparse:
            raise ValueError("schema: has no sparse features; a DLRM needs at least one table")
        if schema.sequences:
            names = ", ".join(sequence.name for sequence in schema.sequences)
            raise ValueError(f"schema: DLRM takes no sequences ({names}); declare them as multi-valued sparse features")
        dim = config.embedding_dim
        self.tasks = schema.tasks
        self.embeddings_to_top = config.embeddings_to_top
        tables = [nn.Table(feature.name, feature.rows, dim) for feature in schema.sparse]
        features = len(tables) + bool(schema.dense)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.embeddings = nn.EmbeddingBags(tables, _table_optimizer(config))
            self.embeddings.reset_parameters(config.table_init, torch.Generator().manual_seed(config.seed + 1))
            self.bottom = _mlp(len(schema.dense), [*config.bottom, dim], config) if schema.dense else None
            width = features * (features - 1) // 2 + (dim if schema.dense else 0)
            width += len(tables) * dim if config.embeddings_to_top else 0
            self.top = _mlp(width, config.top, config)
            self.heads = torch.nn.ModuleDict({task: nn.Linear(config.top[-1], 1) for task in self.tasks})

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Logits [B] float32 by task."""
        size, dim = len(batch), self.embeddings.tables[0].dim
        pooled = self.embeddings(batch.sparse)
        parts = [pooled.view(size, len(self.embeddings.tables), dim)]
        top = [pooled] if self.embeddings_to_top else []
        if self.bottom is not None:
            dense = self.bottom(batch.dense)
            parts.append(dense.unsqueeze(1))
            top.append(dense)
        top.append(ops.pairwise_dots(torch.cat(parts, 1), pairs="lower"))
        hidden = self.top(torch.cat(top, 1))
        return {task: head(hidden).squeeze(-1).float() for task, head in self.heads.items()}


def _mlp(inputs: int, widths: list[int], config: DLRMConfig) -> torch.nn.Sequential:
    layers = []
    for width in widths:
        layers.append(nn.LinearNorm(inputs, width, config.norm, config.activation, config.bias))
        inputs = width
    return torch.nn.Sequential(*layers)


def _table_optimizer(config: DLRMConfig) -> nn.RowWiseAdagrad | nn.SGD:
    lr = config.table_optimizer.lr
    return nn.SGD(lr) if config.table_optimizer.kind == "sgd" else nn.RowWiseAdagrad(lr)
