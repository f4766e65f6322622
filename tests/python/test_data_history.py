"""Running counts and sums see only what is strictly earlier."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("pyarrow")

from hypothesis import given
from hypothesis import strategies as st

from octavo.data.history import before


def test_by_hand() -> None:
    key = np.array([1, 2, 1, 1, 1, 2])
    time = np.array([10, 10, 20, 20, 30, 30])
    value = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    count, total = before(key, time, value)
    assert count.tolist() == [0, 0, 1, 1, 3, 1]
    assert total.tolist() == [0.0, 0.0, 1.0, 1.0, 13.0, 2.0]


def test_nothing() -> None:
    count, total = before(np.array([], np.int64), np.array([], np.int64), np.array([]))
    assert count.tolist() == total.tolist() == []


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(-8, 8)), min_size=1, max_size=40))
def test_any_order_equals_counting_one_by_one(events: list[tuple[int, int, int]]) -> None:
    key, time, value = (np.array(column) for column in zip(*events))
    count, total = before(key, time, value.astype(np.float64))
    for n in range(len(events)):
        earlier = (key == key[n]) & (time < time[n])
        assert count[n] == earlier.sum()
        assert total[n] == value[earlier].sum()
