"""The whole job: where its log comes from and what it leaves behind."""

from __future__ import annotations

import pytest
from training_support import small_config

from octavo.config import ConfigError, DataConfig
from octavo.data import AdsWorld
from octavo.training import open_log


def test_a_world_is_simulated_once_and_reused(tmp_path) -> None:
    config = DataConfig(source="world", preset="delay", events=700, seed=2)
    log = open_log(config, tmp_path)
    expected = next(AdsWorld("delay", 2).tables(events=700, rows=700))
    assert log.columns(expected.column_names).combine_chunks().equals(expected)
    stamp = (log.path / "log.json").stat().st_mtime_ns
    again = open_log(config, tmp_path)
    assert (again.path, (again.path / "log.json").stat().st_mtime_ns) == (log.path, stamp)
    other = open_log(config.model_copy(update={"events": None, "days": 0.01}), tmp_path)
    assert other.path != log.path
    assert other.files[-1].last_time < AdsWorld("delay", 2).time(0.01)


def test_an_unknown_preset_is_named(tmp_path) -> None:
    config = small_config(data="{source: world, preset: dlay, events: 5}")
    with pytest.raises(ConfigError, match="preset 'dlay': there is none of this name; did you mean delay?"):
        open_log(config.data, tmp_path)
