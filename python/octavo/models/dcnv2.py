"""DCN-V2 [Wang et al., WWW 2021, arXiv:2008.13535] over a Schema."""

from __future__ import annotations

import torch

from octavo import nn
from octavo.config import DCNv2Config
from octavo.data import Batch, Schema
from octavo.models.heads import build_heads
from octavo.models.layers import mlp
from octavo.models.ranker import Ranker
from octavo.models.tables import Tables


class DCNv2(Ranker):
    """A cross network of L layers on x_0 = [embeddings; dense features] (section 3.1), and a deep network behind it
    (``stacked``) or beside it (``parallel``, section 3.4).

    ``embed``: the deep network's output; ``parallel``: with x_L before it, [x_L; deep].
    """

    def __init__(self, schema: Schema, config: DCNv2Config) -> None:
        super().__init__(schema, config)
        self.parallel = config.structure == "parallel"
        self.embeddings = Tables(schema, config, config.embedding_dim)
        width = len(self.embeddings.pooled) * config.embedding_dim + len(schema.dense)
        self.cross = CrossNetwork(width, config.cross_layers, config.rank, config.bias)
        self.deep = mlp(width, config.deep, config)
        self.embed_dim = config.deep[-1] + (width if self.parallel else 0)
        self.heads = build_heads(self.embed_dim, self.tasks, config)

    def embed(self, batch: Batch) -> torch.Tensor:
        pooled, _ = self.embeddings(batch)
        x = torch.cat([pooled.flatten(1), batch.dense], 1)
        crossed = self.cross(x)
        hidden: torch.Tensor = self.deep(x if self.parallel else crossed)
        return torch.cat([crossed, hidden], 1) if self.parallel else hidden


class CrossNetwork(torch.nn.Module):
    """x_{l+1} = x_0 * (W_l x_l + b_l) + x_l (Eq. 1), with W_l [D, D], or U_l V_l^T of rank r: U_l, V_l [D, r] (section
    3.5).
    """

    def __init__(self, width: int, layers: int, rank: int | None, bias: bool) -> None:
        super().__init__()

        def matrix() -> torch.nn.Module:
            if rank is None:
                return nn.Linear(width, width, bias)
            return torch.nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, width, bias))

        self.layers = torch.nn.ModuleList(matrix() for _ in range(layers))

    def forward(self, x0: torch.Tensor) -> torch.Tensor:
        """x_0 [B, width] -> x_L [B, width]."""
        x = x0
        for layer in self.layers:
            x = torch.addcmul(x, x0, layer(x))
        return x
