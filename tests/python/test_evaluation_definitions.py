"""docs/definitions.md names implementations that exist, and every public metric is defined there."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

pytest.importorskip("pyarrow")

from octavo import evaluation

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "definitions.md").read_text(encoding="utf-8")


def test_every_named_implementation_exists() -> None:
    names = set(re.findall(r"`(octavo\.[\w.]+)`", TEXT))
    assert len(names) > 15
    for name in names:
        room, _, last = name.rpartition(".")
        module = importlib.import_module(room)
        assert hasattr(module, last), name


def test_every_public_metric_is_defined() -> None:
    functions = [name for name in evaluation.__all__ if name.islower()]
    shared = {"quality", "wilson_interval"}  # NE, AUC and calibration together; part of the bins' row
    assert [name for name in functions if f"`octavo.evaluation.{name}`" not in TEXT and name not in shared] == []


def test_pinned_constants() -> None:
    errors = importlib.import_module("octavo.ops.errors")
    assert f"tau = {errors.MERE_FLOOR:.0e}".replace("e-0", "e-") in TEXT
    assert evaluation.ne([0.2, 0.3], [1, 0]) == pytest.approx(1.4183, abs=5e-5)
    assert "is 1.4183; with weights (5, 1) it is 3.1087" in TEXT
