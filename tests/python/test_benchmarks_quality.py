"""Benchmarks of quality run end to end in their smoke size: rows with intervals, bars that say what they hold."""

import json
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "benchmarks" / "python"


def test_bayes_gap() -> None:
    command = [sys.executable, FOLDER / "bayes_gap.py", "--smoke", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    head, *rows, summary = [json.loads(line) for line in done.stdout.splitlines()]
    assert head["benchmark"] == "bayes_gap"
    assert [row["entry"] for row in rows] == ["dlrm", "dcnv2", "wukong"]
    for row in rows:
        assert row["low"] < row["figure"] < row["high"]
        assert abs(row["figure"] - (row["truth_auc"] - row["auc"])) < 2e-4  # four digits
        assert row["events"] == 2000
    [bar] = summary["bars"]
    assert abs(bar["figure"] - min(row["figure"] for row in rows)) < 1e-3
    assert (bar["name"], bar["bar"], bar["holds"]) == ("bayes_gap", 0.01, bar["figure"] <= 0.01)
    assert bar["events"] == 2000
