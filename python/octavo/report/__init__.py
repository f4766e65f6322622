"""The HTML report of a run: one self-contained file."""

from __future__ import annotations

from octavo.report.page import now, render, write_report
from octavo.report.probe_page import demands, render_probe, write_probe_report
from octavo.report.probe_results import InputShape, MeasuredRow, ProbeResults
from octavo.report.results import EpochRow, NumericsRow, PlanRow, Results, SliceRow, SpeedRow, TeacherRow
from octavo.report.windows_page import render_windows, write_windows_report
from octavo.report.windows_results import LawCurve, LawRow, Rival, WindowCalibration, WindowsResults

__all__ = [
    "EpochRow",
    "InputShape",
    "LawCurve",
    "LawRow",
    "MeasuredRow",
    "NumericsRow",
    "PlanRow",
    "ProbeResults",
    "Results",
    "Rival",
    "SliceRow",
    "SpeedRow",
    "TeacherRow",
    "WindowCalibration",
    "WindowsResults",
    "demands",
    "now",
    "render",
    "render_probe",
    "render_windows",
    "write_probe_report",
    "write_report",
    "write_windows_report",
]
