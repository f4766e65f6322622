"""A run's results in tables."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from octavo.evaluation import Quality
from octavo.report import Results


def print_results(console: Console, results: Results) -> None:
    """Progressive quality, each numerics' quality, speed."""
    console.print(_progressive(results))
    if results.heldout is None:
        return
    console.print(_numerics(results))
    console.print(_speed(results))


def _progressive(results: Results) -> Table:
    table = Table(title=f"Predicted before trained on, task {results.task}", title_justify="left")
    for name in ("events", "NE", "AUC", "calibration"):
        table.add_column(name, justify="right")
    points = [point for point in results.progressive if point.task == results.task]
    step = max(1, len(points) // 8)
    for point in points[step - 1 :: step]:
        table.add_row(f"{point.position:,}", *_quality(point.quality))
    return table


def _numerics(results: Results) -> Table:
    held = results.heldout
    assert held is not None
    table = Table(
        title=f"The last {held.events:,} events, never trained on ({results.requirement})", title_justify="left"
    )
    table.add_column("numerics")
    for name in ("NE", "AUC", "calibration", "NE - FP32, 1e-4", "95% interval"):
        table.add_column(name, justify="right")
    for row in results.numerics:
        if row.task != results.task:
            continue
        gap = row.ne_difference
        difference = (
            ("", "")
            if gap is None
            else (f"{gap.estimate * 1e4:+.2f}", f"{gap.low * 1e4:+.2f} .. {gap.high * 1e4:+.2f}")
        )
        table.add_row(row.numerics, *_quality(row.quality), *difference)
    for name, quality in results.baselines.items():
        table.add_row(f"({name})", *_quality(quality), "", "")
    if results.floor_ne is not None:
        table.add_row("(the generator itself)", f"{results.floor_ne:.4f}", "", "", "", "")
    return table


def _speed(results: Results) -> Table:
    table = Table(title="Forward pass, times as fast as torch FP32 (median of rounds)", title_justify="left")
    table.add_column("")
    sizes = sorted({row.batch_size for row in results.speed})
    for size in sizes:
        table.add_column(f"batch {size}", justify="right")
    for name in dict.fromkeys(row.contestant for row in results.speed):
        cells = {
            row.batch_size: f"{row.ratio:.2f}  ({row.p50_us:,.0f} us)"
            for row in results.speed
            if row.contestant == name
        }
        table.add_row(name, *(cells.get(size, "") for size in sizes))
    return table


def _quality(quality: Quality) -> tuple[str, str, str]:
    values = (quality.ne, quality.auc, quality.calibration)
    ne, auc, calibration = ("-" if value is None else f"{value:.4f}" for value in values)
    return ne, auc, calibration
