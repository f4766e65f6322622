"""The HTML report of a run: one self-contained file."""

from __future__ import annotations

from octavo.report.page import now, render, write_report
from octavo.report.probe_page import demands, render_probe, write_probe_report
from octavo.report.probe_results import InputShape, MeasuredRow, ProbeResults
from octavo.report.results import EpochRow, NumericsRow, PlanRow, Results, SliceRow, SpeedRow

__all__ = [
    "EpochRow",
    "InputShape",
    "MeasuredRow",
    "NumericsRow",
    "PlanRow",
    "ProbeResults",
    "Results",
    "SliceRow",
    "SpeedRow",
    "demands",
    "now",
    "render",
    "render_probe",
    "write_probe_report",
    "write_report",
]
