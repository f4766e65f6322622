"""From raw columns to a Batch: values by hand, one code path for training and serving, and what is refused."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("pyarrow")

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.data import (
    Clip,
    DataError,
    Dense,
    Label,
    Log1p,
    Schema,
    Sparse,
    Standardise,
    encode_events,
    encode_table,
)

SCHEMA = Schema(
    dense=(
        Dense("price", (Clip(0.0, 1e6), Log1p(), Standardise(2.0, 1.5))),
        Dense("age", (), missing=-1.0),
    ),
    sparse=(
        Sparse("item", rows=97, encoding="hash"),
        Sparse("shop", rows=89, encoding="hash_text"),
        Sparse("device", encoding="vocabulary", vocabulary=("ios", "web")),
        Sparse("tags", rows=10, multi=True),
    ),
    sequences=(Sparse("recent", rows=50, encoding="hash", multi=True),),
    labels=(Label("click"), Label("buy@7d", delay="buy_after")),
    user="user",
    item="item",
    weight="w",
)
EVENTS: list[dict[str, Any]] = [
    {
        "id": 7, "time": 1000, "user": 3, "item": 11, "shop": "a", "device": "web", "tags": [1, 9, 1], "recent": [4, 5],
        "price": 10.0, "age": 2, "click": 1, "buy@7d": True, "buy_after": 3.5, "w": 2.0,
    },
    {
        "id": 8, "time": 1000, "user": None, "item": 12, "shop": None, "device": "tv", "tags": [], "recent": None,
        "price": 2e6, "age": None, "click": 0, "buy@7d": None, "buy_after": None, "w": 0.5,
    },
    {
        "id": 9, "time": 1001, "user": 4, "item": 11, "shop": "b", "device": None, "tags": None, "recent": [6],
        "price": 0.0, "age": 1, "click": None, "buy@7d": False, "buy_after": None, "w": 1.0,
    },
]  # fmt: skip


def table(events: list[dict[str, Any]] | None = None, **replaced: Any) -> pa.Table:
    events = EVENTS if events is None else events
    columns = {name: pa.array([event.get(name) for event in events]) for name in SCHEMA.columns()}
    return pa.table({**columns, **replaced})


def splitmix64(key: int) -> int:
    mask = (1 << 64) - 1
    z = (key + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def text_key(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")


def test_values_by_hand() -> None:
    batch = encode_table(SCHEMA, table())
    price = [(math.log1p(x) - 2.0) / 1.5 for x in (10.0, 1e6, 0.0)]
    assert batch.dense.tolist() == np.array([price, [2, -1, 1]], np.float32).T.tolist()
    assert batch.user.tolist() == [3, -1, 4]
    assert batch.item.tolist() == [11, 12, 11]
    assert batch.request.tolist() == batch.domain.tolist() == [-1, -1, -1]
    assert batch.id.tolist() == [7, 8, 9]
    assert batch.time.tolist() == [1000, 1000, 1001]
    assert batch.weight.tolist() == [2.0, 0.5, 1.0]
    torch.testing.assert_close(
        batch.labels["click"], torch.tensor([1.0, 0.0, math.nan]), equal_nan=True, rtol=0, atol=0
    )
    torch.testing.assert_close(
        batch.labels["buy@7d"], torch.tensor([1.0, math.nan, 0.0]), equal_nan=True, rtol=0, atol=0
    )
    torch.testing.assert_close(
        batch.delay["buy@7d"], torch.tensor([3.5, math.nan, math.nan]), equal_nan=True, rtol=0, atol=0
    )
    assert set(batch.delay) == {"buy@7d"}


def test_bags_by_hand() -> None:
    batch = encode_table(SCHEMA, table())
    item = [splitmix64(key) % 97 for key in (11, 12, 11)]
    shop = [splitmix64(text_key(word)) % 89 for word in "ab"]
    assert batch.sparse.values.tolist() == [*item, *shop, 2, 0, 1, 9, 1]
    assert batch.sparse.offsets.tolist() == [0, 1, 2, 3, 4, 4, 5, 6, 7, 7, 10, 10, 10]
    assert batch.sparse.weights is None
    recent = batch.sequences["recent"]
    assert recent.values.tolist() == [splitmix64(key) % 50 for key in (4, 5, 6)]
    assert recent.offsets.tolist() == [0, 2, 2, 3]


def test_negative_integers_hash_as_twos_complement() -> None:
    schema = Schema(sparse=(Sparse("item", rows=1009, encoding="hash"),))
    batch = encode_events(schema, [{"item": -1}, {"item": -(1 << 63)}, {"item": (1 << 63) - 1}])
    keys = [(1 << 64) - 1, 1 << 63, (1 << 63) - 1]
    assert batch.sparse.values.tolist() == [splitmix64(key) % 1009 for key in keys]


def test_storage_types_do_not_matter() -> None:
    wanted = encode_table(SCHEMA, table())
    stored = table(
        price=pa.array([10.0, 2e6, 0.0], pa.float32()),
        age=pa.array([2, None, 1], pa.uint8()),
        shop=pa.array(["a", None, "b"], pa.large_string()).dictionary_encode(),
        device=pa.array(["web", "tv", None], pa.large_string()),
        tags=pa.array([[1, 9, 1], [], None], pa.large_list(pa.int16())),
        item=pa.array([11, 12, 11], pa.uint32()),
        click=pa.array([1.0, 0.0, None], pa.float64()),
    )
    assert_same(encode_table(SCHEMA, stored), wanted)
    chunked = pa.concat_tables([stored.slice(0, 1), stored.slice(1, 2)])
    assert_same(encode_table(SCHEMA, chunked), wanted)
    assert_same(encode_table(SCHEMA, stored.slice(1, 2)), wanted.rows(1, 3))


def assert_same(found: Any, wanted: Any) -> None:
    """Bit for bit, nan included."""
    for name in ("dense", "user", "item", "request", "domain", "weight", "time", "id"):
        assert bits(getattr(found, name)) == bits(getattr(wanted, name)), name
    for group in ("labels", "delay"):
        pairs = getattr(found, group), getattr(wanted, group)
        assert {k: bits(v) for k, v in pairs[0].items()} == {k: bits(v) for k, v in pairs[1].items()}
    for one, other in [
        (found.sparse, wanted.sparse),
        *((found.sequences[k], wanted.sequences[k]) for k in wanted.sequences),
    ]:
        assert one.values.tolist() == other.values.tolist()
        assert one.offsets.tolist() == other.offsets.tolist()


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()


RAW = st.fixed_dictionaries(
    {
        "price": st.floats(0, 1e30) | st.integers(0, 2**53),
        "age": st.none() | st.floats(-1e30, 1e30),
        "item": st.none() | st.integers(-(2**63), 2**63 - 1),
        "shop": st.none() | st.text(max_size=5),
        "device": st.none() | st.sampled_from(["ios", "web", "tv", ""]),
        "tags": st.none() | st.lists(st.integers(0, 9), max_size=4),
        "recent": st.none() | st.lists(st.integers(0, 2**62), max_size=4),
        "user": st.none() | st.integers(0, 2**62),
        "w": st.floats(0, 100),
    }
)


@settings(max_examples=60, deadline=None)
@given(st.lists(RAW, min_size=1, max_size=40), st.sampled_from([pa.float64(), pa.float32()]))
def test_serving_one_event_is_bit_equal_to_training_on_columns(
    raws: list[dict[str, Any]], storage: pa.DataType
) -> None:
    prices = pa.array([float(raw["price"]) for raw in raws], pa.float64()).cast(storage)
    kinds = {"shop": pa.string(), "device": pa.string(), "tags": pa.list_(pa.int32()), "recent": pa.list_(pa.int64())}
    events = [
        {**raw, "id": n, "time": n, "click": None, "buy@7d": None, "buy_after": None} for n, raw in enumerate(raws)
    ]
    columns = {
        name: prices if name == "price" else pa.array([event[name] for event in events], kinds.get(name))
        for name in SCHEMA.columns()
    }
    trained = encode_table(SCHEMA, pa.table(columns))
    for number, event in enumerate(events):
        assert_same(encode_events(SCHEMA, [event]), trained.rows(number, number + 1))
    assert_same(encode_events(SCHEMA, events), trained)


def test_log1p_of_a_long_column_equals_one_by_one() -> None:
    """numpy's vector and scalar paths agree after rounding to float32."""
    schema = Schema(dense=(Dense("x", (Log1p(), Standardise(1.0, 3.0))),))
    x = np.random.default_rng(0).lognormal(0, 4, 20_001).astype(np.float32)
    whole = encode_table(schema, pa.table({"x": x, "id": np.arange(len(x)), "time": np.arange(len(x))})).dense[:, 0]
    picked = range(0, len(x), 37)
    alone = [encode_events(schema, [{"x": float(x[n])}]).dense[0, 0].item() for n in picked]
    assert alone == [whole[n].item() for n in picked]


