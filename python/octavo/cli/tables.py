"""A run's results in tables."""

from __future__ import annotations

import math

from rich.console import Console
from rich.table import Table

from octavo.evaluation import Interval, Quality
from octavo.report import Results
from octavo.training import Evaluation


def print_results(console: Console, results: Results) -> None:
    """Progressive quality, each numerics' quality, speed."""
    if results.progressive:
        console.print(_progressive(results))
    if results.epochs:
        console.print(_epochs(results))
    for name in ("throughput", "wall time", "peak memory"):
        if name in results.training:
            console.print(f"{name}: {results.training[name]}", highlight=False, soft_wrap=True)
    if results.heldout is None:
        return
    if len(results.slices) > 1:
        console.print(_slices(results))
    console.print(_numerics(results))
    console.print(_speed(results))


def _progressive(results: Results) -> Table:
    table = Table(title=f"Predicted before trained on, task {results.task}", title_justify="left")
    for name in ("events", "NE", "AUC", "calibration"):
        table.add_column(name, justify="right")
    points = [p for p in results.progressive if p.task == results.task and p.domain is None]
    step = max(1, len(points) // 8)
    for point in points[step - 1 :: step]:
        table.add_row(f"{point.position:,}", *_quality(point.quality))
    return table


def print_evaluation(console: Console, found: Evaluation) -> None:
    """Every head and domain: metrics with intervals, and differences where there is another run."""
    title = f"{found.run_id}, step {found.step:,}, events {found.start:,} to {found.stop:,} of {found.log}"
    if found.against is not None:
        title += f"; second lines: minus {found.against}"
    table = Table(title=title, title_justify="left")
    for name in ("task", "domain", "events", "NE", "AUC", "GAUC", "calibration"):
        table.add_column(name, justify="left" if name == "task" else "right")
    for row in found.rows:
        domain = "all" if row.domain is None else str(row.domain)
        table.add_row(row.head, domain, f"{row.events:,}", *(_interval(row.metrics[name]) for name in found.metrics))
        if row.differences is not None:
            table.add_row("", "", "", *(_interval(row.differences[name], True) for name in found.metrics))
    console.print(table)
    console.print(f"95% intervals over {found.clusters}, {found.resamples} resamples", highlight=False)


def _interval(value: Interval, signed: bool = False) -> str:
    sign = "+" if signed else ""
    if math.isnan(value.estimate):
        return "-"
    if math.isnan(value.low):
        return f"{value.estimate:{sign}.4f}"
    return f"{value.estimate:{sign}.4f} ({value.low:{sign}.4f} .. {value.high:{sign}.4f})"


def _epochs(results: Results) -> Table:
    table = Table(title="Validation slice after each epoch", title_justify="left")
    for name in ("epoch", "task", "loss", "NE", "AUC", "calibration", ""):
        table.add_column(name, justify="left" if name in ("task", "") else "right")
    for row in results.epochs:
        loss = "-" if row.loss is None else f"{row.loss:.4f}"
        table.add_row(str(row.epoch), row.task, loss, *_quality(row.quality), "best so far" if row.best else "")
    return table


def _slices(results: Results) -> Table:
    table = Table(title="Held-out events by task and domain, FP32", title_justify="left")
    for name in ("task", "domain", "events", "NE", "AUC", "calibration", "GAUC"):
        table.add_column(name, justify="left" if name == "task" else "right")
    for row in results.slices:
        gauc = "-" if row.quality.gauc is None else f"{row.quality.gauc:.4f}"
        domain = "all" if row.domain is None else str(row.domain)
        table.add_row(row.task, domain, f"{row.quality.events:,}", *_quality(row.quality), gauc)
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
