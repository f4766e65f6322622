"""The benchmarks of ExFM run end to end in their smoke sizes."""

from __future__ import annotations

from typing import Any

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
