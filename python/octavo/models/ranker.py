"""What every model of this room is: an embedding of a batch, and logits that depend on that embedding alone."""

from __future__ import annotations

import torch

from octavo.config import ModelConfig
from octavo.data import Batch, Schema
from octavo.models.windowed import Chains, monotone, window_chains


class Ranker(torch.nn.Module):
    """``forward(batch) -> {task: logits [B] float32}`` for every label of the schema.

    A model sets ``heads`` and ``embed_dim`` and defines :meth:`embed`; one that defines :meth:`logits` ends it with
    :func:`octavo.models.windowed.monotone` over ``chains``, the heads whose probabilities must rise. Raises ValueError
    for a schema without labels or without anything to look up.
    """

    heads: torch.nn.Module
    embed_dim: int

    def __init__(self, schema: Schema, config: ModelConfig) -> None:
        super().__init__()
        if not schema.labels:
            raise ValueError("schema: has no labels; a ranker needs at least one task")
        if not schema.sparse and not schema.sequences:
            raise ValueError("schema: has no sparse features and no sequences; a ranker needs at least one table")
        self.tasks = schema.heads
        self.chains: Chains = window_chains(schema.labels) if config.heads.windows == "monotone" else ()

    def embed(self, batch: Batch) -> torch.Tensor:
        """[B, embed_dim] float32: the last representation that all tasks share. Logits are a function of it alone, so
        ``model.logits(model.embed(batch))`` is ``model(batch)``: what a teacher records and a student may learn from.
        """
        raise NotImplementedError

    def logits(self, embedding: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits [B] float32 by task, from what :meth:`embed` returns."""
        return monotone(self.heads(embedding), self.chains)

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Logits [B] float32 by task."""
        return self.logits(self.embed(batch))
