"""Schema: JSON round trip, fingerprint, and declarations it refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("pyarrow")

from hypothesis import given
from hypothesis import strategies as st

from octavo.data import Clip, DataError, Dense, Label, Log1p, Schema, Sparse, Standardise

NUMBERS = st.floats(-1e6, 1e6)
TRANSFORMS = st.one_of(
    st.just(Log1p()),
    st.tuples(NUMBERS, NUMBERS).map(lambda pair: Clip(min(pair), max(pair))),
    st.builds(Standardise, NUMBERS, st.floats(1e-3, 1e3)),
)
DENSE = st.builds(
    Dense, st.sampled_from("abcd"), st.lists(TRANSFORMS, max_size=3).map(tuple), st.one_of(st.none(), NUMBERS)
)
SPARSE = st.one_of(
    st.builds(
        Sparse,
        st.sampled_from("efgh"),
        st.integers(1, 1 << 40),
        st.sampled_from(["index", "hash", "hash_text"]),
        multi=st.booleans(),
    ),
    st.lists(st.text(max_size=4), min_size=1, max_size=4, unique=True).map(
        lambda words: Sparse("words", encoding="vocabulary", vocabulary=tuple(words))
    ),
)


def unique(features: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(features, max_size=4, unique_by=lambda feature: feature.name).map(tuple)


SCHEMAS = st.builds(
    Schema,
    dense=unique(DENSE),
    sparse=unique(SPARSE),
    labels=st.sampled_from([(), (Label("click"),), (Label("click"), Label("buy@7d", delay="buy_after"))]),
    user=st.sampled_from([None, "user"]),
    weight=st.sampled_from([None, "w"]),
)


@given(SCHEMAS)
def test_json_round_trip_keeps_schema_and_fingerprint(schema: Schema) -> None:
    again = Schema.from_json(json.loads(json.dumps(schema.to_json())))
    assert again == schema
    assert again.fingerprint == schema.fingerprint


def test_fingerprint_is_pinned_and_follows_the_meaning() -> None:
    schema = Schema(dense=(Dense("a", (Clip(0, 1),)),), sparse=(Sparse("b", rows=3),), labels=(Label("y"),))
    same = Schema(dense=(Dense("a", (Clip(0.0, 1.0),)),), sparse=(Sparse("b", rows=3),), labels=(Label("y"),))
    other = Schema(dense=(Dense("a", (Clip(0, 2),)),), sparse=(Sparse("b", rows=3),), labels=(Label("y"),))
    assert schema.fingerprint == same.fingerprint == "0ef2305d40d490d4076492eb177d19778815c2a5e0f108662c42b2063f883b2d"
    assert other.fingerprint != schema.fingerprint


def test_a_shared_table_is_part_of_the_meaning_and_survives_json() -> None:
    items = (Sparse("item", rows=5, encoding="hash"),)
    alone = Schema(sparse=items, sequences=(Sparse("seen", 5, "hash", multi=True),))
    shared = Schema(sparse=items, sequences=(Sparse("seen", 5, "hash", multi=True, table="item"),))
    assert "table" not in alone.to_json()["sequences"][0]
    assert shared.to_json()["sequences"][0]["table"] == "item"
    assert Schema.from_json(shared.to_json()) == shared != alone == Schema.from_json(alone.to_json())
    assert shared.fingerprint != alone.fingerprint


def test_columns_are_what_is_read_without_duplicates() -> None:
    schema = Schema(
        dense=(Dense("price"),),
        sparse=(Sparse("user", rows=10, encoding="hash"),),
        labels=(Label("buy", delay="buy_after"),),
        user="user",
        weight="w",
    )
    assert schema.columns() == ["time", "id", "user", "w", "price", "buy", "buy_after"]


@pytest.mark.parametrize(
    ("declare", "text"),
    [
        (lambda: Sparse("c"), "sparse feature 'c': expected rows >= 1, found 0"),
        (lambda: Sparse("c", rows=3, encoding="md5"), "unknown encoding 'md5'; expected one of index, hash, hash_text"),
        (lambda: Sparse("c", encoding="vocabulary"), "expected a vocabulary of distinct words, found 0 words"),
        (lambda: Sparse("c", encoding="vocabulary", vocabulary=("a", "a")), "vocabulary of distinct words"),
        (
            lambda: Sparse("c", rows=9, encoding="vocabulary", vocabulary=("a",)),
            r"rows follows from the vocabulary \(2\)",
        ),
        (lambda: Sparse("c", rows=9, vocabulary=("a",)), "a vocabulary means nothing for encoding=index"),
        (lambda: Clip(2, 1), "clip: expected low <= high, found 2.0, 1.0"),
        (lambda: Clip(float("nan"), 1), "clip: expected low <= high"),
        (lambda: Standardise(0, 0), "standardise: expected a finite mean and std > 0, found 0.0, 0.0"),
        (lambda: Dense("d", missing=float("inf")), "dense feature 'd': expected a finite missing, found inf"),
        (lambda: Schema(dense=(Dense("d"), Dense("d"))), "dense: 'd' is declared twice"),
        (lambda: Schema(labels=(Label("y"), Label("y"))), "labels: 'y' is declared twice"),
        (lambda: Schema(dense=(Dense("y"),), labels=(Label("y"),)), "labels: column 'y' is also a feature"),
        (lambda: Schema(dense=(Dense("t"),), labels=(Label("y", delay="t"),)), "labels: column 't' is also a feature"),
        (lambda: Schema(sequences=(Sparse("s", rows=2),)), "sequence 's': expected multi=True"),
        (
            lambda: Schema(sparse=(Sparse("a", 2),), sequences=(Sparse("s", 2, multi=True, table="b"),)),
            "feature 's': table 'b' is not another sparse feature; expected one of: a",
        ),
        (lambda: Schema(sparse=(Sparse("a", 2, table="a"),)), "table 'a' is not another sparse .* one of: none"),
        (
            lambda: Schema(sparse=(Sparse("a", 2), Sparse("b", 2, table="a"), Sparse("c", 2, table="b"))),
            "feature 'c': table 'b' is itself shared; name its owner, 'a'",
        ),
        (lambda: Schema(sparse=(Sparse("a", 2), Sparse("b", 3, table="a"))), "table 'a' has another rows"),
        (lambda: Schema(sparse=(Sparse("a", 2), Sparse("b", 2, "hash", table="a"))), "has another encoding"),
    ],
)
def test_refuses_declarations(declare: Any, text: str) -> None:
    with pytest.raises(DataError, match=text):
        declare()


def edited(**changes: Any) -> dict[str, Any]:
    schema = Schema(dense=(Dense("a", (Log1p(),)),), sparse=(Sparse("b", rows=3),), labels=(Label("y"),))
    return {**schema.to_json(), **changes}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([], "log.json: expected an object, found list"),
        (edited(format=2), "log.json: schema format 2; this octavo reads format 1"),
        (edited(colour="red"), "log.json: Schema has no key 'colour'"),
        (edited(dense=[{"name": "a", "transforms": [], "unit": "kg"}]), "log.json: Dense has no key 'unit'"),
        (
            edited(dense=[{"name": "a", "transforms": [{"kind": "sqrt"}]}]),
            "dense feature 'a': unknown transform 'sqrt'",
        ),
        (edited(dense=[{"name": "a", "transforms": [{"kind": "clip", "low": 1}]}]), "transform 'clip': .*'high'"),
        (edited(dense=[{"transforms": []}]), "log.json: not a schema"),
        (edited(dense=[7]), "log.json: not a schema"),
        (edited(sparse=7), "log.json: not a schema"),
        (edited(labels=[{"delay": None}]), "log.json: not a schema"),
    ],
)
def test_refuses_json(value: Any, text: str) -> None:
    with pytest.raises(DataError, match=text) as caught:
        Schema.from_json(value, where="log.json")
    assert "\n" not in str(caught.value)
