"""Measured costs: the route a call really takes, timed on this machine."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch.nn import functional

from octavo import _core
from octavo.ops import kernels
from octavo.ops._types import NORMS
from octavo.ops.dispatch.choice import judge
from octavo.ops.dispatch.problem import Problem, Requirement
from octavo.ops.dispatch.timing import sampler
from octavo.ops.epilogue import Norm, apply_epilogue
from octavo.ops.linear_call import CODE_FORMATS, run
from octavo.ops.packing import PackedWeight, activation_scaling, pack_as
from octavo.ops.quantization import quantize

_HOPELESS = 10.0  # candidates whose prediction is this many times the best one's are not timed
_CALLS_A_SAMPLE = 10  # on CUDA, whose events tell half microseconds apart
_CAPTURABLE = ("octavo", "torch")  # libraries whose kernels may run while a CUDA graph is recorded


def measure(problem: Problem, requirement: Requirement | None = None, budget_ms: float = 10.0) -> dict[str, float]:
    """Time every admitted candidate of a linear problem, interleaved, and let dispatch use the results.

    About ``budget_ms`` per candidate. Candidates predicted far behind are skipped. Returns name -> us, the
    lower quartile: whatever else the machine does only adds to a time.
    """
    if problem.op != "linear":
        raise ValueError(f"op: only linear problems are measured, found {problem.op!r}")
    requirement, core = requirement or Requirement(), problem.core()
    admitted = [c for c in judge(problem, requirement).candidates if c.admitted]
    rows = [c.kernel for c in admitted if c.predicted_us <= _HOPELESS * admitted[0].predicted_us]
    while True:
        found = timed(problem, rows, budget_ms)
        for name, us in found.items():
            _core.record_cost(kernels.by_name(name), core, us)
        first = judge(problem, requirement).candidates[:1]
        if not first or not first[0].admitted or first[0].source == "measured":
            break
        rows.append(first[0].kernel)  # its prediction beats what the others turned out to cost
    kernels.new_generation()
    return found


def is_measured(problem: Problem) -> bool:
    """Whether the fastest candidate of ``problem`` was timed already."""
    rows = judge(problem).candidates
    return bool(rows) and rows[0].source == "measured"


def timed(problem: Problem, rows: list[_core.Kernel], budget_ms: float) -> dict[str, float]:
    """Lower-quartile us of each kernel on ``problem``, interleaved, about ``budget_ms`` each."""
    calls = dict(zip([kernel.name for kernel in rows], calls_of(problem, rows), strict=True))
    with torch.no_grad():
        return interleaved(calls, budget_ms, problem.device, all(kernel.library in _CAPTURABLE for kernel in rows))


def calls_of(problem: Problem, rows: list[_core.Kernel]) -> list[Callable[[], object]]:
    """A call of each kernel on random operands of ``problem``, by the route that ``ops.linear`` takes."""
    m, n, k = problem.m, problem.n, problem.k
    g = torch.Generator(problem.device).manual_seed(0)

    def normal(*size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(*size, generator=g, device=problem.device).to(dtype)

    x_dtype, out_dtype = getattr(torch, problem.x_dtype), getattr(torch, problem.out_dtype)
    numbers = normal(m, k, dtype=torch.float32 if x_dtype in CODE_FORMATS else x_dtype)
    out_format = CODE_FORMATS.get(out_dtype)
    weight = normal(n, k) / max(k, 1) ** 0.5
    words = problem.epilogue.split("+") if problem.epilogue else []
    kind = next((w for w in words if w in NORMS), None)
    norm = None if kind is None else _norm(kind, n, problem.device)
    activation = next((w for w in words if w not in ("bias", "residual", kind)), None)
    before = "residual" in words and kind is not None and words.index("residual") < words.index(kind)
    bias = normal(n) if "bias" in words else None
    residual = normal(m, n, dtype=out_dtype if out_format is None else torch.float32) if "residual" in words else None
    packed: dict[str, PackedWeight] = {}

    def call_of(kernel: _core.Kernel) -> Callable[[], object]:
        numerics = kernel.numerics.name
        if numerics == "fp32":
            return lambda: apply_epilogue(
                functional.linear(numbers.float(), weight, bias), None, norm, activation, residual, before
            ).to(out_dtype)
        if numerics not in packed:
            packed[numerics] = pack_as(weight, numerics)
        w = packed[numerics]
        codes = CODE_FORMATS.get(x_dtype)
        x = numbers if codes is None else quantize(numbers, codes, activation_scaling(numerics))
        y_dtype = out_dtype if out_format is None else None
        return lambda: run(
            x, w, bias, norm, activation, residual, before, y_dtype, kernel=kernel, out_format=out_format
        )

    return [call_of(kernel) for kernel in rows]


def _norm(kind: str, n: int, device: str) -> Norm:
    weight = None if kind == "block" else torch.ones(n, device=device)
    return Norm(kind, weight, torch.zeros(n, device=device) if kind == "layer" else None)


def interleaved(
    calls: Mapping[str, Callable[[], object]], budget_ms: float, device: str = "cpu", captures: bool = True
) -> dict[str, float]:
    """Lower-quartile us of each call, taken in turns, about ``budget_ms`` each; a call that takes ``_HOPELESS`` times
    as long as the fastest keeps the time of its second. ``captures``: as of ``timing.sampler``."""
    numbered = {name: _numbered(call) for name, call in calls.items()}
    looks = {}
    for name, call in numbered.items():
        look = sampler(call, device, captures=False)
        look()  # layouts are made here
        looks[name] = look()
    near = [name for name, us in looks.items() if us <= _HOPELESS * min(looks.values())]
    repeats = 1 if device == "cpu" else _CALLS_A_SAMPLE
    takes = {name: sampler(numbered[name], device, repeats, captures) for name in near}
    slowest_ms = max((looks[name] for name in near), default=0.0) * repeats / 1e3
    rounds = min(50, max(5, math.floor(budget_ms / max(slowest_ms, 1e-3))))
    times: dict[str, list[float]] = {name: [] for name in near}
    for _ in range(rounds):
        for name, take in takes.items():
            times[name].append(take())
    return looks | {name: sorted(found)[len(found) // 4] for name, found in times.items()}


def _numbered(call: Callable[[], object]) -> Callable[[int], object]:
    return lambda i: call()
