"""DeepFM [Guo et al., IJCAI 2017, arXiv:1703.04247] over a Schema."""

from __future__ import annotations

import torch

from octavo import nn
from octavo.config import DeepFMConfig
from octavo.data import Batch, Schema
from octavo.models.heads import build_heads
from octavo.models.layers import mlp
from octavo.models.ranker import Ranker
from octavo.models.tables import Tables
from octavo.models.windowed import monotone


class DeepFM(Ranker):
    """logit = y_FM + y_DNN (Eq. 1), y_FM = <w, x> + sum_{i<j} <v_i, v_j> x_i x_j (Eq. 2), on one set of vectors v.

    A field is a pooled feature (its vector the pooled rows) or a dense feature i (its vector x_i v_i). The pairs are
    summed as 1/2 ((sum_i v_i x_i)^2 - sum_i (v_i x_i)^2) =: f [B, D], element by element [Rendle 2010, Lemma 3.1].
    Each task has weights w of its own (tables of T columns, ``first_order``). y_FM's second term is sum_d f_d; with
    several tasks it is <u_t, f>, u_t learned from ones, since tasks share v.

    ``embed``: [the deep network's output; f; <w, x> of each task].
    """

    def __init__(self, schema: Schema, config: DeepFMConfig) -> None:
        super().__init__(schema, config)
        dim, dense, tasks = config.embedding_dim, len(schema.dense), len(self.tasks)
        self.embeddings = Tables(schema, config, dim)
        self.first_order = Tables(schema, config, tasks, stream=2)
        self.dense_vectors: torch.nn.Parameter | None = None
        self.dense_first_order: nn.Linear | None = None
        if dense:
            vectors = torch.empty(dense, dim).uniform_(-config.table_init, config.table_init)
            self.dense_vectors = torch.nn.Parameter(vectors)
            self.dense_first_order = nn.Linear(dense, tasks, bias=False)
        self.task_weights = torch.nn.Parameter(torch.ones(tasks, dim)) if tasks > 1 else None
        self.deep = mlp((len(self.embeddings.pooled) + dense) * dim, config.deep, config)
        self._parts = (config.deep[-1], dim, tasks)
        self.embed_dim = sum(self._parts)
        self.heads = build_heads(config.deep[-1], self.tasks, config)

    def embed(self, batch: Batch) -> torch.Tensor:
        fields, _ = self.embeddings(batch)
        first = self.first_order(batch)[0].sum(1)
        if self.dense_vectors is not None and self.dense_first_order is not None:
            fields = torch.cat([fields, batch.dense.unsqueeze(2) * self.dense_vectors], 1)
            first = first + self.dense_first_order(batch.dense)
        pairs = (fields.sum(1).square() - fields.square().sum(1)) / 2
        return torch.cat([self.deep(fields.flatten(1)), pairs, first], 1)

    def logits(self, embedding: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden, pairs, first = embedding.split(self._parts, 1)
        second = pairs.sum(1, keepdim=True) if self.task_weights is None else pairs @ self.task_weights.T
        wide = (first + second).float()
        found = {task: z + wide[:, t] for t, (task, z) in enumerate(self.heads(hidden).items())}
        return monotone(found, self.chains)
