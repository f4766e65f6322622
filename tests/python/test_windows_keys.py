"""Keys: an index made once finds what it should, near, far, outside, after growth and after a copy."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("pyarrow")

from octavo.windows import index, keys
from octavo.windows.index import Index
from octavo.windows.keys import Keys

EDGE = [-(2**63), -(2**63) + 1, -1, 0, 1, 2**63 - 1]


@given(
    known=st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-40, 40), min_size=1, max_size=60, unique=True),
    other=st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-60, 60), max_size=30),
)
def test_places_are_those_of_a_dict(known: list[int], other: list[int]) -> None:
    places = {value: place for place, value in enumerate(known)}
    wanted = [*known, *other, *EDGE]
    found = Index(np.array(known, np.int64)).find(np.array(wanted, np.int64))
    assert found.tolist() == [places.get(value, -1) for value in wanted]


def test_more_than_a_chunk_and_strides() -> None:
    known = np.random.default_rng(0).permutation(100_000)[:50_000]
    wanted = np.repeat(np.arange(-5, 100_005), 2)
    expected = np.full(100_010, -1)
    expected[known + 5] = np.arange(50_000)
    for values, shift in ((known, 0), (known * 10**12, 10**12)):  # a table, a hash
        asked = wanted if shift == 0 else wanted * shift
        assert (Index(values)._table is None) == (shift != 0)
        assert np.array_equal(Index(values).find(asked[::2]), expected)


def test_groups_of_several_columns_with_verticals() -> None:
    groups = Keys(["country", "advertiser"], 1)
    first = {"country": ["de", "fr", "de", "de"], "advertiser": [7, 7, 10**15, 7]}
    assert groups.encode(first, grow=True)[0].tolist() == [0, 1, 2, 0]
    asked = {"country": ["fr", "de", "it", "fr", "de"], "advertiser": [7, 10**15, 7, 10**15, 8]}
    group, vertical = groups.encode(asked)
    assert group.tolist() == [1, 2, -1, -1, -1]
    assert vertical.tolist() == [1, 0, -1, 1, 0]
    groups.encode({"country": ["it", "fr"], "advertiser": [7, 10**15]}, grow=True)
    group, vertical = groups.encode(asked)
    assert group.tolist() == [1, 2, 3, 4, -1]
    assert vertical.tolist() == [1, 0, 2, 1, 0]
    again = copy.deepcopy(groups)
    assert again.encode(asked)[0].tolist() == group.tolist()


def test_the_index_is_made_once_until_there_are_more_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    class Counted(index.Index):
        def __init__(self, known: np.ndarray) -> None:
            made.append(len(known))
            super().__init__(known)

    monkeypatch.setattr(keys, "Index", Counted)
    groups = Keys(["advertiser"], 0)
    groups.encode([5, 10**15, 5], grow=True)
    made.clear()
    for _ in range(3):
        assert groups.encode([10**15, 6, 5])[0].tolist() == [1, -1, 0]
    assert made == [2]
    groups.encode([6, 5], grow=True)
    assert groups.encode([10**15, 6, 5])[0].tolist() == [1, 2, 0]
