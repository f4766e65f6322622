"""One batch of events: what a model's forward receives, in training and in serving."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from operator import sub

import torch

from octavo.ops.jagged import Jagged

_COLUMNS = {
    "user": torch.int64,
    "item": torch.int64,
    "request": torch.int64,
    "domain": torch.int64,
    "weight": torch.float32,
    "time": torch.int64,
    "id": torch.int64,
}


@dataclass(frozen=True, eq=False)
class Batch:
    """B events.

    ``dense`` [B, n] float32; ``sparse``: F features, offsets [F*B+1]; ``sequences`` {name: Jagged with offsets [B+1]};
    ``labels`` {task: [B] float32, nan = not known}; ``user``, ``item``, ``request``, ``domain`` [B] int64, -1 = none;
    ``weight`` [B] float32; ``time`` [B] int64, ms; ``delay`` {task: [B] float32, s, nan = not yet}; ``id`` [B] int64.

    Raises TypeError or ValueError that name the field whose dtype or shape does not fit.
    """

    dense: torch.Tensor
    sparse: Jagged
    sequences: Mapping[str, Jagged]
    labels: Mapping[str, torch.Tensor]
    user: torch.Tensor
    item: torch.Tensor
    request: torch.Tensor
    domain: torch.Tensor
    weight: torch.Tensor
    time: torch.Tensor
    delay: Mapping[str, torch.Tensor]
    id: torch.Tensor

    def __post_init__(self) -> None:
        events = len(self.id)
        if self.dense.dtype != torch.float32:
            raise TypeError(f"dense: expected float32, found {_name(self.dense.dtype)}")
        if self.dense.dim() != 2 or len(self.dense) != events:
            raise ValueError(f"dense: expected [{events}, n], found {list(self.dense.shape)}")
        for name, dtype in _COLUMNS.items():
            _expect_column(name, getattr(self, name), dtype, events)
        for group in ("labels", "delay"):
            for task, column in getattr(self, group).items():
                _expect_column(f"{group}[{task!r}]", column, torch.float32, events)
        if self.sparse.bags % events if events else self.sparse.bags:
            raise ValueError(f"sparse: {self.sparse.bags} bags do not divide among {events} events")
        for name, sequence in self.sequences.items():
            if sequence.bags != events:
                raise ValueError(f"sequences[{name!r}]: expected {events} bags, found {sequence.bags}")

    def __len__(self) -> int:
        return len(self.id)

    def rows(self, begin: int, end: int) -> Batch:
        """Events ``begin`` to ``end`` (exclusive); tensors share memory where that is possible."""
        if not 0 <= begin <= end <= len(self):
            raise ValueError(f"rows: expected 0 <= begin <= end <= {len(self)}, found {begin}, {end}")
        part = slice(begin, end)
        return Batch(
            dense=self.dense[part],
            sparse=_bag_rows(self.sparse, len(self), begin, end),
            sequences={name: _bag_rows(bags, len(self), begin, end) for name, bags in self.sequences.items()},
            labels={task: column[part] for task, column in self.labels.items()},
            delay={task: column[part] for task, column in self.delay.items()},
            **{name: getattr(self, name)[part] for name in _COLUMNS},
        )

    def to(self, device: torch.device | str) -> Batch:
        """The same events on ``device``."""
        return Batch(
            dense=self.dense.to(device),
            sparse=self.sparse.to(device),
            sequences={name: bags.to(device) for name, bags in self.sequences.items()},
            labels={task: column.to(device) for task, column in self.labels.items()},
            delay={task: column.to(device) for task, column in self.delay.items()},
            **{name: getattr(self, name).to(device) for name in _COLUMNS},
        )


def _bag_rows(bags: Jagged, events: int, begin: int, end: int) -> Jagged:
    """Events ``begin`` to ``end`` of every feature."""
    features = bags.bags // events if events else 0
    if features == 0:
        return bags
    whole = bags.offsets.contiguous()
    found = whole.as_strided((features, end - begin + 1), (events, 1), whole.storage_offset() + begin)
    firsts, lasts = found[:, 0].tolist(), found[:, -1].tolist()
    moves = [place - first for place, first in zip(accumulate(map(sub, lasts, firsts), initial=0), firsts)]
    offsets = torch.empty(features * (end - begin) + 1, dtype=torch.int64, device=whole.device)
    torch.add(found[:, :-1], torch.tensor(moves, device=whole.device)[:, None], out=offsets[:-1].view(features, -1))
    offsets[-1] = lasts[-1] + moves[-1]

    def gather(column: torch.Tensor) -> torch.Tensor:
        return torch.cat([column[first:last] for first, last in zip(firsts, lasts)])

    return Jagged(gather(bags.values), offsets, None if bags.weights is None else gather(bags.weights))


def _expect_column(name: str, column: torch.Tensor, dtype: torch.dtype, events: int) -> None:
    if column.dtype != dtype:
        raise TypeError(f"{name}: expected {_name(dtype)}, found {_name(column.dtype)}")
    if column.shape != (events,):
        raise ValueError(f"{name}: expected [{events}], found {list(column.shape)}")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
