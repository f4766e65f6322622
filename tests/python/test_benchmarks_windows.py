"""Benchmarks of windows run end to end in their smoke size: rows with intervals, bars that say what they hold."""

from __future__ import annotations

from test_benchmarks_quality import lines_of


def test_windows_synthetic() -> None:
    rows, bars = lines_of("windows_synthetic")
    assert len(rows) == 5 * 12  # laws, methods
    for row in rows:
        assert row["low"] <= row["figure"] <= row["high"]
        assert set(row["by_size"]) == {"10", "100", "1000"}
        assert abs(sum(row["by_size"].values()) / 3 - row["figure"]) < 0.01
    assert len(bars) == 5
    best = bars["windows_auto_vs_best_family"]
    assert best["singles"][best["best"]] == min(best["singles"].values())
    assert all(bar["holds"] == (bar["figure"] <= 0) for bar in bars.values())


def test_windows_censoring() -> None:
    rows, bars = lines_of("windows_censoring")
    assert [row["entry"] for row in rows] == ["censored", "naive", "kaplan_meier 7d"] * 5
    for row in rows:
        if row["entry"] == "censored":
            assert abs(row["mean"] - row["shape"]["alpha"]) < 0.02
        elif row["entry"] == "naive":
            assert row["mean"] > row["shape"]["alpha"] + 0.01  # too short
        else:
            assert abs(row["figure"] - row["shape"]["p_7d"]) < 0.01
    assert bars["windows_censored_interval_holds"]["holds"] == (
        bars["windows_censored_interval_holds"]["figure"] >= 0.9
    )
    assert bars["windows_naive_interval_holds"]["figure"] == 0.0
