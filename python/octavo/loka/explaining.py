"""A plan, or what a model runs in now, as a table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from octavo.loka.findings import Estimate, Finding, Report
from octavo.loka.installing import installed
from octavo.loka.layers import is_of
from octavo.loka.solving import classes_of, weighed
from octavo.ops.dispatch import Plan, PlanEntry

COLUMNS = ("site", "direction", "class", "errors", "speedup", "reason")
_WIDE = 160  # of a file or a pipe, which says no width
_SHOWN = ("rel_l1", "signal_rel", "post_norm", "sqnr_db")


def explain(model_or_plan: torch.nn.Module | Plan, report: Report | None = None) -> None:
    """Print, for each site and direction, the class, its predicted errors, its speedup and why.

    ``report``: gives errors their 95% intervals, and speedups as ``solve`` weighed them, and names the layers that it
    never saw called. A model shows what it runs in
    now, the valve's closings included. In plain text where the package rich is not installed (it is in octavo's
    ``train`` extra). Raises ValueError for a model that follows no plan and for the report of another model.
    """
    rows = explain_rows(model_or_plan, report)
    unreached = () if report is None else report.settings.get("unreached", ())
    notes = [f"never called while it was probed, in FP32: {', '.join(unreached)}"] if unreached else []
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        print("\n".join([as_text(rows), *notes]))
        return
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, _WIDE)
    console.print(as_table(rows, Table), *notes, sep="\n")


def explain_rows(model_or_plan: torch.nn.Module | Plan, report: Report | None = None) -> list[tuple[str, ...]]:
    """The table's cells, in the order of ``COLUMNS``."""
    if report is not None and not isinstance(report, Report):
        raise TypeError(f"report: expected an octavo.loka.Report, found {type(report).__name__}")
    entries = list(_entries(model_or_plan))
    if report is None:
        return [_row(entry, ()) for entry in entries]
    if isinstance(model_or_plan, Plan):
        is_its = model_or_plan.origin.get("model") in (None, report.model)
    else:
        is_its = is_of(model_or_plan, report.model)
    if not is_its:
        raise ValueError(f"report: is of another model ({report.model}) than what is to be explained; give its own")
    known, grad_input = {info.path for info in report.sites}, classes_of(entries, "grad_input")
    return [
        _row(entry, weighed(report, entry.site, entry.direction, grad_input) if entry.site in known else ())
        for entry in entries
    ]


def as_text(rows: Sequence[tuple[str, ...]]) -> str:
    """Aligned columns."""
    lines = [COLUMNS, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS) - 1)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[-1]]) for line in lines
    )


def as_table(rows: Sequence[tuple[str, ...]], table_type: Any) -> Any:
    """A table of rich; a site's name stands in its first row only."""
    table = table_type(title="Classes by site and direction", title_justify="left", header_style="bold")
    for name in COLUMNS:
        table.add_column(name, justify="right" if name == "speedup" else "left", overflow="fold")
    last = None
    for row in rows:
        site, direction, numerics, *rest = (cell.replace("[", "\\[") for cell in row)
        if last is not None and site != last:
            table.add_section()
        colour = "dim" if numerics == "fp32" else "green"
        table.add_row("" if site == last else f"[bold]{site}[/]", direction, f"[{colour}]{numerics}[/]", *rest)
        last = site
    return table


def _entries(model_or_plan: torch.nn.Module | Plan) -> Iterable[PlanEntry]:
    if isinstance(model_or_plan, Plan):
        return model_or_plan
    if not isinstance(model_or_plan, torch.nn.Module):
        raise TypeError(f"model_or_plan: expected a torch.nn.Module or a Plan, found {type(model_or_plan).__name__}")
    found = installed(model_or_plan)
    if not found:
        raise ValueError("model: follows no plan; install one with loka.install, or give the plan itself")
    return [entry for site in found.values() for entry in site.entries.values()]


def _row(entry: PlanEntry, findings: Sequence[Finding]) -> tuple[str, ...]:
    errors: dict[str, Estimate | float] = dict(entry.measured.get(entry.numerics, {}))
    speedup = math.nan
    for finding in findings:
        if finding.numerics == entry.numerics:
            errors, speedup = dict(finding.errors), finding.speedup
    text = ", ".join(f"{name} {_figure(errors[name])}" for name in _SHOWN if name in errors)
    shown = "" if math.isnan(speedup) else f"{speedup:.2f}x"
    return entry.site, entry.direction, entry.numerics, text, shown, entry.reason


def _figure(error: Estimate | float) -> str:
    return f"{error.value:.3g} ({error.low:.3g}-{error.high:.3g})" if isinstance(error, Estimate) else f"{error:.3g}"
