"""What dispatch loses on a GPU: the time of what it chooses over the fastest found by trying everything.

Twice: which kernel of any library for a layer (``octavo.ops.dispatch.choose``), and which GEMM instantiation inside
octavo's own (``cuda/gemm/tile_choice.cpp``). Each choice is made from what octavo ships and from what
``octavo.ops.dispatch.tune`` measured in this run, within a second a problem; then everything that takes the problem is
timed anew. A regret of 0 is the best choice. Layers of ``COMPILED`` rows with an epilogue are tuned with
``compiled=True``: torch's compiled layer is among what is timed there, and what is shipped, which cannot know it, pays
for it; compiling takes seconds that no budget counts. Problems come in a random order, so that a budget that ends
cuts no kind more than another.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

import gpu_run
import harness
import numpy as np
import torch
from dispatch_regret import counting
from gpu_run import GpuRun
from harness import Entry, Interval

from octavo import _core
from octavo.ops import dispatch
from octavo.ops.dispatch import Problem, Requirement, tuning
from octavo.ops.dispatch.choice import judge
from octavo.ops.dispatch.measure import calls_of
from octavo.ops.dispatch.tuning import Product

ROWS = {"smoke": (3,), "quick": (16, 4096), "full": (16, 256, 4096, 65536)}
SIZES = {
    "smoke": ((32, 48),),
    "quick": ((256, 512), (1024, 1024)),
    "full": ((128, 128), (256, 512), (512, 512), (512, 1024), (1024, 1024), (2048, 2048)),
}
EPILOGUES = ("", "bias+layer+hardswish")
COMPILED = {"smoke": (), "quick": (4096,), "full": (4096,)}  # rows: compiling takes seconds a layer
REQUIREMENT = Requirement(min_sqnr_db=20.0)
PRODUCTS = ("bf16", "e4m3", "e4m3_fast")
SHIPPED, TUNED = "chosen as shipped", "chosen as tuned"
MEAN, MOST = 0.03, 0.10
Regrets = dict[str, list[np.ndarray]]


def forget() -> None:
    """What this machine measured, so that a choice is the shipped one."""
    _core.forget_costs()
    _core.forget_gemm_times()


def kernel_contest(run: GpuRun, problem: Problem, regrets: Regrets, budget_s: float, compiled: bool) -> None:
    """One layer: every admitted kernel, and the two choices."""
    forget()
    shipped = dispatch.choose(problem, REQUIREMENT).kernel
    dispatch.tune(problem, budget_s, compiled=compiled, keep=False)
    rows = [c.kernel for c in judge(problem, REQUIREMENT).candidates  # among them now what compiles
            if c.admitted or c.kernel.name == shipped]  # fmt: skip
    chosen = {SHIPPED: shipped, TUNED: dispatch.choose(problem, REQUIREMENT).kernel}
    calls = dict(zip([kernel.name for kernel in rows], calls_of(problem, rows), strict=True))
    contest_of(run, "linear", {"m": problem.m, "n": problem.n, "k": problem.k, "epilogue": problem.epilogue},
               {name: counting(name, call) for name, call in calls.items()}, chosen, regrets)  # fmt: skip


def tile_contest(run: GpuRun, product: Product, regrets: Regrets, budget_s: float) -> None:
    """One product: every instantiation that makes it, and the two choices."""
    forget()
    names = product.tiles()
    if len(names) < 2:
        return
    times = (time_tiles_on_a_cpu if run.device == "cpu" else tuning.time_tiles)(
        product, names, budget_s * 1e3 / len(names)
    )
    _core.keep_gemm_times(times, **asdict(product))
    chosen = {SHIPPED: names[0], TUNED: product.tiles()[0]}
    contest_of(run, "gemm", asdict(product), tile_calls(product, names, run.device), chosen, regrets)


def tile_calls(product: Product, names: Iterable[str], device: str) -> dict[str, Callable[[int], Any]]:
    """The instantiations; on a CPU, for tests, torch's product in the place of each."""
    if device == "cuda":
        calls = tuning.tile_calls(product, names)
        return {name: lambda i, call=call: call() for name, call in calls.items()}
    x, w = (torch.randn(rows, product.k) for rows in (product.m, product.n))
    return {name: lambda i: x @ w.T for name in names}


