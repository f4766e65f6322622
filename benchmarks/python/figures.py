"""The documentation's figures out of ``benchmarks/results``: ``figures.py`` draws them anew into ``docs/figures``.

Each names its results' commit in its metadata; a test compares, so a figure is never older than its numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from tables import ROOT, lines

from octavo.report.plots import ACCENT, MUTED, STYLE, WARM

FOLDER = ROOT / "docs" / "figures"
COLOURS = {"dlrm": ACCENT, "dcnv2": WARM, "wukong": "#2a9d78"}


def bayes_gap() -> Figure:
    """AUC that a model stays behind the true probabilities, by events trained on."""
    rows = [line for line in lines("bayes_gap") if line.get("op") == "bayes_gap"]
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axis = figure.subplots()
    axis.axhline(0.01, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label="gate")
    for name in dict.fromkeys(row["entry"] for row in rows):
        mine = [row for row in rows if row["entry"] == name]
        x, y = [row["shape"]["events"] for row in mine], [row["figure"] for row in mine]
        below, above = [r["figure"] - r["low"] for r in mine], [r["high"] - r["figure"] for r in mine]
        axis.errorbar(x, y, yerr=[below, above], fmt="o-", color=COLOURS[name], markersize=4, linewidth=1.6,
                      elinewidth=1.2, label=name)  # fmt: skip
    axis.set(xscale="log", yscale="log", xlabel="impressions of one streaming pass", ylabel="AUC behind the truth")
    axis.set_xticks(sorted({row["shape"]["events"] for row in rows}))
    axis.xaxis.set_major_formatter(lambda value, _: f"{value / 1e6:g} M")
    axis.set_yticks([0.005, 0.01, 0.02])
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.minorticks_off()
    axis.set_title("AdsWorld reference: what each model leaves, with 95% intervals")
    axis.legend()
    return figure


FIGURES: dict[str, Callable[[], Figure]] = {"bayes_gap": bayes_gap}


def draw(name: str) -> Path:
    """Write ``docs/figures/<name>.svg``."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{name}.svg"
    with mpl.rc_context(STYLE):
        made = {"Date": None, "Description": f"results of commit {lines(name)[0]['commit']}"}
        FIGURES[name]().savefig(path, format="svg", metadata=made)
    return path


if __name__ == "__main__":
    for figure_name in FIGURES:
        print(draw(figure_name))
