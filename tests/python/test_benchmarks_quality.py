"""Benchmarks of quality run end to end in their smoke size: rows with intervals, bars that say what they hold."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[2] / "benchmarks" / "python"


def _smoke(name: str) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """Rows, and the summary's bars by name."""
    command = [sys.executable, FOLDER / f"{name}.py", "--smoke", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    head, *rows, summary = [json.loads(line) for line in done.stdout.splitlines()]
    assert head["benchmark"] == summary["summary"] == name
    return rows, {bar["name"]: bar for bar in summary["bars"]}


def test_bayes_gap() -> None:
    rows, bars = _smoke("bayes_gap")
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
    rows, bars = _smoke("loka_prediction")
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
    rows, bars = _smoke("loka_faults")
    *sites, _ = rows
    assert all(len(row["faults"]) == 5 for row in sites)
    for name, bar in bars.items():
        if not name.endswith("_normal"):
            assert bar["sites"] == len(sites)
            assert bar["holds"] == (bar["figure"] >= 10 if bar["bar"] else None)
            assert bar["bar"] is None or bar["separated"] > 0
