"""The HTML report of a run: one self-contained file."""

from __future__ import annotations

from octavo.report.page import now, render, write_report
from octavo.report.results import (
    CalibrationBin,
    Interval,
    NumericsRow,
    PlanRow,
    ProgressPoint,
    Quality,
    Results,
    SpeedRow,
    write_atomically,
)

__all__ = [
    "CalibrationBin",
    "Interval",
    "NumericsRow",
    "PlanRow",
    "ProgressPoint",
    "Quality",
    "Results",
    "SpeedRow",
    "now",
    "render",
    "write_atomically",
    "write_report",
]
