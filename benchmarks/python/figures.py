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


SWEEPS = {
    "lag": "days from the teacher's last event",
    "events_per_user": "student's events per user",
    "drift": "drift, times the preset's",
    "bias": "bias of the teacher's other domain, logits",
}
METHODS = {
    "one_head": ("one head", WARM),
    "ah": ("auxiliary head", ACCENT),
    "ah_beta3": ("the same, beta 3", "#2a9d78"),
    "teacher": ("the teacher as it speaks", MUTED),
}


def exfm_sweeps() -> Figure:
    """Gain of each method against one condition at a time."""
    rows = [line for line in lines("exfm_sweeps") if line.get("op") == "exfm_sweeps"]
    figure = Figure(figsize=(8.2, 6.0), layout="constrained")
    for axis, (sweep, label) in zip(figure.subplots(2, 2).flat, SWEEPS.items(), strict=True):
        axis.axhline(0.0, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        for method, (name, colour) in METHODS.items():
            mine = [row for row in rows if row["shape"]["sweep"] == sweep and row["entry"] == method]
            mine.sort(key=lambda row: row["shape"]["x"])
            x, y = [row["shape"]["x"] for row in mine], [row["figure"] for row in mine]
            ends = [[abs(row["figure"] - row[end]) for row in mine] for end in ("low", "high")]
            axis.errorbar(x, y, yerr=ends, fmt="o-", color=colour, markersize=4, linewidth=1.6, elinewidth=1.0,
                          label=name)  # fmt: skip
        if sweep == "events_per_user":
            axis.set_xscale("log")
            axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set(xlabel=label, ylabel="gain in NE, %")
    figure.axes[0].legend()
    figure.suptitle("Distillation over no distillation, 95% intervals")
    return figure


FIGURES: dict[str, Callable[[], Figure]] = {"bayes_gap": bayes_gap, "exfm_sweeps": exfm_sweeps}


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
