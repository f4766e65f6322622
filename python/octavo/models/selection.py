"""Some of a batch's features and sequences as one feature-major Jagged."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from octavo.data import Batch
from octavo.ops import Jagged


class Selection:
    """``select(batch)`` -> the bags of ``readers``, one after the other.

    A reader is a place in ``batch.sparse``, which holds ``features`` features, or the name of a sequence.
    """

    def __init__(self, readers: Sequence[int | str], features: int) -> None:
        self.runs: list[tuple[int, int] | str] = []  # features first .. last-1 that lie together, or a sequence
        for reader in readers:
            last = self.runs[-1] if self.runs else ""
            if isinstance(reader, str):
                self.runs.append(reader)
            elif isinstance(last, tuple) and last[1] == reader:
                self.runs[-1] = (last[0], reader + 1)
            else:
                self.runs.append((reader, reader + 1))
        self.everything = self.runs == [(0, features)]

    def __call__(self, batch: Batch) -> Jagged:
        return batch.sparse if self.everything else self._gathered(batch)

    @torch.compiler.disable  # lengths decide shapes
    def _gathered(self, batch: Batch) -> Jagged:
        parts = [
            _sequence(batch, run) if isinstance(run, str) else _features(batch.sparse, *run, len(batch))
            for run in self.runs
        ]
        return parts[0] if len(parts) == 1 else _joined(parts)


def _sequence(batch: Batch, name: str) -> Jagged:
    if name not in batch.sequences:
        raise ValueError(f"batch: has no sequence {name!r}, which the model's schema has; encode it with that schema")
    return batch.sequences[name]


def _features(bags: Jagged, first: int, last: int, events: int) -> Jagged:
    """Features ``first`` .. ``last``-1 of all events; values share memory."""
    offsets = bags.offsets[first * events : last * events + 1]
    own = slice(int(offsets[0]), int(offsets[-1]))
    return Jagged(bags.values[own], offsets - offsets[0], None if bags.weights is None else bags.weights[own])


def _joined(parts: Sequence[Jagged]) -> Jagged:
    offsets, end = [parts[0].offsets[:1]], 0
    for part in parts:
        offsets.append(part.offsets[1:] + end)
        end += len(part.values)
    weights = None
    if any(part.weights is not None for part in parts):
        weights = torch.cat([
            torch.ones(len(part.values), device=part.values.device) if part.weights is None else part.weights
            for part in parts
        ])  # fmt: skip
    return Jagged(torch.cat([part.values for part in parts]), torch.cat(offsets), weights)
