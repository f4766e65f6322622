"""Benchmarks of windows run end to end in their smoke size: rows with intervals, bars that say what they hold."""

from __future__ import annotations

import pytest
from test_benchmarks_quality import lines_of
from test_benchmarks_tables import ROOT

from octavo.data import DataError, data_root


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


def test_windows_real() -> None:
    try:
        root = data_root()
    except DataError as error:
        pytest.skip(str(error))
    if not (root / "hotel_bookings").exists() or not (root / "deskdrop").exists():
        pytest.skip(f"{root}: hotel_bookings or deskdrop is not here")
    rows, bars = lines_of("windows_real")
    for name in ("hotel_bookings", "deskdrop"):
        page = (ROOT / "build" / "windows" / f"{name}.html").read_text()
        assert page.count("data:image/svg+xml;base64,") == 4  # rivals, reliability, groups, laws
        assert page.count("<td>personalized</td>") == 3
    assert {row["entry"] for row in rows} == {"personalized", "global", "gold", "gold again"}
    for row in rows:
        assert row["low"] <= row["figure"] <= row["high"]
        if row["entry"] == "gold":
            assert row["figure"] == 0
            assert row["ratio_to_gold"] == [1, 1, 1]
    for name, bar in bars.items():
        if name.endswith("_ne_less_golds"):
            assert bar["holds"] == (bar["high"] <= bar["bar"])
            assert bar["bar"] >= 0.003
        if name.endswith("_ratio_to_gold_less_1"):
            assert bar["holds"] == (abs(bar["figure"]) <= 0.03)
