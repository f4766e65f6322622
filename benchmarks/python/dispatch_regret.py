"""What dispatch loses: the time of the kernel it chooses over that of the fastest one found by trying all.

linear + bias + LayerNorm + hardswish, no accuracy demand beyond 20 dB. Every admitted kernel is timed, by the route a
call takes; dispatch chooses twice, by the priors that octavo ships and by costs fitted to this machine
(``dispatch.calibrate``, in this run, on shapes of its own). A regret of 1 is the best choice. torch's FP32 kernel is
always admitted, so a choice can lose the whole gain of low precision.
"""

from __future__ import annotations

import time
from typing import Any

import harness
import numpy as np
import torch

from octavo import _core, ops
from octavo.ops import kernels
from octavo.ops.dispatch import Problem, Requirement, calibration
from octavo.ops.dispatch.choice import judge
from octavo.ops.dispatch.measure import calls_of

BATCHES = {"smoke": [2], "quick": [1, 64, 1024], "full": [1, 8, 64, 256, 1024, 4096]}
SIZES = {
    "smoke": [(32, 48)],
    "quick": [(64, 256), (512, 512), (200, 1000)],
    "full": [
        (64, 256),
        (128, 512),
        (256, 512),
        (512, 512),
        (512, 1024),
        (1024, 1024),
        (37, 129),
        (200, 1000),
        (1000, 96),
    ],
}
EPILOGUE = "bias+layer+hardswish"
REQUIREMENT = Requirement(min_sqnr_db=20.0)
CALIBRATED, PRIORS = "chosen by calibrated costs", "chosen by priors"
_SLOWEST = 30.0  # kernels this many times slower than the fastest in one call are not timed further


def choice(problem: Problem, fits: tuple[ops.dispatch.Fit, ...]) -> str:
    """The kernel dispatch takes with these fits, or with none."""
    _core.forget_costs()
    calibration.use(fits)
    return ops.dispatch.choose(problem, REQUIREMENT).kernel


def contest(run: harness.Run, problem: Problem, fits: tuple[ops.dispatch.Fit, ...]) -> dict[str, np.ndarray]:
    """One problem: regrets per round, by what the choice was made from."""
    rows = [c.kernel for c in judge(problem, REQUIREMENT).candidates if c.admitted]
    calls = dict(zip([kernel.name for kernel in rows], calls_of(problem, rows), strict=True))
    once = {name: _seconds(call) for name, call in calls.items()}
    absent = {
        name: f"over {_SLOWEST:.0f}x slower in one call"
        for name, s in once.items()
        if s > _SLOWEST * min(once.values())
    }
    chosen = {CALIBRATED: choice(problem, fits), PRIORS: choice(problem, ())}
    peers = [harness.Entry(name, counting(name, calls[name]), io=problem.x_dtype, group="kernel")
             for name in calls if name not in absent or name in chosen.values()]  # fmt: skip
    ours = [harness.Entry(source, counting(name, calls[name]), io=problem.x_dtype, facts={"chosen": name})
            for source, name in chosen.items()]  # fmt: skip
    shape = {"m": problem.m, "n": problem.n, "k": problem.k, "epilogue": EPILOGUE}
    result = run.contest("linear", shape, ours, peers, {k: v for k, v in absent.items() if k not in chosen.values()})
    best = result.best(result.peers)
    assert best is not None
    return {source: result.samples[name] / result.samples[best.name] for source, name in chosen.items()}


def _seconds(call: Any) -> float:
    call()
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def counting(name: str, call: Any) -> Any:
    """torch's FP32 layer runs outside octavo's counters."""
    kernel = kernels.by_name(name)
    if kernel.numerics.name != "fp32":
        return lambda i: call()

    def counted(i: int) -> torch.Tensor:
        kernel.count()
        result: torch.Tensor = call()
        return result

    return counted


@torch.no_grad()
def body(run: harness.Run) -> None:
    """Calibrate, then every shape, then the figures: geometric mean and worst regret of each source."""
    fits = ops.dispatch.calibrate(budget_ms=0.2 if run.is_smoke else 1.0, keep=False)
    regrets: dict[str, list[np.ndarray]] = {CALIBRATED: [], PRIORS: []}
    for io in ("float32", "bfloat16"):
        for n, k in SIZES[run.effort.name]:
            for m in BATCHES[run.effort.name]:
                problem = Problem("linear", m, n, k, io, io, EPILOGUE)
                for source, values in contest(run, problem, fits).items():
                    regrets[source].append(values)
    for source, word in ((PRIORS, "priors"), (CALIBRATED, "calibrated")):
        mean = harness.median_interval(regrets[source])
        worst = max((harness.median_interval([values]) for values in regrets[source]), key=lambda i: i.figure)
        for name, interval in (("geomean", mean), ("worst", worst)):
            figures = {key: round(getattr(interval, key), 4) for key in ("figure", "low", "high")}
            run.bars.append({"name": f"dispatch_regret_{word}_{name}", **figures, "bar": None, "holds": None,
                             "contests": len(regrets[source])})  # fmt: skip


if __name__ == "__main__":
    harness.main("dispatch_regret", body)
