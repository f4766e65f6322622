"""From statistics to a report: operands drawn, kernels run on them, errors with intervals, cost, concerns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from octavo.loka.candidates import Candidate, Operands, chosen_candidates, is_served
from octavo.loka.concerns import concerns
from octavo.loka.costs import REFERENCE, forward_costs, gradient_costs, weight_costs
from octavo.loka.findings import DIRECTIONS, Estimate, Finding, Report, SiteInfo, error_of
from octavo.loka.identity import machine
from octavo.loka.intervals import estimates
from octavo.loka.row_model import RowModel
from octavo.loka.sites import ProbedSite
from octavo.ops import errors
from octavo.ops._types import choice
from octavo.ops.dispatch import Requirement

Inputs = Literal["learned", "standard_normal"]
FIRST_LOOK = 8  # draws before an interval is looked at; doubled from look to look
_NORMAL_DRAWS = 4  # on N(0, 1), which concerns compare with
# What means something where: columns of grad_weight are no batch, and no norm follows a gradient.
MEANT = {
    "forward": ("rel_l1", "mere", "signal_rel", "post_norm", "sqnr_db"),
    "grad_input": ("rel_l1", "mere", "signal_rel", "sqnr_db"),
    "grad_weight": ("rel_l1", "mere", "sqnr_db"),
}


class Evaluation:
    """One way to judge sites; :meth:`octavo.loka.Probe.evaluate` explains the arguments."""

    def __init__(
        self, candidates: Sequence[str | Candidate] | None, draws: int, requirement: Requirement | None,
        inputs: Inputs, rows: int, measure_costs: bool, seed: int,
    ) -> None:  # fmt: skip
        choice("inputs", inputs, ("learned", "standard_normal"))
        for name, value in (("draws", draws), ("rows", rows)):
            if value < 2:
                raise ValueError(f"{name}: expected at least 2, found {value}")
        if requirement is not None and not isinstance(requirement, Requirement):
            raise TypeError(f"requirement: expected an octavo.ops.dispatch.Requirement, found {requirement!r}")
        self.candidates = chosen_candidates(candidates)
        self.draws, self.requirement, self.inputs, self.rows = draws, requirement, inputs, rows
        self.measure_costs, self.seed = measure_costs, seed

    def report(self, sites: Sequence[ProbedSite], fingerprint: str, steps: int, settings: Mapping[str, Any]) -> Report:
        """All sites, in every direction that they were seen in."""
        findings: list[Finding] = []
        for number, site in enumerate(sites):
            if site.n == 0 or site.k == 0 or site.input.rows == 0:
                continue
            source = _Source(site, self.inputs, self.seed + number)
            for direction in DIRECTIONS:
                if direction == "forward" or site.gradient.rows > 0:
                    findings += self._findings(site, direction, source)
        infos = tuple(SiteInfo(s.path, s.n, s.k, s.m, s.epilogue, s.dtype, s.device) for s in sites)
        own = {
            "draws": self.draws, "rows": self.rows, "inputs": self.inputs, "seed": self.seed,
            "tau": errors.MERE_FLOOR, "requirement": (self.requirement or Requirement()).demands(),
            "statistics": {site.path: _summaries(site) for site in sites},
        }  # fmt: skip
        return Report(fingerprint, machine(), steps, infos, tuple(findings), {**settings, **own})

    def _findings(self, site: ProbedSite, direction: str, source: _Source) -> list[Finding]:
        candidates = [
            candidate for candidate in self.candidates
            if candidate.direction == direction and is_served(candidate, self.rows, site.n, site.k, site.device)
        ]  # fmt: skip
        if not candidates:
            return []
        learned = self._judged(site, direction, candidates, source)
        normal = learned
        if self.inputs == "learned":
            standard = _Source(site, "standard_normal", self.seed)
            normal = [
                torch.stack(values) for values in self._drawn(site, direction, candidates, standard, _NORMAL_DRAWS)
            ]
        costs = self._costs(site, direction, candidates)
        reference = costs.get(REFERENCE)
        is_trained = direction == "forward" and site.gradient.rows > 0 and self.measure_costs
        of_weight = weight_costs(site, costs) if is_trained else {}
        quantized = site.input if direction == "forward" else site.gradient
        other = site.input if direction == "grad_weight" else None
        crest = _normal_crest(quantized.k)
        found = []
        for candidate, values, usual in zip(candidates, learned, normal, strict=True):
            named = dict(zip(MEANT[direction], estimates(values, self.seed), strict=True))
            us = costs.get(candidate.numerics)
            speedup = reference / us if us and reference else None
            means = {name: estimate.value for name, estimate in named.items()}
            on_normal = dict(zip(MEANT[direction], usual.mean(0).tolist(), strict=True))
            doubts = concerns(candidate, means, on_normal, quantized, crest, speedup, other)
            found.append(
                Finding(
                    site.path, direction, candidate.numerics, named, us, None if us is None else reference,
                    len(values), doubts, *of_weight.get(candidate.numerics, ()),
                )
            )  # fmt: skip
        return found

    def _judged(
        self, site: ProbedSite, direction: str, candidates: Sequence[Candidate], source: _Source
    ) -> list[torch.Tensor]:
        """Errors [draws, errors] of each candidate, all on the same operands, until they decide."""
        values: list[list[torch.Tensor]] = [[] for _ in candidates]
        look = min(FIRST_LOOK, self.draws)
        while True:
            more = self._drawn(site, direction, candidates, source, look - len(values[0]))
            for own, new in zip(values, more, strict=True):
                own += new
            tables = [torch.stack(own) for own in values]
            if look == self.draws or all(self._is_decided(direction, table) for table in tables):
                return tables
            look = min(2 * look, self.draws)

    def _drawn(
        self, site: ProbedSite, direction: str, candidates: Sequence[Candidate], source: _Source, count: int
    ) -> list[list[torch.Tensor]]:
        values: list[list[torch.Tensor]] = [[] for _ in candidates]
        with torch.no_grad():
            for _ in range(count):
                operands = source.draw(self.rows, direction)
                exact = operands.exact(direction)
                for own, candidate in zip(values, candidates, strict=True):
                    try:
                        y = candidate.run(operands)
                    except Exception as error:
                        error.add_note(f"candidates: {candidate.numerics} failed at {site.path}, {direction}")
                        raise
                    if y.shape != exact.shape:
                        raise ValueError(
                            f"candidates: {candidate.numerics} returned {list(y.shape)} at {site.path}, {direction}; "
                            f"expected {list(exact.shape)}"
                        )
                    own.append(torch.tensor(_errors(y, exact, site, direction), dtype=torch.float64))
        return values

    def _is_decided(self, direction: str, values: torch.Tensor) -> bool:
        """Whether every demand's interval lies on one side of its limit, or one is violated for sure."""
        if self.requirement is None:
            return False
        named = dict(zip(MEANT[direction], estimates(values, self.seed), strict=True))
        open_ends = False
        for demand, bound in self.requirement.demands().items():
            estimate = named.get(error_of(demand, direction))
            if estimate is None:  # of kernels, or of what no number of draws tells
                continue
            verdict = _verdict(estimate, bound, demand.startswith("min_"))
            if verdict is False:
                return True
            open_ends |= verdict is None
        return not open_ends

    def _costs(self, site: ProbedSite, direction: str, candidates: Sequence[Candidate]) -> dict[str, float]:
        if direction == "forward":
            return forward_costs(site, self.measure_costs)
        return gradient_costs(site, direction, candidates) if self.measure_costs else {}


