"""Figures of the Probe's page: the map of sites, predicted against measured errors, what layers see."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from octavo.loka import Estimate
from octavo.report.plots import ACCENT, COLOURS, GRID, INK, MUTED, STYLE, WARM, line, uri
from octavo.report.probe_results import InputShape

MARKS = {"bf16": "s", "e4m3_row": "D", "e4m3_weight_only": "^", "int8_dynamic": "o"}
GOOD = "#2a9d78"
TITLES = {"forward": "Forward", "grad_input": "Gradient of the input", "grad_weight": "Gradient of the weight"}
SLOWEST = 0.25  # what is slower stands at the edge
NAMED = 7  # points of a panel that get their site's name


@dataclass(frozen=True)
class Point:
    """One class at one site and direction. ``usage``: how much of the requirement's limit its error takes, 1 = all,
    with its interval; ``verdict``: ``chosen``, ``admitted`` or ``refused``."""

    site: str
    numerics: str
    speedup: float
    usage: Estimate
    verdict: str


@dataclass(frozen=True)
class Pair:
    """A predicted error with its interval, and what was measured: median, least, largest."""

    site: str
    numerics: str
    predicted: Estimate
    measured: tuple[float, float, float]


def site_map(panels: Mapping[str, Sequence[Point]], min_speedup: float, label: str) -> str:
    """Safety against speed, a panel per direction: in the green corner is what the plan may choose from."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10.2, 4.5), layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        every = [point for points in panels.values() for point in points]
        speeds = [p.speedup for p in every] + [min_speedup, 1.0]
        ends = [v for p in every for v in (p.usage.low, p.usage.high) if 0 < v < math.inf] + [1.0]
        left, right = max(min(speeds) / 1.15, SLOWEST), max(speeds) * 1.2
        bottom, top = max(min(ends) / 1.6, 1e-4), max(ends) * 1.8
        for axis, (direction, points) in zip(axes, panels.items(), strict=True):
            axis.set(xscale="log", yscale="log", xlim=(left, right), ylim=(bottom, top))
            axis.fill_between([min_speedup, right], bottom, 1, color=GOOD, alpha=0.09, linewidth=0)
            axis.axhline(1, color=WARM, linewidth=1.1, linestyle=(0, (4, 3)))
            axis.axvline(min_speedup, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
            for point in sorted(points, key=lambda p: p.verdict == "chosen"):
                _mark(axis, point, bottom, top)
            _name(axis, points)
            axis.set_title(TITLES[direction])
            axis.set_xlabel("times as fast as high precision")
            _plain_ticks(axis, left, right)
        axes[0].set_ylabel(label)
        _corner(axes[0], min_speedup, bottom)
        used = [name for name in MARKS if any(p.numerics == name for p in every)]
        handles = [line(COLOURS[name], name, marker=MARKS[name], linestyle="") for name in used]
        handles += [line(INK, "chosen", marker="o", linestyle="", markersize=9),
                    line(INK, "not chosen", marker="o", linestyle="", alpha=0.35, markersize=5)]  # fmt: skip
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
        return uri(figure)


def _mark(axis: Axes, point: Point, bottom: float, top: float) -> None:
    colour, is_chosen = COLOURS.get(point.numerics, INK), point.verdict == "chosen"
    middle, low, high = (min(max(v, bottom), top) for v in (point.usage.value, point.usage.low, point.usage.high))
    alpha = 1.0 if is_chosen else 0.4
    speedup = max(point.speedup, SLOWEST * 1.04)
    axis.plot([speedup] * 2, [low, high], color=colour, linewidth=1.1, alpha=alpha)
    axis.plot(
        [speedup], [middle], MARKS.get(point.numerics, "o"), color=colour, alpha=alpha,
        markersize=8.5 if is_chosen else 4.5, markeredgecolor="white" if is_chosen else colour, markeredgewidth=0.9,
    )  # fmt: skip


def _name(axis: Axes, points: Sequence[Point]) -> None:
    """Of what the plan chose, the closest to the limit; of what it refused for its errors, the fastest."""
    chosen = sorted((p for p in points if p.verdict == "chosen"), key=lambda p: -p.usage.high)
    unsafe = sorted((p for p in points if p.usage.high > 1), key=lambda p: -p.speedup)
    shown = [*chosen[: NAMED - 3], *unsafe[:3]]
    placed: list[tuple[float, float]] = []
    for point in shown:
        x, y = math.log10(max(point.speedup, SLOWEST)), math.log10(max(point.usage.value, 1e-12))
        if any(abs(x - a) < 0.12 and abs(y - b) < 0.07 for a, b in placed):
            continue
        placed.append((x, y))
        axis.annotate(point.site, (max(point.speedup, SLOWEST), point.usage.value), (6, 3),
                      textcoords="offset points", fontsize=7.5, annotation_clip=True,
                      color=INK if point.verdict == "chosen" else MUTED)  # fmt: skip


def _corner(axis: Axes, min_speedup: float, bottom: float) -> None:
    axis.annotate("safe and faster", (min_speedup, bottom), (5, 5), textcoords="offset points", fontsize=8, color=GOOD,
                  fontweight="bold")  # fmt: skip
    axis.annotate("limit", (axis.get_xlim()[0], 1), (4, 3), textcoords="offset points", fontsize=8, color=WARM)


def _plain_ticks(axis: Axes, left: float, right: float) -> None:
    steps = [0.25, 0.5, 1, 2, 4, 8, 16, 32, 64]
    shown = [v for v in steps if left <= v <= right]
    axis.set_xticks(shown, [f"{v:g}x" for v in shown])
    axis.minorticks_off()


def predicted_measured(panels: Mapping[str, Sequence[Pair]]) -> str:
    """Predicted errors against those on held-out inputs, a panel per error; on the dashed line they are equal."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10.2, 4.2), layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for axis, (name, pairs) in zip(axes, panels.items(), strict=True):
            shown = [p for p in pairs if p.predicted.value > 0 and p.measured[0] > 0]
            values = [v for p in shown for v in (p.predicted.value, *p.measured) if v > 0] or [1.0]
            low, high = min(values) / 1.4, max(values) * 1.4
            axis.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), aspect="equal")
            axis.plot([low, high], [low, high], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
            axis.fill_between([low, high], [low / 1.105, high / 1.105], [low * 1.105, high * 1.105], color=GRID,
                              linewidth=0)  # fmt: skip
            for pair in shown:
                colour = COLOURS.get(pair.numerics, INK)
                middle, least, most = pair.measured
                axis.plot([pair.predicted.low, pair.predicted.high], [middle] * 2, color=colour, linewidth=1, alpha=0.6)
                axis.plot([pair.predicted.value] * 2, [least, most], color=colour, linewidth=1, alpha=0.6)
                axis.plot([pair.predicted.value], [middle], MARKS.get(pair.numerics, "o"), color=colour, markersize=5)
            axis.set_title(name)
            axis.set_xlabel("predicted by Probe")
            axis.set_ylabel("measured on held-out batches")
        used = [n for n in MARKS if any(p.numerics == n for pairs in panels.values() for p in pairs)]
        handles = [line(COLOURS[n], n, marker=MARKS[n], linestyle="") for n in used]
        handles.append(line(GRID, "within 10%", linewidth=7))
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
        return uri(figure)


def input_shapes(shapes: Sequence[InputShape]) -> str:
    """A small panel per site: the share of elements by size, and the normal curve of the same mean and variance."""
    columns = 4
    rows = -(-len(shapes) // columns)
    with mpl.rc_context({**STYLE, "axes.titlesize": 8.5, "font.size": 8.0}):
        figure = Figure(figsize=(10.2, 0.4 + 1.75 * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
        for axis, shape in zip(axes, shapes, strict=False):
            bins, reach = len(shape.shares), shape.reach
            width = 2 * reach / bins
            centres = [-reach + (i + 0.5) * width for i in range(bins)]
            density = [max(share / width, 1e-9) for share in shape.shares]
            axis.fill_between(centres, density, 1e-9, step="mid", color=ACCENT, alpha=0.22, linewidth=0)
            axis.step(centres, density, where="mid", color=ACCENT, linewidth=1.2)
            if shape.std > 0:
                points = [-reach + i * reach / 100 for i in range(201)]
                normal = [
                    math.exp(-0.5 * ((x - shape.mean) / shape.std) ** 2) / shape.std / math.sqrt(2 * math.pi)
                    for x in points
                ]
                axis.plot(points, normal, color=WARM, linewidth=1.1, linestyle=(0, (3, 2)))
            axis.axvline(shape.mean, color=MUTED, linewidth=0.8)
            axis.set(yscale="log", ylim=(1e-5, 12), xlim=(-reach, reach))
            axis.set_title(shape.site)
            axis.annotate(f"crest {shape.crest:.1f}\nspread {shape.spread:.1f}", (0.98, 0.95), xycoords="axes fraction",
                          ha="right", va="top", fontsize=7, color=MUTED)  # fmt: skip
        for axis in axes[len(shapes) :]:
            axis.set_visible(False)
        for axis in axes[max(0, len(shapes) - columns) : len(shapes)]:
            axis.tick_params(labelbottom=True)  # the last of each column
        handles = [line(ACCENT, "elements of the input"),
                   line(WARM, "normal, same mean and variance", (0, (3, 2))), line(MUTED, "mean")]  # fmt: skip
        figure.supylabel("density", fontsize=8.5, color=MUTED)
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
        return uri(figure)