def test_serving_needs_neither_labels_nor_id_nor_time() -> None:
    features = {
        name: value for name, value in EVENTS[0].items() if name not in ("id", "time", "click", "buy@7d", "buy_after")
    }
    batch = encode_events(SCHEMA, [features])
    assert batch.id.tolist() == batch.time.tolist() == [-1]
    assert batch.labels["click"].isnan().all()
    assert batch.dense.tolist() == encode_table(SCHEMA, table()).dense[:1].tolist()


def test_no_events_make_an_empty_batch() -> None:
    for batch in (encode_events(SCHEMA, []), encode_table(SCHEMA, table().slice(0, 0))):
        assert len(batch) == 0
        assert batch.dense.shape == (0, 2)
        assert batch.sparse.offsets.tolist() == [0]


def test_schema_without_features() -> None:
    batch = encode_events(Schema(labels=(Label("y"),)), [{"y": 1}, {"y": 0}])
    assert batch.dense.shape == (2, 0)
    assert batch.sparse.bags == 0
    assert batch.weight.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("column", "values", "text"),
    [
        ("time", [1, None, 3], "log: column 'time': null at row 1; every event needs one"),
        ("id", [None, 1, 2], "log: column 'id': null at row 0"),
        ("id", [1.0, 2.5, 3.0], "log: column 'id': expected integers, found double"),
        ("user", ["x", "y", "z"], "log: column 'user': expected integers, found string; number the ids"),
        ("price", [1.0, None, 2.0], "log: dense column 'price': null or nan at row 1; declare missing"),
        ("price", [1.0, 2.0, math.nan], "log: dense column 'price': null or nan at row 2"),
        ("price", ["1", "2", "3"], "log: dense column 'price': expected numbers, found string"),
        ("age", [1.0, math.inf, 2.0], "log: dense column 'age': inf at row 1 is no number to learn from"),
        ("age", [1e39, 1.0, 2.0], "log: dense column 'age': inf at row 0"),
        ("item", ["a", "b", "c"], "log: sparse column 'item': encoding hash takes integers, found string"),
        ("item", [1.5, 2.0, 3.0], "log: sparse column 'item': encoding hash takes integers, found double"),
        ("shop", [1, 2, 3], "log: sparse column 'shop': encoding hash_text takes text, found int64"),
        ("device", [1, 2, 3], "log: sparse column 'device': encoding vocabulary takes text, found int64"),
        ("tags", [[1], [10], [2]], r"log: sparse column 'tags': id 10 is outside 0\.\.9; raise rows or hash it"),
        ("tags", [[1], [-1], [2]], r"log: sparse column 'tags': id -1 is outside 0\.\.9"),
        ("tags", [[1], [None], [2]], "log: sparse column 'tags': a list holds a null"),
        ("tags", [1, 2, 3], "log: sparse column 'tags': expected lists, found int64"),
        ("click", [0, 1, 2], r"log: column 'click': 2.0 at row 2 is outside 0\.\.1"),
        ("click", ["n", "y", "n"], "log: column 'click': expected numbers, found string"),
        ("buy_after", [1.0, -2.0, None], "log: column 'buy_after': -2.0 at row 1 is outside 0 or more seconds"),
        ("w", [1.0, None, 1.0], "log: weight column 'w': found nan at row 1; expected finite and >= 0"),
        ("w", [1.0, -1.0, 1.0], "log: weight column 'w': found -1.0"),
    ],
)
def test_refuses_columns_by_name(column: str, values: list[Any], text: str) -> None:
    with pytest.raises(DataError, match=text) as caught:
        encode_table(SCHEMA, table(**{column: pa.array(values)}), "log")
    assert "\n" not in str(caught.value)


def test_refuses_an_unsigned_id_beyond_64_bits() -> None:
    with pytest.raises(DataError, match="column 'user': .*ids are signed 64-bit"):
        encode_table(SCHEMA, table(user=pa.array([1, 2**63, 2], pa.uint64())))


def test_transform_outside_its_domain_names_value_and_row() -> None:
    schema = Schema(dense=(Dense("x", (Log1p(),)),))
    with pytest.raises(DataError, match="events: dense column 'x': -2.0 at row 1 becomes nan; clip it"):
        encode_events(schema, [{"x": 0}, {"x": -2}])


def test_missing_column_lists_what_is_there() -> None:
    with pytest.raises(DataError, match="log: column 'price' is missing; it has time, id"):
        encode_table(SCHEMA, table().drop_columns("price"), "log")


def test_events_of_mixed_types_name_the_column() -> None:
    with pytest.raises(DataError, match="events: column 'user': "):
        encode_events(SCHEMA, [EVENTS[0], {**EVENTS[0], "user": "x"}])
