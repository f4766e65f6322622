"""What a call costs in each class and in high precision, in every direction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch

from octavo.loka.candidates import Candidate, Operands
from octavo.loka.sites import ProbedSite
from octavo.ops.dispatch.choice import judge
from octavo.ops.dispatch.measure import interleaved, is_measured, measure
from octavo.ops.linear_call import run
from octavo.ops.packing import pack_as

REFERENCE = "fp32"
_BUDGET_MS = 5.0  # of timing per candidate


def forward_costs(site: ProbedSite, timed: bool) -> dict[str, float]:
    """us of the fastest kernel of each class at the site's call, its epilogue included; by dispatch, which measures
    first when ``timed``. Without, classes that dispatch knows neither measured nor calibrated are left out."""
    problem = site.problem(site.m)
    if timed and not is_measured(problem):
        measure(problem, budget_ms=_BUDGET_MS)
    found: dict[str, float] = {}
    for row in judge(problem).candidates:
        if row.admitted and (timed or row.source != "prior"):
            name = row.kernel.numerics.name
            found[name] = min(found.get(name, row.predicted_us), row.predicted_us)
    return found


def weight_costs(site: ProbedSite, classes: Iterable[str]) -> dict[str, tuple[float, float]]:
    """us that a forward in each of ``classes`` costs a training step besides: packing the weight that changed, and
    reading it back as FP32."""
    x, weight = _normal(site, site.k), site.weight.to(site.device)
    found = {}
    with torch.no_grad():
        for numerics in classes:
            if numerics == REFERENCE:
                continue
            packed = pack_as(weight, numerics)
            calls: dict[str, Callable[[], object]] = {
                "fresh": partial(_packed_anew, x, weight, numerics),
                "packed": partial(run, x, packed),
                "read back": packed.dequantize,
            }
            us = interleaved(calls, _BUDGET_MS, site.device, captures=False)
            found[numerics] = max(us["fresh"] - us["packed"], 0.0), us["read back"]
    return found


def _packed_anew(x: torch.Tensor, weight: torch.Tensor, numerics: str) -> torch.Tensor:
    return run(x, pack_as(weight, numerics))


def gradient_costs(site: ProbedSite, direction: str, candidates: Sequence[Candidate]) -> dict[str, float]:
    """us of each candidate's gradient and of torch's in FP32, timed in turns on normal operands."""
    x, grad = _normal(site, site.k), _normal(site, site.n)
    operands = Operands(x, grad, site.weight.to(site.device), None)
    calls: dict[str, Callable[[], object]] = {
        candidate.numerics: _call(candidate, operands) for candidate in candidates
    }
    weight = operands.weight
    calls[REFERENCE] = (lambda: grad @ weight) if direction == "grad_input" else (lambda: grad.T @ x)
    with torch.no_grad():
        return interleaved(calls, _BUDGET_MS, site.device, captures=False)


def _normal(site: ProbedSite, width: int) -> torch.Tensor:
    """Rows of the site's calls, where it is."""
    generator = torch.Generator(site.device).manual_seed(width)
    return torch.randn(site.m, width, generator=generator, device=site.device)


def _call(candidate: Candidate, operands: Operands) -> Callable[[], object]:
    return lambda: candidate.run(operands)
