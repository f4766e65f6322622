"""Presets are frozen: configuration and content are pinned, so that a benchmark's name keeps its meaning."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("pydantic")

import pyarrow as pa

from octavo.config import ConfigError, config_hash
from octavo.data import PRESETS, AdsWorld, AdsWorldConfig, encode_table, preset, preset_hash

# Written once. A change here is a new world: give it a new name instead. The second value is the content of the first
# 10,000 impressions of seed 0; if only that one differs, numpy has changed its random streams (NEP 19 allows it).
PINNED = {
    "reference": (
        "ce14506dfa1a4a6cb4cfdf07b806ba456de6a74da0b4a4075fd71322fe32b6ad",
        "0ae3000fcd594fd9b192852b8c4c57a9d5ffe039a52b93610bd9e83501d9ad16",
    ),
    "drift": (
        "0c683730a89932c415d9860af2eeb1f8aa486d9da8c7981c3c42061dd385c83a",
        "1dcf28174130e85f7b65b249a93466120413e907a7042b28839177238d9a1929",
    ),
    "delay": (
        "682841e7f60dfbc290eb4673aadcf2e9372031f224fc44c7f72662ae70e77c3c",
        "0126905ec40f9764d954bcca6519998758187d64921aefb90d276ebb9f3e0c01",
    ),
    "rerequest": (
        "f48c93e87c1645e5934673b7d67af53708c9916bb9ddb0b7649c8620b55b4907",
        "01b8e6ccc18796897d689cf5369b1277393b46bf8fb01ff763e71c881e0cd981",
    ),
    "cold": (
        "2b42e942625553e0ef6c66296cec6dd71ec244d1fb00650925f5751d2d0c41e9",
        "57b6faf8e4f92eca632c4c230cd16234ca33e50559b6bef3535ae34583cd191a",
    ),
    "solaris": (
        "72160a1c6c6cd08a5132343fa498a1c9a982a46de51ed6685f0a304d87cff86f",
        "0801386369c6999d6c5db921c284121db5f148cc248e97b2c3ccb0d8ed6d3e3b",
    ),
    "exfm": (
        "bd4d892b5f51c5c15fcce62e3b589d67b5fda04f337aee575253692ae6745806",
        "6b52923957020d6865831b9ec8ab4a472b688bcb6f5e9ca5a8ed045a23da1b95",
    ),
}


def content_hash(table: pa.Table) -> str:
    """SHA-256 over the columns that a model or a metric reads: exact integers and float32 roundings of float64 results,
    so that the last bit of a library's exp or sin does not show."""
    found = hashlib.sha256()
    for name in table.column_names:
        if name.startswith("_") and name not in ("_law", "_poisoned"):
            continue
        column = table.column(name).combine_chunks()
        found.update(name.encode())
        if pa.types.is_list(column.type):
            found.update(np.asarray(column.offsets).astype("<i8").tobytes())
            column = column.flatten()
        values = column.fill_null(-1)
        kind = "<f4" if pa.types.is_floating(values.type) else "<i8"
        found.update(values.to_numpy(zero_copy_only=False).astype(kind).tobytes())
    return found.hexdigest()


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_the_world_it_was(name: str) -> None:
    table = next(AdsWorld(name, seed=0).tables(events=10_000, rows=10_000))
    assert (preset_hash(name), content_hash(table)) == PINNED[name]


def test_every_preset_is_pinned_and_no_two_are_one() -> None:
    assert set(PINNED) == set(PRESETS)
    assert set(PRESETS) >= {"reference", "drift", "delay", "rerequest", "cold", "solaris", "exfm"}
    assert len({preset_hash(name) for name in PRESETS}) == len(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_their_logs_encode(name: str) -> None:
    config = preset(name)
    assert AdsWorldConfig.model_validate(config.model_dump(mode="json")) == config
    world = AdsWorld(name, seed=1)
    table = next(world.tables(events=3000))
    batch = encode_table(world.schema, table)
    assert len(batch) == 3000
    assert float(batch.dense.abs().max()) < 10
    assert world.config is config


def test_an_unknown_preset_says_which_exist() -> None:
    with pytest.raises(ConfigError, match=r"preset 'solarys': there is none of this name; did you mean solaris\?"):
        preset_hash("solarys")


def test_the_hash_sees_every_key() -> None:
    config = preset("exfm")
    changed = AdsWorldConfig.model_validate({**config.model_dump(), "history": 1})
    assert config_hash(changed) != preset_hash("exfm")
