"""Benchmarks of quality run end to end in their smoke size: rows with intervals, bars that say what they hold."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks" / "python"


def lines_of(name: str, *arguments: str) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """Rows and bars of the smoke run."""
    command = [sys.executable, FOLDER / f"{name}.py", "--smoke", "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    head, *rows, summary = [json.loads(line) for line in done.stdout.splitlines()]
    assert head["benchmark"] == summary["summary"] == name
    return rows, {bar["name"]: bar for bar in summary["bars"]}


def test_bayes_gap() -> None:
    rows, bars = lines_of("bayes_gap")
    assert [row["entry"] for row in rows] == ["dlrm", "dcnv2", "wukong"]
    for row in rows:
        assert row["low"] < row["figure"] < row["high"]
        assert abs(row["figure"] - (row["truth_auc"] - row["auc"])) < 2e-4  # four digits
        assert row["events"] == 2000
    [bar] = bars.values()
    assert abs(bar["figure"] - min(row["figure"] for row in rows)) < 1e-3
    assert (bar["name"], bar["bar"], bar["holds"]) == ("bayes_gap", 0.01, bar["figure"] <= 0.01)
    assert bar["events"] == 2000


def test_loka_prediction() -> None:
    rows, bars = lines_of("loka_prediction")
    *sites, skipped = rows
    assert skipped["skipped"] == "smoke"
    for row in sites:
        assert row["low"] <= row["figure"] <= row["high"]
        ratios = [e[0] / e[1] for key, e in row["errors"].items() if key.startswith("forward")]
        assert abs(min(ratios) / row["low"] - 1) < 5e-3  # four digits
        assert {key.split()[0] for key in row["errors"]} == {"forward", "grad_input", "grad_weight"}
    gated = {name: bar for name, bar in bars.items() if bar["bar"] is not None}
    assert len(gated) == 4 * 2 * 2  # classes, errors, figures
    for name, bar in gated.items():
        assert bar["holds"] == (bar["figure"] <= 0.1 if name.endswith("log_ratio") else bar["figure"] >= 0.9)
        assert bar["sites"] in (len(sites), len(sites) - 2)  # of two heads no norm leaves anything


def test_loka_faults() -> None:
    rows, bars = lines_of("loka_faults")
    *sites, _ = rows
    assert all(len(row["faults"]) == 5 for row in sites)
    for name, bar in bars.items():
        if not name.endswith("_normal"):
            assert bar["sites"] == len(sites)
            assert bar["holds"] == (bar["figure"] >= 10 if bar["bar"] else None)
            assert bar["bar"] is None or bar["separated"] > 0


def test_loka_quality() -> None:
    rows, bars = lines_of("loka_quality")
    trained = {row["entry"]: row for row in rows if row["op"] == "loka_quality training"}
    assert set(trained) == {"aa", "plan", "narrow", "strict", "naive"}
    for row in rows:
        assert row.get("skipped") or row["low"] <= row["figure"] <= row["high"]
    for row in trained.values():
        assert row["figure"] == pytest.approx(sum(row["seeds"]) / 2, abs=1e-4)
    assert abs(trained["aa"]["figure"]) < 1e-3  # an ulp has no time to grow in 4096 events
    assert "e4m3_row" in trained["narrow"]["classes"]["forward"]
    assert "int8_dynamic" in trained["strict"]["classes"]["forward"]
    assert abs(trained["naive"]["figure"]) > abs(trained["aa"]["figure"])
    for name in (
        f"loka_quality_{what}_dcnv2_{task}_narrow"
        for what in ("training", "inference")
        for task in ("click", "conversion")
    ):
        bar = bars[name]
        assert bar["bar"] == 0.05
        assert bar["holds"] == (bar["low"] > -0.05 and bar["high"] < 0.05)
    assert bars["loka_quality_training_dcnv2_click_aa"]["holds"] is None


def test_loka_comm() -> None:
    rows, bars = lines_of("loka_comm")
    sent = {row["entry"]: row for row in rows if row["op"] == "loka_comm bytes"}
    assert set(sent) == {"e4m3", "int8"}
    for name, row in sent.items():
        assert 0.25 < row["counted_ratio"] < row["low"] <= row["figure"] < 0.27  # the sockets saw gloo's headers too
        assert bars[f"loka_comm_bytes_dcnv2_{name}_2_ranks"]["holds"] is True
    trained = {row["entry"]: row for row in rows if row["op"] == "loka_comm ne"}
    assert set(trained) == {"aa", "e4m3", "int8"}
    assert abs(trained["aa"]["figure"]) < 1e-3
    assert any(value != 0 for value in trained["e4m3"]["seeds"])


def test_loka_mods() -> None:
    rows, bars = lines_of("loka_mods")
    assert {(row["op"], row["entry"]) for row in rows} == {
        *((f"loka_mods {what}", entry) for what in ("inference", "training")
          for entry in ("none plan", "all fp32", "all plan")),
        ("loka_mods fp32", "all fp32"), ("loka_mods narrow", "none narrow"), ("loka_mods narrow", "all narrow"),
        ("loka_mods precision", "none narrow"), ("loka_mods precision", "all narrow"),
    }  # fmt: skip
    assert all(bar["bar"] is None and bar["holds"] is None for bar in bars.values())
    assert all(bar["low"] <= bar["figure"] <= bar["high"] for bar in bars.values())
