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
        "bdf72d3b8b603b35a2b2f3b18e501e435a3e8c9eadc478e73fb70091a89efa16",
        "7a78fae91540dd57911d07d739642cb0e54bb440d90db9bf3f9ca5ab9a0439dd",
    ),
    "drift": (
        "91b7eabb3f449e1c2264c86d89f285388316622d3865e2fe08afdd904d3c419d",
        "7dc40435fd553b634bd4d7ae35a3b0d2ae0f7c39ec2a8f43e9e8a0cb10f6ca79",
    ),
    "delay": (
        "7fb9a3d321e9775dd1f17a1d7a7ec5cf7fe4c0b4ef7b2c81972f829c12d339ed",
        "527c51c8942aa0aa4030e1828277faca79f21a74a8b7332d9b740368cb447fb9",
    ),
    "rerequest": (
        "11f1fb1cde185bc82af2f63ed3d10ecda1dee60561fb31e458ff8ae01f652f16",
        "ff1ea3c9c589290662fab26321006aca8b7a50b4fb854778629aa726ff62b4d3",
    ),
    "cold": (
        "d269c04f835529c2daf6ffd8af68c3843d8dc7c27604a4c241dbe2c9aec3e0c6",
        "b1d739328d0c2a19d07d5c3631d4e1c9d3f00910ef667ec7c18fdca717b9d807",
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
