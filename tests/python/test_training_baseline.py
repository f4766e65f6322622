"""The logistic regression beside every run: what it may see, and how events weigh."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from octavo.data import Dense, Label, Schema, convert, write_demo_log
from octavo.training.baseline import logistic_regression
from octavo.training.run import _floor


def test_events_weigh_in_fit_and_figure(tmp_path: Path) -> None:
    """x tells the label; as many events that say the opposite weigh nothing."""
    events = 2000
    generator = np.random.default_rng(0)
    x = generator.normal(size=events)
    lies = np.arange(events) % 2 == 1
    columns = {
        "time": np.arange(events),
        "id": np.arange(events),
        "x": x,
        "y": ((x > 0) != lies).astype(np.float64),
        "w": np.where(lies, 0.0, 2.0),
    }
    pq.write_table(pa.table(columns), tmp_path / "raw.parquet")
    schema = Schema(dense=(Dense("x"),), labels=(Label("y"),), weight="w")
    log, _ = convert(schema, [tmp_path / "raw.parquet"], tmp_path / "log")
    weighted = logistic_regression(log, 1500, "y")
    assert weighted is not None
    assert (weighted.auc or 0) > 0.99
    assert (weighted.ne or 1) < 0.3


def test_blocks_of_events_change_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = write_demo_log(tmp_path / "log", 3000, 0)
    whole = logistic_regression(log, 2000, "click"), _floor(log, 2000, "click")
    assert whole[1] is not None
    for module in ("baseline", "run"):
        monkeypatch.setattr(sys.modules[f"octavo.training.{module}"], "EVENTS_AT_ONCE", 37)
    assert (logistic_regression(log, 2000, "click"), _floor(log, 2000, "click")) == whole
