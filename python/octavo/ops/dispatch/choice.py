"""Choosing a kernel, saying why, counting what ran."""

from __future__ import annotations

import math
from typing import Any

import torch

from octavo import _core
from octavo.ops import kernels, qualification
from octavo.ops.dispatch.problem import Alternative, Decision, Evidence, Problem, Requirement
from octavo.ops.packing import PackedWeight

_NO_DEMAND = Requirement()
_chosen: dict[tuple[Any, ...], _core.Kernel] = {}


def choose(problem: Problem, requirement: Requirement = _NO_DEMAND, evidence: Evidence | None = None) -> Decision:
    """The fastest qualified kernel whose class meets ``requirement`` at this site.

    FP32 is always admitted on accuracy and serves as the fallback; a class without ``evidence`` is judged by its
    nominal SQNR and relative L1 on Gaussian data (unknown for other metrics, so a demand on those refuses it). The
    first call qualifies the kernels on this machine. Raises RuntimeError with the whole table when nothing is admitted.
    """
    decision = judge(problem, requirement, evidence)
    rows = [_alternative(candidate) for candidate in decision.candidates]
    if not rows or not rows[0].admitted:
        raise RuntimeError(f"dispatch: no kernel may serve {problem}{kernels.why_not(problem.device)}\n{table(rows)}")
    best = decision.candidates[0]
    error = {
        name: value
        for name in ("rel_l1", "mere", "signal_rel", "post_norm", "sqnr_db")
        if not math.isnan(value := getattr(best.error, name))
    }
    return Decision(rows[0].kernel, rows[0].numerics, best.predicted_us, error, decision.reason, tuple(rows[1:]))


def judge(problem: Problem, requirement: Requirement = _NO_DEMAND, evidence: Evidence | None = None) -> _core.Decision:
    """Every candidate with its verdict, the admitted first, the fastest first."""
    from octavo.ops.dispatch import calibration, tuning  # which time what is judged here

    qualification.ensure(_core.Op[problem.op])
    calibration.load()
    tuning.load()
    return _core.choose(problem.core(), requirement.core(), {} if evidence is None else evidence.core())


def explain(problem: Problem, requirement: Requirement = _NO_DEMAND, evidence: Evidence | None = None) -> str:
    """The table behind :func:`choose`, as text: kernel, class, predicted time, SQNR, verdict."""
    decision = judge(problem, requirement, evidence)
    rows = [_alternative(candidate) for candidate in decision.candidates]
    demands = ", ".join(f"{k}={v}" for k, v in requirement.demands().items()) or "none"
    head = f"{problem.op} m={problem.m} n={problem.n} k={problem.k} {problem.x_dtype} -> {problem.out_dtype}"
    epilogue = f", epilogue {problem.epilogue}" if problem.epilogue else ""
    verdict = decision.reason or "nothing admitted"
    return f"{head}{epilogue} on {problem.device}; requirement: {demands}\n{table(rows)}\nchosen: {verdict}"


def table(rows: list[Alternative]) -> str:
    """Alternatives in aligned columns."""
    lines = [("kernel", "class", "us", "", "SQNR dB", "verdict")]
    lines += [
        (r.kernel, r.numerics, f"{r.predicted_us:.1f}", r.source, f"{r.sqnr_db:.1f}",
         r.reason or "admitted")
        for r in rows
    ]  # fmt: skip
    widths = [max(len(line[i]) for line in lines) for i in range(5)]
    return "\n".join("  ".join([*(c.ljust(w) for c, w in zip(line, widths, strict=False)), line[5]]) for line in lines)


def counters() -> dict[str, int]:
    """How often each kernel ran in this process; kernels that never ran are left out."""
    return {kernel.name: kernel.calls for kernel in _core.kernels() if kernel.calls}


def kernel_for(w: PackedWeight, m: int, x_dtype: torch.dtype, out_dtype: torch.dtype, epilogue: str) -> _core.Kernel:
    """The kernel that serves a packed weight on m rows: the one its plan prefers, else the fastest of its class."""
    key = (
        kernels.generation, _core.threads(), m, w.n, w.k, x_dtype, out_dtype, epilogue, w.device.type, w.numerics
    )  # fmt: skip
    if not w.preferred and key in _chosen:  # training packs a new weight each step
        return _chosen[key]
    x_name, out_name = str(x_dtype).removeprefix("torch."), str(out_dtype).removeprefix("torch.")
    problem = Problem("linear", m, w.n, w.k, x_name, out_name, epilogue, w.device.type, w.numerics)
    if w.preferred:
        bound = min((b for b in w.preferred if b >= m), default=max(w.preferred))
        for candidate in judge(problem).candidates:
            if candidate.admitted and candidate.kernel.name == w.preferred[bound]:
                return candidate.kernel
    kernel = kernels.by_name(choose(problem).kernel)
    if not w.preferred and qualification.is_settled(_core.Op.linear):
        if len(_chosen) >= 4096:
            _chosen.clear()
        _chosen[(kernels.generation, *key[1:])] = kernel  # the first choice of all qualifies: a new generation
    return kernel


def _alternative(candidate: _core.Candidate) -> Alternative:
    kernel = candidate.kernel
    return Alternative(
        kernel.name, kernel.numerics.name, candidate.predicted_us, candidate.source, candidate.error.sqnr_db,
        candidate.admitted, candidate.reason,
    )  # fmt: skip
