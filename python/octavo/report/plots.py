"""The report's figures as SVG data URIs: no window, no global matplotlib state, no external resources."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import matplotlib as mpl
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from octavo.evaluation import CalibrationBin, ProgressPoint, Quality
from octavo.report.results import NumericsRow, SpeedRow

INK, MUTED, GRID = "#1f2733", "#6b7686", "#e4e8ee"
ACCENT, WARM = "#2b65d9", "#d9792b"
COLOURS = {
    "torch FP32": "#9aa3af",
    "torch BF16": "#c3a6d8",
    "FP32": "#4a5568",
    "planned": ACCENT,
    "e4m3_row": WARM,
    "int8_dynamic": "#2a9d78",
    "bf16": "#8a5cc2",
    "e4m3_weight_only": "#c2a12b",
}
STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 9.0,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "svg.hashsalt": "octavo",
    "svg.fonttype": "path",
}


def progressive(points: Sequence[ProgressPoint], heldout: Quality | None, end_ms: int, floor: float | None) -> str:
    """NE, AUC and calibration over event time; the held-out stretch is shaded with its own value."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10.2, 3.1), layout="constrained")
        axes = figure.subplots(1, 3)
        times = [datetime.fromtimestamp(p.time_ms / 1000, UTC) for p in points]
        start = times[-1] if times else datetime.fromtimestamp(end_ms / 1000, UTC)
        end = datetime.fromtimestamp(end_ms / 1000, UTC)
        panels = [
            (axes[0], "NE (lower is better)", "normalized entropy", [p.quality.ne for p in points], 1.0),
            (axes[1], "AUC (higher is better)", "AUC", [p.quality.auc for p in points], None),
            (axes[2], "Calibration (1 is perfect)", "sum(p) / sum(y)", [p.quality.calibration for p in points], 1.0),
        ]
        held = (None, None, None) if heldout is None else (heldout.ne, heldout.auc, heldout.calibration)
        for (axis, title, label, values, reference), held_value in zip(panels, held, strict=True):
            known = [(t, v) for t, v in zip(times, values, strict=True) if v is not None]
            if reference is not None:
                axis.axhline(reference, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
            style = "o-" if len(known) <= 40 else "-"
            times_known, values_known = [t for t, _ in known], [v for _, v in known]
            axis.plot(times_known, values_known, style, color=ACCENT, linewidth=1.6, markersize=3)
            if held_value is not None and end > start:
                axis.axvspan(start, end, color=WARM, alpha=0.08, linewidth=0)
                axis.plot([start, end], [held_value, held_value], color=WARM, linewidth=2.2, solid_capstyle="butt")
            axis.set_title(title)
            axis.set_ylabel(label)
            axis.set_xlabel("event time (UTC)")
            locator = AutoDateLocator(minticks=3, maxticks=7)  # fewer: nothing fits spans just below three hours
            axis.xaxis.set_major_locator(locator)
            axis.xaxis.set_major_formatter(ConciseDateFormatter(locator))
            axis.margins(y=0.12)
        if floor is not None:
            axes[0].axhline(floor, color="#2a9d78", linewidth=1.4, linestyle=(0, (1, 1.5)))
        handles = [line(ACCENT, "predicted before training on it")]
        if heldout is not None:
            handles.append(line(WARM, "held out, never trained on"))
        if floor is not None:
            handles.append(line("#2a9d78", "floor: the generator's own probabilities", (0, (1, 1.5))))
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
        return uri(figure)


def by_domain(points: Sequence[ProgressPoint]) -> str:
    """A row per task: NE, AUC, GAUC and calibration over event time, of all events (dark) and of each domain; the
    domains with most events where there are more than ``SHOWN_DOMAINS``."""
    tasks = list(dict.fromkeys(point.task for point in points))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10.2, 0.5 + 2.25 * len(tasks)), layout="constrained")
        axes = figure.subplots(len(tasks), 4, squeeze=False)
        domains = shown_domains(points)
        for task, row in zip(tasks, axes, strict=True):
            panels = [
                ("ne", "NE", 1.0),
                ("auc", "AUC", None),
                ("gauc", "GAUC", None),
                ("calibration", "Calibration", 1.0),
            ]
            for axis, (name, title, reference) in zip(row, panels, strict=True):
                if reference is not None:
                    axis.axhline(reference, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
                for number, domain in enumerate([*domains, None]):
                    mine = [p for p in points if p.task == task and p.domain == domain]
                    found = [(datetime.fromtimestamp(p.time_ms / 1000, UTC), getattr(p.quality, name)) for p in mine]
                    known = [(time, value) for time, value in found if value is not None]
                    colour = INK if domain is None else _DOMAIN_COLOURS[number]
                    width, style = (1.8, "-") if domain is None else (1.1, "-")
                    if len(known) == 1:
                        style = "o"
                    axis.plot([t for t, _ in known], [v for _, v in known], style, color=colour, linewidth=width,
                              markersize=3)  # fmt: skip
                axis.set_title(f"{title}, {task}")
                locator = AutoDateLocator(minticks=2, maxticks=4)
                axis.xaxis.set_major_locator(locator)
                axis.xaxis.set_major_formatter(ConciseDateFormatter(locator))
                axis.margins(y=0.12)
        handles = [line(INK, "all events")]
        handles += [line(_DOMAIN_COLOURS[number], f"domain {domain}") for number, domain in enumerate(domains)]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
        return uri(figure)


SHOWN_DOMAINS = 6
_DOMAIN_COLOURS = (ACCENT, WARM, "#2a9d78", "#8a5cc2", "#c2a12b", "#c24a6e")


def shown_domains(points: Sequence[ProgressPoint]) -> list[int]:
    """The domains with most events, in order of their number."""
    events: dict[int, int] = {}
    for point in points:
        if point.domain is not None:
            events[point.domain] = events.get(point.domain, 0) + point.quality.events
    return sorted(sorted(events, key=lambda domain: (-events[domain], domain))[:SHOWN_DOMAINS])


def calibration(bins: Sequence[CalibrationBin]) -> str:
    """Reliability diagram over bins of equal count, with the labels' 95% intervals."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.9, 4.0), layout="constrained")
        axis = figure.subplots()
        top = min(1.0, 1.08 * max([b.high for b in bins] + [b.predicted for b in bins]))
        axis.plot([0, top], [0, top], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        x, y = [b.predicted for b in bins], [b.observed for b in bins]
        below, above = [b.observed - b.low for b in bins], [b.high - b.observed for b in bins]
        axis.errorbar(x, y, yerr=[below, above], fmt="o", color=ACCENT, markersize=4.5, elinewidth=1.2, capsize=0)
        axis.set(xlim=(0, top), ylim=(0, top), xlabel="mean prediction of the bin", ylabel="share of positive labels")
        axis.set_title("Held-out calibration, FP32")
        return uri(figure)


def ne_differences(rows: Sequence[NumericsRow]) -> str:
    """Forest plot: NE of each numerics minus NE of FP32 in units of 1e-4, with 95% intervals."""
    with mpl.rc_context(STYLE):
        shown = [row for row in rows if row.ne_difference is not None]
        figure = Figure(figsize=(4.9, 1.2 + 0.48 * len(shown)), layout="constrained")
        axis = figure.subplots()
        axis.axvline(0, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        for place, row in enumerate(shown):
            difference = row.ne_difference
            assert difference is not None
            low, mid, high = (1e4 * v for v in (difference.low, difference.estimate, difference.high))
            colour = COLOURS.get(row.numerics, INK)
            axis.plot([low, high], [place, place], color=colour, linewidth=2.2, solid_capstyle="round")
            axis.plot([mid], [place], "o", color=colour, markersize=6)
        axis.set_yticks(range(len(shown)), [row.numerics for row in shown], color=INK)
        axis.set_ylim(len(shown) - 0.4, -0.6)
        axis.grid(axis="y", visible=False)
        axis.set_xlabel("NE minus NE of FP32, in 1e-4 (right of 0 is worse)")
        axis.set_title("Cost in quality")
        return uri(figure)


def speed(rows: Sequence[SpeedRow]) -> str:
    """Speed against torch's eager FP32 model per batch size: medians, with bars from p10 to p90 of the rounds."""
    with mpl.rc_context(STYLE):
        sizes = sorted({row.batch_size for row in rows})
        names = list(dict.fromkeys(row.contestant for row in rows))
        figure = Figure(figsize=(10.2, 3.3), layout="constrained")
        axis = figure.subplots()
        width = 0.82 / len(names)
        for index, name in enumerate(names):
            mine = {row.batch_size: row for row in rows if row.contestant == name}
            places = [sizes.index(size) - 0.41 + (index + 0.5) * width for size in sizes if size in mine]
            shown = [mine[size] for size in sizes if size in mine]
            axis.bar(places, [r.ratio for r in shown], 0.88 * width, color=COLOURS.get(name, INK), label=name)
            spread = [[r.ratio - r.ratio_p10 for r in shown], [r.ratio_p90 - r.ratio for r in shown]]
            axis.errorbar(places, [r.ratio for r in shown], yerr=spread, fmt="none", ecolor=INK, elinewidth=0.9)
            for place, row in zip(places, shown, strict=True):
                text = f"{row.ratio:.2f}"
                axis.annotate(
                    text, (place, row.ratio_p90), (0, 2), textcoords="offset points", ha="center", fontsize=7.5
                )
        axis.axhline(1, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axis.set_xticks(range(len(sizes)), [f"batch of {size:,}" for size in sizes], color=INK)
        axis.grid(axis="x", visible=False)
        axis.set_ylim(0, 1.12 * max(r.ratio_p90 for r in rows))
        axis.set_ylabel("times as fast as torch FP32 eager")
        axis.set_title("Forward pass of the whole model")
        figure.legend(loc="outside lower center", ncols=len(names))
        return uri(figure)


def line(colour: str, label: str, linestyle: object = "-", **rest: Any) -> mpl.lines.Line2D:
    """A legend's entry."""
    return mpl.lines.Line2D([], [], **{"color": colour, "linewidth": 2, "label": label, "linestyle": linestyle, **rest})


def uri(figure: Figure) -> str:
    """The figure as a data URI."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
