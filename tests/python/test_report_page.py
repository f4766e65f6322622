"""The report: self-contained, escaped, with the figures it was given, written whole."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from octavo.config import RunConfig, config_hash, run_id
from octavo.evaluation import CalibrationBin, Interval, ProgressPoint, Quality
from octavo.report import NumericsRow, PlanRow, Results, SpeedRow, render, write_report
from octavo.report.page import microseconds, number, signed

DAY_MS = 86_400_000


def sample() -> Results:
    config = RunConfig(name="sample")
    start = 874_724_710_000
    points = [
        ProgressPoint(
            "like",
            5000 * (i + 1),
            start + 5 * i * DAY_MS,
            Quality(5000, 0.97 - 0.03 * i / (i + 2), 0.6 + 0.01 * i, 1 + 0.05 / (i + 1)),
        )
        for i in range(16)
    ]
    held = Quality(20_000, 0.91234, 0.70123, 1.0123)
    speed = [
        SpeedRow(
            name, size, 90.0 * k * size / 64, 100.0 * k * size / 64, 120.0 * k * size / 64, 1.6 / k, 1.5 / k, 1.7 / k
        )
        for size in (64, 512, 2048)
        for name, k in [
            ("torch FP32", 1.6),
            ("torch BF16", 1.3),
            ("FP32", 1.2),
            ("planned", 0.9),
            ("e4m3_row", 1.0),
            ("int8_dynamic", 0.8),
        ]
    ]
    numerics = [NumericsRow("FP32", "like", held)]
    numerics += [
        NumericsRow(
            name, "like", replace(held, ne=0.91234 + 1e-4 * d), Interval(1e-4 * d, 1e-4 * (d - 2), 1e-4 * (d + 3))
        )
        for name, d in [("planned", 0.4), ("e4m3_row", 1.2), ("int8_dynamic", 6.0)]
    ]
    kernels = {"M <= 64": "cpu.avx512.linear.int8_dynamic", "M > 64": "cpu.avx512.linear.e4m3_row"}
    return Results(
        run_id=run_id(config),
        title="MovieLens-100K & <friends>",
        created="2026-11-24 05:00 UTC",
        task="like",
        config=config.resolved(),
        config_sha256=config_hash(config),
        machine={"CPU": "AMD EPYC", "ISA": "avx512", "threads": "2", "torch": "2.13.0+cpu"},
        data={"events": "100,000", "span": "1997-09-20 to 1998-04-22", "end_ms": str(start + 100 * DAY_MS)},
        training={"trained on": "80,000 events", "throughput": "61,000 events/s"},
        requirement="SQNR of every layer's output >= 25 dB",
        progressive=points,
        heldout=held,
        floor_ne=0.89,
        baselines={"user and item bias": Quality(20_000, 0.95, 0.68, 1.0)},
        calibration=[
            CalibrationBin(0.1 + 0.05 * i, 0.11 + 0.05 * i, 0.09 + 0.05 * i, 0.13 + 0.05 * i, 1000) for i in range(15)
        ],
        numerics=numerics,
        speed=speed,
        plan=[
            PlanRow(f"top.{i}", 256, 512, "bias, layer norm, hardswish", "int8_dynamic", kernels, 31.4)
            for i in range(3)
        ]
        + [PlanRow("heads.like", 1, 128, "bias", "fp32", {"any M": "torch.linear.fp32"}, None)],
    )


def test_page_is_self_contained_and_escaped() -> None:
    page = render(sample())
    assert "MovieLens-100K &amp; &lt;friends&gt;" in page
    assert "<friends>" not in page
    assert not re.search(r"""(src|href)\s*=\s*(?!"data:)""", page)
    assert "http" not in re.sub(r"data:image/svg\+xml;base64,[A-Za-z0-9+/=]+", "", page)
    assert page.count("data:image/svg+xml;base64,") == 4
    assert len(page) < 1_000_000


def test_page_shows_what_was_measured() -> None:
    page = render(sample())
    for text in [
        "0.91234",
        "0.70123",
        "1.0123",
        "+6.00",
        "+4.00 … +9.00",
        "31.4 dB",
        "heads.like",
        "2.00",
        "floor 0.8900",
    ]:
        assert text in page, text
    assert "user and item bias NE 0.9500, AUC 0.6800." in page
    assert "batch_size: 256" in page
    assert "cpu.avx512.linear.e4m3_row" in page
    assert "end_ms" not in page


def test_missing_parts_leave_no_empty_sections() -> None:
    bare = replace(sample(), heldout=None, floor_ne=None, calibration=[], numerics=[], speed=[], plan=[], baselines={})
    page = render(bare)
    assert page.count("data:image/svg+xml;base64,") == 1
    assert "Speed against torch" not in page
    assert "The plan, layer by layer" not in page
    undefined = replace(bare, progressive=[replace(bare.progressive[0], quality=Quality(0, None, None, None))])
    assert "Learning over event time" in render(undefined)


def test_same_results_give_the_same_bytes() -> None:
    assert render(sample()) == render(sample())


def test_files_are_written_whole(tmp_path: Path) -> None:
    results = sample()
    path = write_report(results, tmp_path / "report.html")
    results.save(tmp_path / "results.json")
    assert path.read_text(encoding="utf-8") == render(results)
    assert json.loads((tmp_path / "results.json").read_text())["numerics"][1]["ne_difference"]["high"] == pytest.approx(
        3.4e-4
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "results.json"]


def test_formats() -> None:
    assert (number(None), number(0.25, 2)) == ("–", "0.25")
    assert (signed(1.23e-4), signed(-1.23e-4), signed(-1e-9)) == ("+1.23", "−1.23", "0.00")
    assert [microseconds(v) for v in (1.234, 512.4, 1234.0, 98765.0)] == ["1.23 µs", "512 µs", "1.23 ms", "98.8 ms"]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("hours", [1e-3, 0.04, 0.042, 2.4, 2.5, 2.6, 59, 61, 20_900, 22_000, 90_000])
def test_any_span_of_time_has_ticks(hours) -> None:
    results = sample()
    start = results.progressive[0].time_ms
    points = [
        replace(point, time_ms=start + int(i * hours * 3_600_000 / 15)) for i, point in enumerate(results.progressive)
    ]
    assert "<img" in render(replace(results, progressive=points))


def split_points(domains: int) -> list[ProgressPoint]:
    return [
        ProgressPoint(task, 100 * i, DAY_MS * i, Quality(100 + (domain or 0), 0.9, 0.7, None, 0.6), domain)
        for i in range(1, 4)
        for task in ("click", "buy@7d")
        for domain in [None, *range(domains)]
    ]


def test_tasks_and_domains_have_a_figure_and_a_table() -> None:
    from octavo.report import SliceRow

    bare = render(sample())
    assert "Tasks and domains over event time" not in bare
    assert "Held-out quality by task and domain" not in bare
    rows = [SliceRow("like", domain, Quality(1234, 0.9, 0.75, 1.25, 0.625)) for domain in (None, 0, 7)]
    page = render(replace(sample(), progressive=split_points(2), task="click", slices=rows))
    assert 'alt="NE, AUC, GAUC and calibration of every task and domain' in page
    assert "Tasks and domains over event time" in page
    for text in ('<td class="dim">all</td>', "<td>7</td>", "1,234", "0.6250", "1.250"):
        assert text in page


def test_the_domains_with_most_events_are_shown() -> None:
    from octavo.report.plots import shown_domains

    assert shown_domains(split_points(3)) == [0, 1, 2]
    assert shown_domains(split_points(9)) == [3, 4, 5, 6, 7, 8]  # the points of domain d have 100 + d events
