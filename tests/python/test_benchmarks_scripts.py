"""Every benchmark runs end to end in its smoke size and prints well-formed lines; rows name kernels that ran."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from octavo import _core

FOLDER = Path(__file__).parents[2] / "benchmarks" / "python"
OPS = {
    "linear_norm": "linear",
    "linear_mixed": "linear",
    "isa": "bag_forward bag_backward linear",
    "linear_backward": "linear_backward",
    "embedding_forward": "bag_forward",
    "embedding_backward": "bag_backward",
    "quantize": "quantize",
    "overhead": "linear bag_forward pairwise_dots add_norm",
    "train_step": "bag_backward",
    "dispatch_regret": "linear",
    "dynamic_table": "bag_forward bag_backward",
    "simulate": "simulate",
    "memory": "memory",
    "quality_parity": "quality_parity",
    "data_throughput": "data_throughput",
    "train_throughput": "train_throughput",
    "loka_inference": "loka_inference",
    "loka_training": "loka_training",
    "loka_dispatch": "loka_dispatch",
    "loka_overhead": "loka_overhead",
    "windows_speed": "windows_speed",
    "das_throughput": "das_throughput",
}
# Their rows are of whole systems; memory and quality_parity have none.
NO_KERNELS = {"simulate", "memory", "quality_parity", "data_throughput", "train_throughput", "loka_inference",
              "loka_training", "loka_dispatch", "loka_overhead", "windows_speed",
              "das_throughput"}  # fmt: skip
# What one call of an op may run, where that is more than kernels of its name.
PARTS = {
    "linear_backward": {"linear", "linear_epilogue_backward", "linear_grad_input", "linear_grad_weight", "quantize"}
}
ROW = {"commit", "device", "isa", "op", "shape", "entry", "io", "kernel", "p10_us", "p50_us", "p90_us", "rounds",
       "peers", "best_peer", "best_peer_any"}  # fmt: skip
BAR = {"name", "figure", "low", "high", "bar", "holds"}


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("name", OPS)
def test_smoke(name: str, tmp_path: Path) -> None:
    out = tmp_path / f"{name}.jsonl"
    command = [sys.executable, FOLDER / f"{name}.py", "--smoke", "--json", "--out", out]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = lines_of(done.stdout)
    assert lines_of(out.read_text()) == lines
    head, *rows, summary = lines
    assert head["benchmark"] == name
    assert head["effort"] == "smoke"
    assert {"commit", "date", "device", "isa", "threads", "libraries", "load"} <= set(head)
    known = {kernel.name: kernel for kernel in _core.kernels()}
    assert rows or name in NO_KERNELS
    for row in rows:
        assert set(row) >= ROW, row
        assert 0 < row["p10_us"] <= row["p50_us"] <= row["p90_us"]
        assert row["op"].split()[0] in OPS[name].split()
        parts = PARTS.get(name, set(OPS[name].split()))
        assert name in NO_KERNELS or all(known[kernel].op.name in parts for kernel in row["kernel"].split(" + "))
        if "share_of_roof" in row:
            assert row["share_of_roof"] > 0
            assert row["roof"]["value"] > 0
        for peer in row["peers"].values():
            assert peer.get("p50_us", 0) > 0 or peer["absent"]
        timed = {peer: values["p50_us"] for peer, values in row["peers"].items() if "p50_us" in values}
        best = row["best_peer_any"]
        assert (best is None) == (not timed)
        if best is not None:
            assert timed[best["name"]] == min(timed.values())
            assert best["low"] <= best["ratio"] <= best["high"]
    assert summary["summary"] == name
    names = [bar["name"] for bar in summary["bars"]]
    assert names
    assert len(set(names)) == len(names)
    absent = {peer for row in rows for peer, values in row["peers"].items() if "absent" in values}
    for bar in summary["bars"]:
        assert set(bar) >= BAR
        assert bar["bar"] is not None or bar["holds"] is None or "did_not_run" in bar  # a finding holds nothing
        assert name in NO_KERNELS or set(bar.get("did_not_run", ())) <= absent
        assert bar["figure"] is None or bar["low"] <= bar["figure"] <= bar["high"]
    missing = {peer for bar in summary["bars"] for peer in bar.get("did_not_run", ())}
    if name in NO_KERNELS and missing:
        pytest.skip(f"{name}: ran without {', '.join(missing)}: {done.stderr.strip()}")


def test_fbgemm_runs_and_agrees_where_it_is_installed() -> None:
    pytest.importorskip("fbgemm_gpu", reason="fbgemm-gpu-cpu (the bench extra) is not installed")
    command = [sys.executable, FOLDER / "embedding_forward.py", "--smoke", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    row = lines_of(done.stdout)[1]
    for peer in ("fbgemm fp32", "fbgemm fp16", "fbgemm int8", "fbgemm int4", "fbgemm split float32"):
        assert row["peers"][peer].get("p50_us", 0) > 0, row["peers"][peer]


def test_a_table_is_printed_without_json() -> None:
    done = subprocess.run(
        [sys.executable, FOLDER / "quantize.py", "--smoke"], capture_output=True, text=True, check=True
    )
    assert "quantize_float32_to_e4m3_vs_best_torch" in done.stdout
    assert "best peer" in done.stdout
