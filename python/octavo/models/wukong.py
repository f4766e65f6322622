"""Wukong [Zhang et al., ICML 2024, arXiv:2403.02545] over a Schema: stacked factorization machines."""

from __future__ import annotations

import torch

from octavo import nn, ops
from octavo.config import WukongConfig
from octavo.data import Batch, Schema
from octavo.models.heads import build_heads
from octavo.models.layers import mlp
from octavo.models.ranker import Ranker
from octavo.models.tables import Tables
from octavo.nn.hooks import has_hooks


class Wukong(Ranker):
    """X_0 [n, D]: the pooled embeddings and, through a bottom MLP, the dense features as one more. Layers
    X_{i+1} = norm([FMB(X_i); LCB(X_i)] + X_i); the last one's embeddings, side by side, feed the top MLP (section 3).

    Layer i reaches interactions of order 2^i. ``norm`` is the configuration's (the paper's: layer). ``embed``: the top
    MLP's output.
    """

    def __init__(self, schema: Schema, config: WukongConfig) -> None:
        super().__init__(schema, config)
        dim, dense = config.embedding_dim, len(schema.dense)
        self.embeddings = Tables(schema, config, dim)
        self.bottom = mlp(dense, [*config.bottom, dim], config) if dense else None
        tokens = len(self.embeddings.pooled) + bool(dense)
        layers = []
        for i in range(config.layers):
            layers.append(WukongLayer(tokens, config, is_last=i == config.layers - 1))
            tokens = config.fmb_tokens + config.lcb_tokens
        self.layers = torch.nn.Sequential(*layers)
        self.top = mlp(tokens * dim, config.top, config)
        self.embed_dim = config.top[-1]
        self.heads = build_heads(self.embed_dim, self.tasks, config)

    def embed(self, batch: Batch) -> torch.Tensor:
        x, _ = self.embeddings(batch)
        parts = [x] if self.bottom is None else [x, self.bottom(batch.dense).unsqueeze(1).to(x.dtype)]
        hidden: torch.Tensor = self.top(self.layers(ops.add_norm(parts, transposed=True)).flatten(1))
        return hidden


class WukongLayer(torch.nn.Module):
    """(X [B, n, D], X^T contiguous) -> (Y [B, fmb_tokens + lcb_tokens, D], Y^T contiguous), the last layer Y alone:
    maps take X^T, and ``ops.add_norm`` has it at hand.

    All matrices over embeddings are one linear layer ``maps`` [sum of ``rows``, n], so that X is read once: below each
    other Y^T of the FM [k, n], W_L of LCB(X) = W_L X [lcb_tokens, n] and, where the number of embeddings changes, the
    residual's [fmb_tokens + lcb_tokens, n].
    """

    def __init__(self, tokens: int, config: WukongConfig, is_last: bool) -> None:
        super().__init__()
        self.is_last = is_last
        after = config.fmb_tokens + config.lcb_tokens
        self.rows = [config.rank or 0, config.lcb_tokens, 0 if tokens == after else after]
        self.maps = nn.Linear(tokens, sum(self.rows), bias=False)
        self.fmb = FactorizationMachineBlock(tokens, config)
        self.norm = nn.Norm(config.embedding_dim, config.norm)

    def forward(self, pair: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        x, x_transposed = pair
        projected, compressed, residual = self.maps(x_transposed).mT.split(self.rows, 1)
        block = self.fmb(x, projected if self.rows[0] else None)
        parts, added = [block.to(x.dtype), compressed.to(x.dtype)], (residual if self.rows[2] else x).to(x.dtype)
        if type(self.norm) in (nn.Norm, nn.BlockNorm) and not has_hooks(self.norm):
            definition = self.norm.definition
            if self.is_last:
                return ops.add_norm(parts, added, definition)
            return ops.add_norm(parts, added, definition, transposed=True)
        y: torch.Tensor = self.norm(torch.cat(parts, 1) + added)  # others' norm, or a watched one
        return y if self.is_last else (y, y.mT.contiguous())


class FactorizationMachineBlock(torch.nn.Module):
    """FMB(X) = reshape(MLP(norm(flatten(FM(X))))), [B, n, D] -> [B, fmb_tokens, D].

    FM(X) = X X^T [n, n], or X X^T Y = X (X^T Y) [n, k] with Y [n, k] learned (the paper's optimised FM; ``rank`` = k),
    which is linear in n. The MLP's last layer has neither norm nor activation.
    """

    def __init__(self, tokens: int, config: WukongConfig) -> None:
        super().__init__()
        self.tokens, self.dim = config.fmb_tokens, config.embedding_dim
        width = tokens * (config.rank or tokens)
        self.norm = nn.Norm(width, config.norm)
        self.hidden = mlp(width, config.fmb, config)
        self.out = nn.Linear(config.fmb[-1] if config.fmb else width, self.tokens * self.dim, config.bias)

    def forward(self, x: torch.Tensor, projected: torch.Tensor | None) -> torch.Tensor:
        """X [B, n, D] and (X^T Y)^T [B, k, D]; without the latter X X^T."""
        products = ops.pairwise_dots(x, projected)
        y: torch.Tensor = self.out(self.hidden(self.norm(products.flatten(1))))
        return y.view(len(x), self.tokens, self.dim)
