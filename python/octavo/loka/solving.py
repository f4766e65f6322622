"""Dispatch's decision: per site and direction the fastest class that surely meets the requirement."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from octavo.loka.findings import DIRECTIONS, Finding, Report, SiteInfo, error_of
from octavo.loka.identity import machine
from octavo.ops._types import NUMERICS, choice
from octavo.ops.dispatch import Plan, PlanEntry, Problem, Requirement, choose
from octavo.ops.dispatch.plan import M_BUCKETS
from octavo.ops.linear_backward import GRAD_INPUT, GRAD_WEIGHT

HIGH_PRECISION = "fp32"
SERVED = {"forward": NUMERICS, "grad_input": GRAD_INPUT, "grad_weight": GRAD_WEIGHT}
_PRECISION = {numerics: place for place, numerics in enumerate(NUMERICS)}
log = logging.getLogger("octavo.loka")


@dataclass(frozen=True)
class Verdict:
    """One class at one site and direction: ``state`` is ``admitted``, ``unsafe``, ``slow`` or ``unknown`` (no kernel,
    not estimated, not timed); ``reason`` says what it promises, or why it is refused."""

    finding: Finding
    state: str
    reason: str

    @property
    def admitted(self) -> bool:
        return self.state == "admitted"


def solve(
    report: Report,
    requirement: Requirement | Mapping[str, Requirement],
    min_speedup: float = 1.05,
    training: bool = False,
) -> Plan:
    """The plan that Probe's evidence supports.

    At each site and direction: of the classes whose errors meet ``requirement`` with the whole 95% interval (its worse
    end, which reasons give as ``to``) and whose speedup is at least ``min_speedup``, the one with the least time; else
    high precision, and the entry says what stood against every class. ``requirement`` may be a mapping of directions
    (``forward``, ``grad_input``, ``grad_weight``) to requirements. No norm follows a gradient or leaves
    more than signs of one or two outputs, and columns of a weight's gradient are no batch: there ``max_post_norm`` and
    ``max_signal_rel`` are demands on ``rel_l1``. A demanded error that was not estimated is not met, and no class is
    safe where rows with NaN were seen.

    ``training``: entries of all three directions, else of the forward alone; a forward's time then includes what a
    changing weight costs, packing and, where grad_input stays in FP32, reading it back. The plan depends on the report
    and, in the preferred kernels of its forward entries, on this machine's costs; a report that was timed on another
    machine gives a plan without preferred kernels and a warning in the log of ``octavo.loka``. Raises TypeError or
    ValueError that names the argument.
    """
    if not isinstance(report, Report):
        raise TypeError(f"report: expected an octavo.loka.Report, found {type(report).__name__}")
    if not (isinstance(min_speedup, int | float) and 0 < min_speedup < math.inf):
        raise ValueError(f"min_speedup: expected a number above 0, found {min_speedup!r}")
    directions = DIRECTIONS if training else DIRECTIONS[:1]
    demands = _by_direction(requirement, directions)
    is_here = report.machine == machine()
    if not is_here:
        log.warning(
            "solve: the report was timed on %s, this is %s; its speedups are taken as they are, kernels are chosen "
            "again within each class", report.machine, machine(),
        )  # fmt: skip
    entries: list[PlanEntry] = []
    for site in report.sites:
        found: dict[str, PlanEntry] = {}
        for direction in reversed(directions):  # the forward's cost depends on grad_input's class
            findings = weighed(report, site.path, direction, classes_of(found.values(), "grad_input"))
            found[direction] = _entry(report, site, direction, findings, demands[direction], min_speedup, is_here)
        entries += [found[direction] for direction in directions]
    origin = {"model": report.model, "machine": report.machine, "steps": str(report.steps),
              "min_speedup": f"{min_speedup:g}"}  # fmt: skip
    return Plan(tuple(entries), origin)


def weighed(report: Report, site: str, direction: str, grad_input: Mapping[str, str]) -> tuple[Finding, ...]:
    """A site's findings with the times that plans go by: where the site's class of grad_input is planned too, a
    forward's has what it costs a training step besides."""
    findings = report.at(site, direction)
    if direction != "forward" or site not in grad_input:
        return findings
    return tuple(_in_training(finding, grad_input[site] == HIGH_PRECISION) for finding in findings)


def classes_of(entries: Iterable[PlanEntry], direction: str) -> dict[str, str]:
    """Class by site of one direction's entries."""
    return {entry.site: entry.numerics for entry in entries if entry.direction == direction}


def verdicts(findings: tuple[Finding, ...], requirement: Requirement, min_speedup: float) -> list[Verdict]:
    """Every class of one site and direction, the admitted first, the fastest first; of equally fast ones that of higher
    precision."""
    judged = [_judge(finding, requirement, min_speedup) for finding in findings if finding.numerics != HIGH_PRECISION]

    def order(verdict: Verdict) -> tuple[bool, float, int]:
        us = verdict.finding.us
        return not verdict.admitted, math.inf if us is None else us, _PRECISION.get(verdict.finding.numerics, 0)

    return sorted(judged, key=order)


def _in_training(finding: Finding, reads_back: bool) -> Finding:
    """A forward with what it costs a training step besides."""
    if finding.us is None:
        return finding
    return replace(finding, us=finding.us + finding.pack_us + (finding.unpack_us if reads_back else 0.0))


