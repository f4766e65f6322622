"""The figures of a fit of windows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from octavo.report.plots import ACCENT, INK, MUTED, STYLE, WARM, line, uri
from octavo.report.windows_results import LawCurve, Rival, WindowCalibration

COLUMNS = 4
_HOURS = (1 / 60, 1 / 6, 1, 3, 6, 12, 24, 48, 72, 168, 336, 720, 1440, 2160, 4320, 8760)


def laws(curves: Sequence[LawCurve]) -> str:
    """A panel for each group: alpha over log time, and the share of matured outcomes."""
    with mpl.rc_context(STYLE):
        rows = math.ceil(len(curves) / COLUMNS)
        figure = Figure(figsize=(10.2, 0.4 + 2.1 * rows), layout="constrained")
        axes = figure.subplots(rows, COLUMNS, squeeze=False, sharey=True)
        for number, axis in enumerate(axes.flat):
            if number >= len(curves):
                axis.set_visible(False)
                continue
            curve = curves[number]
            axis.set_xscale("log")
            axis.plot(curve.hours, curve.alpha, color=ACCENT, linewidth=1.6)
            axis.plot([h for h, _ in curve.seen], [s for _, s in curve.seen], "o", color=WARM, markersize=3.2)
            span = math.log(curve.hours[-1] / curve.hours[0]) or 1.0
            low, high = curve.hours[0], curve.hours[-1]
            even = [math.log(h / low) / span for h in (low, high)]
            axis.plot([low, high], even, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
            axis.set_title(_short(curve.name))
            _ticks(axis, low, high)
        handles = [
            line(ACCENT, "the law"), line(WARM, "matured outcomes", "none", marker="o"),
            line(MUTED, "even in log time", (0, (4, 3))),
        ]  # fmt: skip
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
        return uri(figure)


def reliability(found: Sequence[WindowCalibration]) -> str:
    """A reliability diagram for each window: bins of equal count with the labels' 95% intervals."""
    with mpl.rc_context(STYLE):
        columns = min(COLUMNS, max(len(found), 1))
        rows = math.ceil(len(found) / columns)
        figure = Figure(figsize=(10.2, 0.3 + 2.55 * rows * (4 / columns) ** 0.5), layout="constrained")
        for axis, one in zip(figure.subplots(rows, columns, squeeze=False).flat, found, strict=False):
            top = min(1.0, 1.08 * max([b.high for b in one.bins] + [b.predicted for b in one.bins] + [1e-6]))
            axis.plot([0, top], [0, top], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
            x, y = [b.predicted for b in one.bins], [b.observed for b in one.bins]
            errors = [[b.observed - b.low for b in one.bins], [b.high - b.observed for b in one.bins]]
            colour = INK if one.own else ACCENT
            axis.errorbar(x, y, yerr=errors, fmt="o", color=colour, markersize=4, elinewidth=1.1, capsize=0)
            axis.set(xlim=(0, top), ylim=(0, top), xlabel="mean prediction", ylabel="share that converted")
            axis.set_title(f"within {one.window}" + (" (a model's own)" if one.own else ""))
        for axis in figure.axes[len(found) :]:
            axis.set_visible(False)
        return uri(figure)


def by_group(found: Sequence[WindowCalibration]) -> str:
    """sum(p) / sum(y) of each group, a panel for each window, with 95% intervals over days."""
    with mpl.rc_context(STYLE):
        names = list(dict.fromkeys(name for one in found for name, _, _ in one.groups))
        figure = Figure(figsize=(10.2, 1.1 + 0.25 * len(names)), layout="constrained")
        axes = figure.subplots(1, len(found), squeeze=False, sharey=True)[0]
        for axis, one in zip(axes, found, strict=True):
            axis.axvspan(0.9, 1.1, color=ACCENT, alpha=0.07, linewidth=0)
            axis.axvline(1, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
            for name, _, ratio in one.groups:
                place = names.index(name)
                low, high = max(ratio.low, 0.3), min(ratio.high, 2.0)
                if low <= high:
                    axis.plot([low, high], [place, place], color=ACCENT, linewidth=1.8, solid_capstyle="round")
                axis.plot([min(max(ratio.estimate, 0.3), 2.0)], [place], "o", color=ACCENT, markersize=4.5)
            axis.set_xlim(0.4, 1.8)
            axis.set_xticks((0.6, 0.8, 1.0, 1.2, 1.4, 1.6))
            axis.set_title(f"within {one.window}")
            axis.set_xlabel("sum(p) / sum(y)")
            axis.grid(axis="y", visible=False)
        axes[0].set_yticks(range(len(names)), [_short(name) for name in names], color=INK)
        axes[0].set_ylim(len(names) - 0.4, -0.6)
        return uri(figure)


# label, attribute, band, limits, ticks
_PANELS = (
    ("entropy less the retrained, %", "gap", (-0.3, 0.3), (-2.0, 5.0), (-1, 0, 1, 2, 3, 4)),
    ("sum(p) / sum(p retrained)", "ratio", (0.97, 1.03), (0.75, 1.35), (0.8, 0.9, 1.0, 1.1, 1.2, 1.3)),
)


def rivals(found: Sequence[Rival]) -> str:
    """Every method against the retrained model: a column for each window, a row for entropy and one for sums."""
    with mpl.rc_context(STYLE):
        windows = list(dict.fromkeys(one.window for one in found))
        names = list(dict.fromkeys(one.method for one in found))
        figure = Figure(figsize=(10.2, 1.8 + 0.4 * len(names)), layout="constrained")
        axes = figure.subplots(len(_PANELS), len(windows), squeeze=False, sharey=True)
        for row, (label, figures, band, (left, right), ticks) in zip(axes, _PANELS, strict=True):
            for axis, window in zip(row, windows, strict=True):
                axis.axvspan(*band, color=ACCENT, alpha=0.07, linewidth=0)
                axis.axvline(sum(band) / 2, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
                for one in (one for one in found if one.window == window):
                    place, value = names.index(one.method), getattr(one, figures)
                    colour = WARM if one.method == "personalized" else ACCENT
                    low, high = max(value.low, left), min(value.high, right)
                    if low <= high:
                        axis.plot([low, high], [place, place], color=colour, linewidth=1.8, solid_capstyle="round")
                    marker = "<" if value.estimate < left else ">" if value.estimate > right else "o"
                    at = min(max(value.estimate, left), right)
                    axis.plot([at], [place], marker, color=colour, markersize=4.5, clip_on=False)
                axis.set_xlim(left, right)
                axis.set_xticks(ticks)
                axis.set_xlabel(label)
                axis.grid(axis="y", visible=False)
        for axis, window in zip(axes[0], windows, strict=True):
            axis.set_title(f"within {window}")
        for axis in axes[:, 0]:
            axis.set_yticks(range(len(names)), names, color=INK)
            axis.set_ylim(len(names) - 0.4, -0.6)
        return uri(figure)


def _ticks(axis: Axes, low: float, high: float) -> None:
    inside = [h for h in _HOURS if low * 0.99 <= h <= high * 1.01]
    if len(inside) > 5:
        inside = inside[:: math.ceil(len(inside) / 5)]
    axis.set_xticks(inside, [_said(h) for h in inside])
    axis.minorticks_off()


def _said(hours: float) -> str:
    if hours < 1:
        return f"{round(hours * 60)} min"
    return f"{hours:g} h" if hours < 24 else f"{hours / 24:g} d"


def _short(name: str) -> str:
    return name if len(name) <= 26 else name[:25] + "…"
