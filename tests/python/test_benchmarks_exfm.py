"""The benchmarks of ExFM run end to end in their smoke sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_benchmarks_quality import lines_of


def test_exfm_stream() -> None:
    rows, bars = lines_of("exfm_stream")
    assert rows == []
    assert bars["exfm_stream_ah"]["bar"] == 0.0
    assert bars["exfm_stream_ah"]["holds"] == (bars["exfm_stream_ah"]["low"] > 0)
    assert 0.8 < bars["exfm_stream_ah"]["ne_without"] < 1.3
    for control in ("shuffled", "label", "unrelated"):
        bar = bars[f"exfm_stream_control_{control}"]
        assert bar["holds"] == (-0.2 <= bar["low"] <= bar["high"] <= 0.2)
    apart = bars["exfm_stream_ah"]["figure"] - bars["exfm_stream_one_head"]["figure"]
    assert abs(apart - bars["exfm_stream_ah_over_one_head"]["figure"]) < 1e-6
    assert {"exfm_stream_ah_lag5", "exfm_stream_teacher", "exfm_stream_sa_over_ah"} <= bars.keys()


def test_exfm_sweeps() -> None:
    rows, bars = lines_of("exfm_sweeps")
    points = {(row["shape"]["sweep"], row["shape"]["x"]) for row in rows}
    assert {sweep for sweep, _ in points} == {"lag", "events_per_user", "drift", "bias"}
    found = {(row["shape"]["sweep"], row["shape"]["x"], row["entry"]): row for row in rows}
    assert found["lag", 0.0, "teacher"]["answered"] == 1.0  # the teacher was there first
    assert found["drift", 1.0, "ah"]["figure"] == found["bias", 0.8, "ah"]["figure"]  # one world
    assert found["bias", 1.6, "ah"]["figure"] != found["bias", 0.8, "ah"]["figure"]
    for row in rows:
        assert row["low"] <= row["figure"] <= row["high"]
        if slug(row) in bars:
            assert bars[slug(row)]["figure"] == pytest.approx(row["figure"], rel=1e-3)
    assert {"exfm_sweeps_lag_0_ah", "exfm_sweeps_drift_1_one_head"} <= bars.keys()


def slug(row: dict[str, Any]) -> str:
    return f"exfm_sweeps_{row['shape']['sweep']}_{row['shape']['x']:.3g}_{row['entry']}"


def test_exfm_cost() -> None:
    rows, bars = lines_of("exfm_cost")
    same = [row for row in rows if row["op"] == "exfm_cost same"]
    assert [row["figure"] * row["shape"]["students"] for row in same] == [1.0] * 4
    assert {row["asked"] for row in same} == {3000}
    halves = {row["shape"]["students"]: row for row in rows if row["op"] == "exfm_cost halves"}
    for count, row in halves.items():  # the union of halves over their sum
        assert row["figure"] == pytest.approx((1 - 0.5**count) / (count / 2), abs=0.02)
    served = [row for row in rows if row["op"] == "exfm_cost serving"]
    assert {row["shape"]["model"] for row in served} == {"dcnv2", "dlrm", "deepfm", "wukong"}
    assert all(row["same_bits"] and row["figure"] == 1.0 for row in served)
    gates = {name: bar for name, bar in bars.items() if bar["bar"] is not None}
    assert len(gates) == 4
    assert all(bar["holds"] for bar in gates.values())


def test_exfm_real() -> None:
    rows, bars = lines_of("exfm_real")
    there = [row for row in rows if "skipped" not in row]
    if len(there) < len(rows):
        assert "no data here" in rows[0]["skipped"] or "not a directory" in rows[0]["skipped"]
    _check_real(there, bars)


def test_exfm_real_takes_a_users_files(tmp_path: Path) -> None:
    rng, raw = np.random.default_rng(0), []
    for user, item, day in zip(rng.integers(0, 60, 2500), rng.integers(0, 40, 2500), range(2500), strict=True):
        raw.append(f"A{user},B{item},{1 + rng.integers(5)}.0,{1_300_000_000 + 86_400 * (day // 10)}")
    rng.shuffle(raw)  # the raw file is in no order
    file = tmp_path / "ratings_Books.csv"
    file.write_text("\n".join(raw) + "\n", encoding="utf-8")
    lines, bars = lines_of("exfm_real", "--data", f"amazon_reviews={file}")
    rows = [row for row in lines if row["op"] == "exfm_real"]
    assert len(lines) - len(rows) == 8  # it has no settings: they are found first
    assert {row["shape"]["set"] for row in rows} == {"amazon_reviews"}
    assert {row["shape"]["task"] for row in rows} == {"liked"}
    _check_real(rows, bars)


def _check_real(rows: list[dict[str, Any]], bars: dict[str, dict[str, Any]]) -> None:
    found = {(row["shape"]["set"], row["shape"]["student"], row["entry"]): row for row in rows}
    for (name, student, entry), row in found.items():
        none = found[name, student, "none"]
        assert 0 < row["answered"] <= 1
        if entry != "none":
            gain = bars[f"exfm_real_{name}_{student}_{entry}_ne"]
            assert gain["figure"] == pytest.approx(100 * (none["figure"] - row["figure"]) / none["figure"], abs=0.11)
            area = bars[f"exfm_real_{name}_{student}_{entry}_auc"]["figure"]
            assert area == pytest.approx(row["auc"] - none["auc"], abs=2e-4)
    assert len(bars) == 10 * len({key[:2] for key in found})
    assert all(bar["bar"] is None for bar in bars.values())
