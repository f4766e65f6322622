"""The page of a fit of windows: one self-contained file with laws, calibration by window and group, and flags."""

from __future__ import annotations

from pathlib import Path

from octavo._files import write_atomically
from octavo.report import windows_plots
from octavo.report.page import template_of
from octavo.report.windows_results import WindowsResults


def render_windows(results: WindowsResults) -> str:
    """The page as HTML text without external resources."""
    grouped = [one for one in results.calibration if one.groups]
    figures = {
        "laws": windows_plots.laws(results.curves) if results.curves else None,
        "reliability": windows_plots.reliability(results.calibration) if results.calibration else None,
        "by_group": windows_plots.by_group(grouped) if grouped else None,
        "rivals": windows_plots.rivals(results.rivals) if results.rivals else None,
    }
    misfits = sum(row.misfit for row in results.laws)
    drifts = sum(row.drift for row in results.laws)
    page: str = template_of("windows.html.j2").render(r=results, figures=figures, misfits=misfits, drifts=drifts)
    return page


def write_windows_report(results: WindowsResults, path: str | Path) -> Path:
    """Write the page to ``path``, atomically. Returns the path."""
    path = Path(path)
    write_atomically(path, render_windows(results))
    return path