def time_tiles_on_a_cpu(product: Product, names: list[str], budget_ms: float) -> dict[str, float]:
    """Made up: the last is the fastest."""
    return {name: float(len(names) - at) for at, name in enumerate(names)}


def contest_of(
    run: GpuRun, op: str, shape: dict[str, Any], calls: dict[str, Callable[[int], Any]], chosen: dict[str, str],
    regrets: Regrets,
) -> None:  # fmt: skip
    """Everything timed; the choices are looked up among it, so that no one is timed twice."""
    everything = [Entry(name, call, group="all") for name, call in calls.items()]
    facts = {"chosen": chosen}
    first = Entry(chosen[SHIPPED], calls[chosen[SHIPPED]], group="all", facts=facts)
    result = run.contest(op, shape, [first], [e for e in everything if e.name != first.name])
    best = result.best([*result.ours, *result.peers])
    assert best is not None
    for source, name in chosen.items():
        regrets[source].append(result.samples[name] / result.samples[best.name] - 1)


def bars(run: GpuRun, what: str, regrets: Regrets) -> None:
    """Mean and largest regret of each source."""
    for source, word in ((SHIPPED, "shipped"), (TUNED, "tuned")):
        if regrets[source]:
            medians = [float(np.median(values)) for values in regrets[source]]
            run.measured(f"gpu_dispatch_{what}_{word}_mean", mean_interval(regrets[source]), MEAN, at_most=True)
            worst = regrets[source][int(np.argmax(medians))]
            low, high = np.quantile(worst, [0.025, 0.975])
            run.measured(f"gpu_dispatch_{what}_{word}_max", Interval(max(medians), float(low), float(high)), MOST,
                         at_most=True)  # fmt: skip


def mean_interval(regrets: list[np.ndarray]) -> Interval:
    """The mean of the contests' median regrets; rounds are resampled within each."""
    generator = np.random.default_rng(0)
    drawn = np.zeros(harness.RESAMPLES)
    for values in regrets:
        drawn += np.median(values[generator.integers(0, len(values), (harness.RESAMPLES, len(values)))], axis=1)
    low, high = np.quantile(drawn / len(regrets), [0.025, 0.975])
    return Interval(float(np.mean([np.median(values) for values in regrets])), float(low), float(high))


@torch.no_grad()
def body(run: GpuRun) -> None:
    """Every problem and product, then the figures."""
    level, budget_s = run.effort.name, 0.02 if run.is_smoke else 1.0
    io = "bfloat16"
    kernel_regrets: Regrets = {SHIPPED: [], TUNED: []}
    tile_regrets: Regrets = {SHIPPED: [], TUNED: []}
    jobs: list[Problem | Product] = []
    for m, n, k in ((m, n, k) for n, k in SIZES[level] for m in ROWS[level]):
        jobs += [Problem("linear", m, n, k, io, io, epilogue, run.device) for epilogue in EPILOGUES]
        jobs += [Product(product, m, n, k) for product in PRODUCTS]
    for at in np.random.default_rng(0).permutation(len(jobs)):
        job = jobs[at]
        if isinstance(job, Product):
            if run.has_time("gemm", {"product": job.product, "m": job.m, "n": job.n, "k": job.k}):
                tile_contest(run, job, tile_regrets, budget_s)
        elif run.has_time("linear", {"m": job.m, "n": job.n, "k": job.k, "epilogue": job.epilogue}):
            kernel_contest(run, job, kernel_regrets, budget_s, bool(job.epilogue) and job.m in COMPILED[level])
    forget()
    bars(run, "kernels", kernel_regrets)
    bars(run, "tiles", tile_regrets)


if __name__ == "__main__":
    sys.exit(gpu_run.main("gpu_dispatch", body))
