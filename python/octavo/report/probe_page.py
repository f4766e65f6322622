"""The Probe's page: one self-contained file with the map of sites, the evidence, the plan and its reasons."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from octavo._files import write_atomically
from octavo.loka import Estimate, Finding, Verdict, verdicts
from octavo.loka.findings import error_of
from octavo.loka.solving import classes_of, weighed
from octavo.ops.dispatch import PlanEntry, Requirement
from octavo.report import plots, probe_plots
from octavo.report.page import template_of
from octavo.report.probe_plots import Pair, Point
from octavo.report.probe_results import InputShape, ProbeResults

HIGH_PRECISION = "fp32"
SHOWN_INPUTS = 24
ERROR_NAMES = {
    "rel_l1": "Relative L1",
    "mere": "MERE",
    "signal_rel": "Signal-relative error",
    "post_norm": "Error after the next norm",
}


@dataclass(frozen=True)
class Cell:
    """One class at one site and direction: ``state`` is ``chosen`` or that of its verdict."""

    numerics: str
    state: str
    text: str
    reason: str


def render_probe(results: ProbeResults) -> str:
    """The page as HTML text without external resources."""
    directions = list(dict.fromkeys(entry.direction for entry in results.plan))
    grad_input = classes_of(results.plan, "grad_input")
    judged = {
        (entry.site, entry.direction): verdicts(
            weighed(results.report, entry.site, entry.direction, grad_input), results.requirement, results.min_speedup
        )
        for entry in results.plan
    }
    panels = {d: _points(results, judged, d) for d in directions}
    pairs = {ERROR_NAMES[name]: _pairs(results, name) for name in _compared(results)}
    shown = sorted(results.inputs, key=_oddness, reverse=True)[:SHOWN_INPUTS]
    order = [site.path for site in results.report.sites]
    timed = {direction: points for direction, points in panels.items() if points}
    label = "error / what is allowed" if results.requirement.demands() else "relative L1 error"
    figures = {
        "map": probe_plots.site_map(timed, results.min_speedup, label) if timed else None,
        "predicted": probe_plots.predicted_measured(pairs) if any(pairs.values()) else None,
        "inputs": probe_plots.input_shapes(sorted(shown, key=lambda s: order.index(s.site))) if shown else None,
        "speed": plots.speed(results.speed) if results.speed else None,
    }
    entries = list(results.plan)
    classes = sorted({e.numerics for e in entries if e.numerics != HIGH_PRECISION})
    return template_of("probe.html.j2").render(
        r=results, figures=figures, colours=plots.COLOURS, titles=probe_plots.TITLES, directions=directions,
        cells={key: _cells(found, results.plan.entries, key) for key, found in judged.items()}, classes=classes,
        low=sum(e.numerics != HIGH_PRECISION for e in entries), ratios=_ratios(pairs),
        demands=demands(results.requirement), hidden=len(results.inputs) - len(shown),
    )  # fmt: skip


def write_probe_report(results: ProbeResults, path: str | Path) -> Path:
    """Write the page to ``path``, atomically. Returns the path."""
    write_atomically(path, render_probe(results))
    return Path(path)


def demands(requirement: Requirement) -> str:
    """A requirement in words."""
    words = []
    for name, value in requirement.demands().items():
        bound, _, error = name.partition("_")
        if bound in ("max", "min"):
            words.append(f"{error} {'at most' if bound == 'max' else 'at least'} {value:g}")
        else:
            words.append(name)
    return ", ".join(words) or "nothing"


def _points(results: ProbeResults, judged: Mapping[tuple[str, str], Sequence[Verdict]], direction: str) -> list[Point]:
    chosen = {entry.site: entry.numerics for entry in results.plan if entry.direction == direction}
    points = []
    for (site, its_direction), found in judged.items():
        for verdict in found if its_direction == direction else ():
            usage = _usage(verdict.finding, results.requirement)
            if usage is None or math.isnan(verdict.finding.speedup) or not usage.value > 0:
                continue
            numerics = verdict.finding.numerics
            word = "chosen" if chosen[site] == numerics else "admitted" if verdict.admitted else "refused"
            points.append(Point(site, numerics, verdict.finding.speedup, usage, word))
    return points


def _usage(finding: Finding, requirement: Requirement) -> Estimate | None:
    """How much of its limit the most demanding error takes; without demands the relative L1 error itself."""
    found = []
    for name, bound in requirement.demands().items():
        side, estimate = name.partition("_")[0], finding.errors.get(error_of(name, finding.direction))
        if side not in ("max", "min") or estimate is None or not bound > 0:
            continue
        if side == "max":
            found.append(Estimate(estimate.value / bound, estimate.low / bound, estimate.high / bound))
        else:
            value, low, high = (10 ** ((bound - db) / 20) for db in (estimate.value, estimate.high, estimate.low))
            found.append(Estimate(value, low, high))
    if not found and not requirement.demands():
        return finding.errors.get("rel_l1")
    return max(found, key=lambda usage: usage.high, default=None)


def _compared(results: ProbeResults) -> list[str]:
    """Up to two errors: those demanded first."""
    demanded = [name.partition("_")[2] for name in results.requirement.demands()]
    names = dict.fromkeys([*(n for n in demanded if n in ERROR_NAMES), "signal_rel", "post_norm", "rel_l1"])
    return list(names)[:2]


def _pairs(results: ProbeResults, error: str) -> list[Pair]:
    known = {site.path for site in results.report.sites}
    pairs = []
    for row in results.measured:
        if row.site not in known or error not in row.errors:
            continue
        for finding in results.report.at(row.site):
            if finding.numerics == row.numerics and error in finding.errors:
                pairs.append(Pair(row.site, row.numerics, finding.errors[error], row.errors[error]))
    return pairs


def _ratios(panels: Mapping[str, Sequence[Pair]]) -> dict[str, float]:
    """Median of |ln(predicted / measured)| by error, where there is anything to compare."""
    found = {}
    for name, pairs in panels.items():
        logs = [
            abs(math.log(p.predicted.value / p.measured[0])) for p in pairs if p.predicted.value > 0 < p.measured[0]
        ]
        if logs:
            found[name] = statistics.median(logs)
    return found


def _cells(found: Sequence[Verdict], entries: Sequence[PlanEntry], key: tuple[str, str]) -> list[Cell]:
    entry = next(e for e in entries if (e.site, e.direction) == key)
    cells = []
    for verdict in found:
        finding = verdict.finding
        speed = "" if math.isnan(finding.speedup) else f" {finding.speedup:.2f}x"
        state = "chosen" if finding.numerics == entry.numerics else verdict.state
        cells.append(Cell(finding.numerics, state, f"{finding.numerics}{speed}", verdict.reason))
    return cells


def _oddness(shape: InputShape) -> float:
    """How far from centred normal rows: what is worth looking at first."""
    offset = abs(shape.mean) / shape.std if shape.std > 0 else math.inf
    return max(offset, shape.crest / 4, shape.spread / 4)
