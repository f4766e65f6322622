"""Batch: cutting rows, moving, and what its constructor refuses."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
import torch

pytest.importorskip("pyarrow")

from hypothesis import given
from hypothesis import strategies as st

from octavo.data import Batch
from octavo.ops.jagged import Jagged


def bags(lengths: list[list[int]], weights: bool = False) -> Jagged:
    """F lists of B lengths; values count up from 0."""
    flat = torch.tensor([length for feature in lengths for length in feature], dtype=torch.int64)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), flat.cumsum(0)])
    total = int(offsets[-1])
    return Jagged(torch.arange(total), offsets, torch.arange(total) * 0.5 if weights else None)


def batch(lengths: list[list[int]], events: int, weights: bool = False) -> Batch:
    row = torch.arange(events)
    return Batch(
        dense=torch.arange(2.0 * events).view(events, 2),
        sparse=bags(lengths, weights),
        sequences={"recent": bags([lengths[0]])} if lengths else {},
        labels={"click": (row % 2).float()},
        user=row + 10,
        item=row + 20,
        request=row + 30,
        domain=torch.full((events,), -1),
        weight=torch.ones(events),
        time=row + 40,
        delay={"click": row.float()},
        id=row,
    )


@given(st.data())
def test_rows_cut_every_feature(data: st.DataObject) -> None:
    events = data.draw(st.integers(1, 6))
    features = data.draw(st.integers(0, 3))
    lengths = [data.draw(st.lists(st.integers(0, 3), min_size=events, max_size=events)) for _ in range(features)]
    weights = data.draw(st.booleans())
    begin = data.draw(st.integers(0, events))
    end = data.draw(st.integers(begin, events))
    whole = batch(lengths, events, weights)
    part = whole.rows(begin, end)
    assert len(part) == end - begin
    assert part.dense.tolist() == whole.dense.tolist()[begin:end]
    assert part.id.tolist() == list(range(begin, end))
    assert part.labels["click"].tolist() == whole.labels["click"].tolist()[begin:end]
    assert part.delay["click"].tolist() == whole.delay["click"].tolist()[begin:end]
    for feature in range(features):
        for event in range(begin, end):
            old = bag(whole.sparse, feature * events + event)
            assert bag(part.sparse, feature * (end - begin) + event - begin) == old
    if features and weights:
        assert part.sparse.weights is not None
        assert part.sparse.weights.tolist() == [value * 0.5 for value in part.sparse.values.tolist()]
    for name, sequence in part.sequences.items():
        old_bags = [bag(whole.sequences[name], event) for event in range(begin, end)]
        assert [bag(sequence, event) for event in range(end - begin)] == old_bags


def bag(jagged: Jagged, number: int) -> list[int]:
    first, last = jagged.offsets[number : number + 2].tolist()
    values: list[int] = jagged.values[first:last].tolist()
    return values


def test_to_moves_every_tensor() -> None:
    whole = batch([[1, 2], [0, 1]], 2)
    moved = whole.to("cpu")
    assert moved.sparse.values.tolist() == whole.sparse.values.tolist()
    assert moved.labels["click"].tolist() == [0.0, 1.0]
    assert moved.time.tolist() == [40, 41]


def test_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        batch([], 1).dense = torch.zeros(1, 1)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"dense": torch.zeros(2, 1, dtype=torch.float64)}, TypeError, "dense: expected float32, found float64"),
        ({"dense": torch.zeros(3, 1)}, ValueError, r"dense: expected \[2, n\], found \[3, 1\]"),
        ({"user": torch.zeros(2)}, TypeError, "user: expected int64, found float32"),
        ({"time": torch.zeros(3, dtype=torch.int64)}, ValueError, r"time: expected \[2\], found \[3\]"),
        ({"weight": torch.ones(2, 1)}, ValueError, r"weight: expected \[2\], found \[2, 1\]"),
        ({"labels": {"buy": torch.ones(3)}}, ValueError, r"labels\['buy'\]: expected \[2\], found \[3\]"),
        ({"delay": {"buy": torch.ones(2).int()}}, TypeError, r"delay\['buy'\]: expected float32, found int32"),
        ({"sparse": bags([[1, 1, 1]])}, ValueError, "sparse: 3 bags do not divide among 2 events"),
        ({"sequences": {"s": bags([[1]])}}, ValueError, r"sequences\['s'\]: expected 2 bags, found 1"),
    ],
)
def test_refuses(change: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        replace(batch([[1, 0]], 2), **change)


@pytest.mark.parametrize(("begin", "end"), [(-1, 1), (1, 0), (0, 3)])
def test_rows_refuses_spans_outside(begin: int, end: int) -> None:
    with pytest.raises(ValueError, match=f"rows: expected 0 <= begin <= end <= 2, found {begin}, {end}"):
        batch([[1, 0]], 2).rows(begin, end)
