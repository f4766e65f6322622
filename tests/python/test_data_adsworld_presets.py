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
        "36ef16c244475693f200fc042f235336f893d1c5d0e890d7ec21576703e314c0",
        "ba841301e62003a06b58755e2be075a714806f693623f1ea840e6ee62dd9f03c",
    ),
    "drift": (
        "b5739d975a19525dbf65e2a848d1b759a04de561decb5a100310c440cbb90c26",
        "a9f86c384b4a0e63e25bb70c34ffa384c699878c75836b752a4bf8617df4aeae",
    ),
    "delay": (
        "02669f61e391410c73bdbc75f995bbfafa14a3b523d2235ce8aef2561d933827",
        "432f325fd74a0e56dbb87a9e861e31f3c7cfc5ccd6d5b5a1449a6b2e7fde4664",
    ),
    "rerequest": (
        "d519e49f6d1b77af438d4572a5990828089081d383e3d1bb5fec0f78605aa935",
        "c8c152a0b7ad0f9f1218138b34ce74be1cb854b50c79da383eba4ca09a83da09",
    ),
    "cold": (
        "e3fe2f959050311b52e07f9ed2e332e38f7969c440131aa5e30d5b464022bb9e",
        "6186e03a9a89b923dec1611f5f87a3c657bf17dda5296a1a5956b66212426da6",
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