def _judge(finding: Finding, requirement: Requirement, min_speedup: float) -> Verdict:
    if "nan" in finding.concerns:
        return Verdict(finding, "unsafe", "rows with NaN were seen (nan)")
    promises = []
    for name, bound in requirement.demands().items():
        if name == "deterministic":
            continue  # of kernels, not of classes
        error = error_of(name, finding.direction)
        estimate, is_floor = finding.errors.get(error), name.startswith("min_")
        if estimate is None:
            return Verdict(finding, "unknown", f"{error} was not estimated")
        end = estimate.low if is_floor else estimate.high  # nan meets nothing
        text = f"{error} {estimate.value:.3g} (to {end:.3g})"
        if not (end >= bound if is_floor else end <= bound):
            why = [concern for concern in finding.concerns if concern != "speed"]
            because = f" ({', '.join(why)})" if why else ""
            return Verdict(finding, "unsafe", f"{text}, not {'>=' if is_floor else '<='} {bound:g}{because}")
        promises.append(f"{text} {'>=' if is_floor else '<='} {bound:g}")
    if finding.numerics not in SERVED[finding.direction]:
        return Verdict(finding, "unknown", f"octavo has no kernel of {finding.direction} in this class")
    if math.isnan(finding.speedup):
        return Verdict(finding, "unknown", "was not timed")
    if not finding.speedup >= min_speedup:
        return Verdict(finding, "slow", f"{finding.speedup:.2f}x, not {min_speedup:g}x (speed)")
    return Verdict(finding, "admitted", f"{finding.speedup:.2f}x; {', '.join(promises) or 'no error is demanded'}")


def _entry(
    report: Report, site: SiteInfo, direction: str, findings: tuple[Finding, ...], requirement: Requirement,
    min_speedup: float, is_here: bool,
) -> PlanEntry:  # fmt: skip
    judged = verdicts(findings, requirement, min_speedup)
    is_here = is_here and direction == "forward"  # gradients' kernels are the fastest of their class
    kernels: dict[str, str] = {}
    chosen, refused, slow = None, [], []
    for verdict in judged:
        if verdict.admitted and chosen is None:
            try:
                kernels = _kernels(site, verdict.finding.numerics, requirement) if is_here else {}
            except RuntimeError:
                refused.append(f"{verdict.finding.numerics}: no kernel of it may run here")
                continue
            chosen = verdict
        elif verdict.state == "slow":
            slow.append(f"{verdict.finding.numerics} {verdict.finding.speedup:.2f}x")
        elif not verdict.admitted:
            refused.append(f"{verdict.finding.numerics}: {verdict.reason}")
    if chosen is not None:
        numerics, us, reason = chosen.finding.numerics, chosen.finding.us, chosen.reason
    else:
        us = next((f.reference_us for f in findings if f.reference_us is not None), None)
        numerics = HIGH_PRECISION
        refused += [f"{', '.join(slow)}, not {min_speedup:g}x (speed)"] if slow else []
        reason = f"nothing meets: {'; '.join(refused)}" if refused else _absence(report, site, direction)
        if is_here:
            kernels = _kernels(site, numerics, requirement)
    measured = {f.numerics: {name: e.value for name, e in f.errors.items() if math.isfinite(e.value)} for f in findings}
    return PlanEntry(
        site.path, site.n, site.k, site.epilogue, numerics, direction, kernels,
        requirement.demands(), measured, us, reason,
    )  # fmt: skip


def _absence(report: Report, site: SiteInfo, direction: str) -> str:
    """Why the report says nothing of a site's direction."""
    seen = report.settings.get("statistics", {}).get(site.path, {})
    seen = seen.get("input" if direction == "forward" else "gradient", {})
    broken = {name: seen.get(f"{name}_rows", 0) for name in ("nan", "infinite")}
    if not seen.get("rows", 0) and any(broken.values()):
        return f"no row was finite: {broken['nan']} had NaN, {broken['infinite']} infinities"
    return f"the report has no {direction} of this site"


def _kernels(site: SiteInfo, numerics: str, requirement: Requirement) -> dict[str, str]:
    """The preferred kernel of each bucket of M."""
    deterministic = Requirement(deterministic=requirement.deterministic)
    return {
        str(m): choose(
            Problem("linear", m, site.n, site.k, site.dtype, site.dtype, site.epilogue, site.device, numerics),
            deterministic,
        ).kernel
        for m in M_BUCKETS
    }


def _by_direction(
    requirement: Requirement | Mapping[str, Requirement], directions: tuple[str, ...]
) -> dict[str, Requirement]:
    given = dict(requirement) if isinstance(requirement, Mapping) else dict.fromkeys(directions, requirement)
    for direction, value in given.items():
        choice("requirement", direction, DIRECTIONS)
        if not isinstance(value, Requirement):
            raise TypeError(f"requirement: expected an octavo.ops.dispatch.Requirement, found {type(value).__name__}")
    missing = [direction for direction in directions if direction not in given]
    if missing:
        raise ValueError(f"requirement: says nothing of {', '.join(missing)}; give one requirement for each direction")
    return given
