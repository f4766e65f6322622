"""Probe's report as a file: what goes in comes out, damage is named."""

import json
import math
from pathlib import Path

import pytest

from octavo.loka import Estimate, Finding, Report, SiteInfo

ERRORS = {"rel_l1": Estimate(0.0125, 0.012, 0.013), "sqnr_db": Estimate(math.inf, 40.0, math.inf)}
REPORT = Report(
    model="abc", machine="cpu", steps=300,
    sites=(SiteInfo("top.0", 256, 512, 2048, "bias+layer+hardswish", "float32"),
           SiteInfo("head", 1, 256, 2048, "bias", "float32")),
    findings=(
        Finding("top.0", "forward", "int8_dynamic", ERRORS, 10.0, 35.0, 64),
        Finding("top.0", "grad_weight", "bf16", ERRORS, None, 35.0, 64, ("speed",)),
    ),
    settings={"every": 100, "tau": 1e-2},
)  # fmt: skip


def test_a_report_survives_its_file(tmp_path: Path) -> None:
    REPORT.save(tmp_path / "report.json")
    assert Report.load(tmp_path / "report.json") == REPORT


def test_findings_by_site_and_direction() -> None:
    assert [f.numerics for f in REPORT.at("top.0")] == ["int8_dynamic"]
    assert REPORT.at("top.0")[0].speedup == 3.5
    assert math.isnan(REPORT.at("top.0", "grad_weight")[0].speedup)
    assert REPORT.at("head") == ()
    with pytest.raises(KeyError, match=r"site: 'bottom' is not in the report; it has top.0, head"):
        REPORT.at("bottom")


def test_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    REPORT.save(path)
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "steps": 5}))
    with pytest.raises(ValueError, match=r"report.json: not a report of loka.Probe \(report: damaged or edited"):
        Report.load(path)
    path.write_text(json.dumps({**content, "format": 9}))
    with pytest.raises(ValueError, match="format 9, expected 2; probe the model again"):
        Report.load(path)
    with pytest.raises(ValueError, match="direction"):
        Finding("a", "sideways", "bf16", {}, None, None, 1)
