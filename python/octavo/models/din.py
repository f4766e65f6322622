"""Deep interest network [Zhou et al., KDD 2018, arXiv:1706.06978]: attention of the candidate over a user's history."""

from __future__ import annotations

import torch

from octavo import nn
from octavo.config import DINConfig
from octavo.data import Batch, Schema
from octavo.models.heads import build_heads
from octavo.models.layers import mlp
from octavo.models.ranker import Ranker
from octavo.models.tables import Tables, pool_rows
from octavo.ops import Jagged


class DIN(Ranker):
    """A history is pooled with weights that depend on the candidate: sum_j a(e_j, v) e_j (Eq. 3), where e_j are the
    rows of a sequence and v is the sparse feature whose table the sequence shares (``Sparse(..., table=...)``).

    Each such sequence has an activation unit of its own. Other sequences are pooled like multi-valued features. All
    pooled vectors and the dense features feed the top MLP. There is no padding: an empty history gives zeros.
    ``embed``: the top MLP's output. Raises ValueError when no sequence shares a table.
    """

    def __init__(self, schema: Schema, config: DINConfig) -> None:
        super().__init__(schema, config)
        self.targets = {sequence.name: sequence.table for sequence in schema.sequences if sequence.table is not None}
        if not self.targets:
            raise ValueError(
                "schema: no sequence shares a sparse feature's table, so DIN has nothing to attend to; declare one "
                "such as Sparse('history', ..., multi=True, table='item') among the sequences, or choose another "
                "model.kind"
            )
        dim = config.embedding_dim
        self.embeddings = Tables(schema, config, dim, attended=list(self.targets))
        names = [reader.name for reader in self.embeddings.pooled]
        self._target_places = [names.index(target) for target in self.targets.values()]
        self.units = torch.nn.ModuleList(ActivationUnit(dim, config) for _ in self.targets)
        self.top = mlp((len(names) + len(self.targets)) * dim + len(schema.dense), config.top, config)
        self.embed_dim = config.top[-1]
        self.heads = build_heads(self.embed_dim, self.tasks, config)

    def embed(self, batch: Batch) -> torch.Tensor:
        pooled, rows = self.embeddings(batch)
        parts = [pooled.flatten(1)]
        for unit, name, place in zip(self.units, self.targets, self._target_places, strict=True):
            parts.append(unit(rows[name], pooled[:, place], batch.sequences[name]))
        hidden: torch.Tensor = self.top(torch.cat([*parts, batch.dense], 1))
        return hidden


class ActivationUnit(torch.nn.Module):
    """a(e, v): an MLP on [v; e; v - e; v * e] with one output (section 4.3; the differences and products as in the
    authors' code). ``softmax``: the weights of one history are normalised to sum to 1.
    """

    def __init__(self, dim: int, config: DINConfig) -> None:
        super().__init__()
        self.hidden = mlp(4 * dim, config.attention, config)
        self.out = nn.Linear(config.attention[-1], 1, config.bias)
        self.softmax = config.softmax

    def forward(self, rows: torch.Tensor, target: torch.Tensor, history: Jagged) -> torch.Tensor:
        """Rows [V, D] of the ``history``'s B bags, target [B, D] -> [B, D]; zeros where a history is empty. Weights
        that the history has multiply those of attention.
        """
        event = torch.repeat_interleave(torch.arange(len(target)), history.lengths(), output_size=len(rows))
        v = target[event]
        weights = self.out(self.hidden(torch.cat([v, rows, v - rows, v * rows], 1))).squeeze(1)
        if self.softmax:
            weights = _softmax(weights, event, len(target))
        if history.weights is not None:
            weights = weights * history.weights
        return pool_rows(rows, history.offsets, weights)


def _softmax(x: torch.Tensor, event: torch.Tensor, events: int) -> torch.Tensor:
    """x [V] normalised over the entries of each event."""
    top = x.new_full((events,), -torch.inf).scatter_reduce(0, event, x.detach(), "amax")
    grown = (x - top[event]).exp()
    return grown / x.new_zeros(events).index_add(0, event, grown)[event]
