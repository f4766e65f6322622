"""Embedding tables of features that are sequences: every looked-up row for itself."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch

from octavo import _core
from octavo.nn.bags_function import BagsFunction
from octavo.nn.embedding_bags import EmbeddingBags
from octavo.nn.table_memory import sent
from octavo.ops.embedding import TableSet, check_indices
from octavo.ops.embedding_rows import row_lookup, traced_rows
from octavo.ops.jagged import Jagged


class EmbeddingCollection(EmbeddingBags):
    """Unpooled embeddings of T features: ``forward`` -> table name: [V_t, dim] float32, a row for each lookup.

    Arguments, training and state dict as :class:`EmbeddingBags`; the tables' ``pooling`` plays no part. With
    ``offsets`` of the input, the rows of feature t and event b are ``rows[offsets[t*B+b] - offsets[t*B] :
    offsets[t*B+b+1] - offsets[t*B]]``. A row index outside its table gives zeros where ``bounds`` lets it pass.
    """

    def forward(  # type: ignore[override]
        self, values: torch.Tensor | Jagged, offsets: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Rows of ``values`` [V] with ``offsets`` [T*B+1], or of one Jagged without weights.

        Raises TypeError, ValueError or IndexError naming the argument; nothing is updated then.
        """
        if isinstance(values, Jagged):
            if offsets is not None or values.weights is not None:
                raise TypeError("offsets, weights: a Jagged holds its own offsets, and rows without pooling no weights")
            jagged = values
            values, offsets = jagged.values, jagged.offsets
        elif offsets is None:
            raise TypeError("offsets: missing; pass values and offsets, or one Jagged")
        trains = self._updates()
        ids, values, offsets = self._rows_of(values, offsets, trains)
        if trains:
            rows = self._recorded_rows(values, offsets, ids)
        elif torch.compiler.is_compiling():
            rows = traced_rows(self._table_lists(), values, offsets, self.bounds, torch.float32)
        else:
            rows = row_lookup(self._table_set(), values, offsets, self.bounds)
        return {table.name: part for table, part in zip(self.tables, rows, strict=True)}

    @torch.compiler.disable
    def _recorded_rows(
        self, values: torch.Tensor, offsets: torch.Tensor, ids: torch.Tensor | None
    ) -> list[torch.Tensor]:
        """Each lookup is a bag of one row, each table a call: features have different numbers of lookups."""
        batch = check_indices(len(self.tables), values, offsets, None, self._device)
        offsets = offsets.cpu()  # features have different numbers of lookups: on a device this waits
        _core.check_offsets(offsets.data_ptr(), len(offsets) - 1, len(values))
        ends = offsets[::batch].tolist() if batch else [0] * (len(self.tables) + 1)
        rows = []
        update = _Update()
        for t, (begin, end) in enumerate(pairwise(ends)):
            each = torch.arange(end - begin + 1, device=values.device)
            own = None if ids is None else ids[begin:end]
            table = _OneTable(self, t, update)
            part: torch.Tensor = BagsFunction.apply(self._anchor, None, values[begin:end], each, table, own)  # type: ignore[no-untyped-call]
            rows.append(part)
        return rows


class _Update:
    """The step that the tables of one forward share: however many calls, a backward is one update."""

    step: int | None = None

    def __init__(self) -> None:
        self.served: set[int] = set()

    def step_of(self, module: EmbeddingBags, index: int) -> int:
        if self.step is None or index in self.served:  # served: a second backward of the same forward
            self.step, self.served = module._next_step(), set()
        self.served.add(index)
        return self.step


class _OneTable:
    """A module seen as if it held its table ``index`` alone."""

    def __init__(self, module: EmbeddingBags, index: int, update: _Update) -> None:
        self._module, self._index, self._update = module, index, update
        self._first_table = index

    def _next_step(self) -> int:
        return self._update.step_of(self._module, self._index)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    @property
    def _own(self) -> slice:
        return slice(self._index, self._index + 1)

    def _looked_up(self, ids: torch.Tensor, offsets: torch.Tensor, trains: bool) -> tuple[torch.Tensor, torch.Tensor]:
        module = self._module
        if module._finds_there(ids, trains):
            return ids, module._ids_there().find(ids, offsets, self._own)
        return ids, sent(module._table_rows(self._index, ids, trains), module._device)

    def _table_set(self) -> TableSet:
        all_of, i = self._module._table_set(), self._own
        return TableSet(all_of.rows[i], all_of.scales[i], "sum", all_of.names[i], all_of.states[i], all_of.int4_dims[i])
