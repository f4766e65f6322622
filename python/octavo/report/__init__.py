"""The HTML report of a run: one self-contained file."""

from __future__ import annotations

from octavo.report.page import now, render, write_report
from octavo.report.results import EpochRow, NumericsRow, PlanRow, Results, SliceRow, SpeedRow

__all__ = [
    "EpochRow",
    "NumericsRow",
    "PlanRow",
    "Results",
    "SliceRow",
    "SpeedRow",
    "now",
    "render",
    "write_report",
]
