"""DLRM [Naumov et al. 2019, arXiv:1906.00091] over a Schema, with LoKA's Mods: every hidden layer is linear, norm,
activation in one.
"""

from __future__ import annotations

import torch

from octavo import ops
from octavo.config import DLRMConfig
from octavo.data import Batch, Schema
from octavo.models.heads import build_heads
from octavo.models.layers import mlp
from octavo.models.ranker import Ranker
from octavo.models.tables import Tables


class DLRM(Ranker):
    """Dense features pass a bottom MLP to the width D of the tables; the dot products of every pair among it and the F
    pooled embeddings, the bottom's output and (``embeddings_to_top``) the embeddings themselves feed a top MLP
    (sections 2.1 and 2.2). ``embed``: the top MLP's output.
    """

    def __init__(self, schema: Schema, config: DLRMConfig) -> None:
        super().__init__(schema, config)
        dim, dense = config.embedding_dim, len(schema.dense)
        self.embeddings_to_top = config.embeddings_to_top
        self.embeddings = Tables(schema, config, dim)
        self.bottom = mlp(dense, [*config.bottom, dim], config) if dense else None
        pooled = len(self.embeddings.pooled)
        vectors = pooled + bool(dense)
        width = vectors * (vectors - 1) // 2 + (dim if dense else 0) + (pooled * dim if config.embeddings_to_top else 0)
        if width == 0:
            raise ValueError(
                "schema: has one feature and no dense ones, so there are no pairs; set model.embeddings_to_top=true"
            )
        self.top = mlp(width, config.top, config)
        self.embed_dim = config.top[-1]
        self.heads = build_heads(self.embed_dim, self.tasks, config)

    def embed(self, batch: Batch) -> torch.Tensor:
        pooled, _ = self.embeddings(batch)
        vectors, top = [pooled], [pooled.flatten(1)] if self.embeddings_to_top else []
        if self.bottom is not None:
            dense = self.bottom(batch.dense)
            vectors.append(dense.unsqueeze(1))
            top.append(dense)
        top.append(ops.pairwise_dots(torch.cat(vectors, 1), pairs="lower"))
        hidden: torch.Tensor = self.top(torch.cat(top, 1))
        return hidden
