"""Jagged: what it holds, what it refuses, and the TorchRec view of it."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import torch

from octavo.ops.jagged import Jagged


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


def test_bags_and_lengths() -> None:
    bags = Jagged(ints(5, 6, 7), ints(0, 2, 2, 3, 3), torch.tensor([0.5, 1.0, 2.0]))
    assert bags.bags == 4
    assert bags.lengths().tolist() == [2, 0, 1, 0]


def test_no_bags_and_empty_bags_are_fine() -> None:
    assert Jagged(ints(), ints(0)).bags == 0
    assert Jagged(ints(), ints(0, 0, 0)).lengths().tolist() == [0, 0]


@pytest.mark.parametrize(
    ("values", "offsets", "weights", "error", "text"),
    [
        (torch.zeros(2), ints(0, 2), None, TypeError, "values: expected int64, found float32"),
        ([1, 2], ints(0, 2), None, TypeError, "values: expected a torch.Tensor, found list"),
        (ints(1, 2).view(1, 2), ints(0, 2), None, ValueError, r"values: expected 1 dimension, found shape \[1, 2\]"),
        (ints(1, 2), ints(0, 2).int(), None, TypeError, "offsets: expected int64, found int32"),
        (ints(1, 2), ints(), None, ValueError, "offsets: expected F\\*B\\+1 entries, found 0"),
        (ints(1, 2), ints(1, 2), None, ValueError, r"offsets: must start at 0, offsets\[0\] is 1"),
        (ints(1, 2), ints(0, 2, 1, 2), None, ValueError, r"offsets: must never decrease.*= 1 follows 2"),
        (ints(1, 2), ints(0, 1), None, ValueError, r"must end at the number of values \(2\),.* is 1"),
        (ints(1, 2), ints(0, 3), None, ValueError, r"must end at the number of values \(2\),.* is 3"),
        (ints(1, 2), ints(0, 2), ints(1, 1), TypeError, "weights: expected float32, found int64"),
        (ints(1, 2), ints(0, 2), torch.ones(3), ValueError, r"weights: expected one per value \(2\), found 3"),
        (ints(1, 2), ints(0, 2).to("meta"), None, ValueError, "offsets: is on meta, values is on cpu"),
        (ints(1, 2), ints(0, 2), torch.ones(2, device="meta"), ValueError, "weights: is on meta, values is on cpu"),
    ],
)
def test_refuses(values: Any, offsets: Any, weights: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        Jagged(values, offsets, weights)


def test_to_moves_all_three() -> None:
    bags = Jagged(ints(5, 6), ints(0, 2), torch.tensor([0.5, 1.0]))
    moved = bags.to("meta")
    assert moved.weights is not None
    assert {moved.values.device.type, moved.offsets.device.type, moved.weights.device.type} == {"meta"}
    same = Jagged(ints(5, 6), ints(0, 2)).to("cpu")
    assert same.values.tolist() == [5, 6]
    assert same.weights is None


def test_to_kjt_without_torchrec_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchrec", None)
    monkeypatch.setitem(sys.modules, "torchrec.sparse.jagged_tensor", None)
    with pytest.raises(ImportError, match=r"needs torchrec.*install octavo\[distributed\]"):
        Jagged(ints(5, 6), ints(0, 2)).to_kjt(["user"])


def test_to_kjt_hands_over_the_same_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("torchrec.sparse.jagged_tensor")
    module.KeyedJaggedTensor = dict  # type: ignore[attr-defined]
    for name in ("torchrec", "torchrec.sparse"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "torchrec.sparse.jagged_tensor", module)
    bags = Jagged(ints(5, 6, 7), ints(0, 2, 2, 3, 3))
    made = bags.to_kjt(("user", "item"))
    assert made["keys"] == ["user", "item"]
    assert made["values"] is bags.values
    assert made["offsets"] is bags.offsets
    assert made["lengths"].tolist() == [2, 0, 1, 0]
    assert made["stride"] == 2
    assert made["weights"] is None


@pytest.mark.parametrize("keys", [[], ["a", "b", "c"]])
def test_to_kjt_refuses_keys_that_do_not_divide(keys: list[str]) -> None:
    with pytest.raises(ValueError, match=f"keys: 4 bags do not divide among {len(keys)} keys"):
        Jagged(ints(), ints(0, 0, 0, 0, 0)).to_kjt(keys)