class _Source:
    """Operands of one site, drawn."""

    def __init__(self, site: ProbedSite, inputs: Inputs, seed: int) -> None:
        self.site, self._inputs = site, inputs
        self._generator = torch.Generator().manual_seed(seed)
        self._snapshot, self._bias = site.weight, site.bias
        self._x = RowModel(site.input, seed) if inputs == "learned" else None
        has_gradient = inputs == "learned" and site.gradient.rows > 0
        self._grad = RowModel(site.gradient, seed) if has_gradient else None

    def draw(self, m: int, direction: str) -> Operands:
        """What ``direction`` multiplies; the other operand is empty."""
        site = self.site
        x = self._rows(self._x, m if direction != "grad_input" else 0, site.k)
        grad = self._rows(self._grad, m if direction != "forward" else 0, site.n)
        weight = self._snapshot
        if site.weights is not None and site.weights.updates > 1 and direction != "grad_weight":
            weight = site.weights.draw(self._generator)
        return Operands(x, grad, weight, self._bias)

    def _rows(self, model: RowModel | None, m: int, width: int) -> torch.Tensor:
        if model is None or m == 0:
            return torch.randn(m, width, generator=self._generator)
        return model.draw(m, self._generator)


def _errors(y: torch.Tensor, exact: torch.Tensor, site: ProbedSite, direction: str) -> list[float]:
    found = {
        "rel_l1": lambda: errors.relative_l1(y, exact),
        "mere": lambda: errors.mere(y, exact),
        "signal_rel": lambda: errors.signal_relative(y, exact),
        "post_norm": lambda: errors.next_layer_error(y, exact, site.cpu_norm),
        "sqnr_db": lambda: errors.sqnr_db(y, exact),
    }
    return [found[name]() for name in MEANT[direction]]


def _verdict(estimate: Estimate, bound: float, is_floor: bool) -> bool | None:
    """True: within the limit; False: beyond; None: the interval holds the limit."""
    if is_floor:
        return True if estimate.low >= bound else False if estimate.high < bound else None
    return True if estimate.high <= bound else False if estimate.low > bound else None


def _normal_crest(k: int) -> float:
    rows = torch.randn(256, k, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return float((rows / rows.abs().amax(1, keepdim=True)).square().mean() ** -0.5)


def _summaries(site: ProbedSite) -> dict[str, dict[str, float | int]]:
    """Plain figures of what was seen, undefined ones left out."""
    parts = {"input": site.input, "gradient": site.gradient}
    return {
        name: {key: value for key, value in part.summary().items() if not math.isnan(value)}
        for name, part in parts.items() if part.rows or part.count("nan_rows") or part.count("infinite_rows")
    }  # fmt: skip
