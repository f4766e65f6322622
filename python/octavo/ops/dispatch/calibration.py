"""Costs fitted to this machine: every linear kernel timed on a small grid of shapes, once, kept between processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from octavo import _calibration_cache, _core
from octavo.ops import kernels
from octavo.ops._types import DTYPES
from octavo.ops.dispatch.choice import judge
from octavo.ops.dispatch.measure import timed
from octavo.ops.dispatch.problem import Problem

M_GRID = (1, 8, 64, 512)
NK_GRID = ((37, 129), (64, 256), (256, 512), (1024, 512), (512, 1024))
IO_GRID = ("float32", "bfloat16")
EPILOGUES = ("", "bias+layer+hardswish")
_SLOWEST_US = 5e3  # calls that their priors put beyond this are not timed
_FEWEST = 12  # samples for a fit


@dataclass(frozen=True)
class Fit:
    """A kernel's cost between two types: us = sum of coefficient * feature (``_core.cost_features``).

    ``error``: median relative error over the ``samples`` it was fitted to.
    """

    kernel: str
    io: str
    coefficients: tuple[float, ...]
    error: float
    samples: int


def calibrate(
    budget_ms: float = 1.0,
    *,
    keep: bool = True,
    progress: Callable[[float], None] | None = None,
    measured: Callable[[Problem, list[_core.Kernel]], Mapping[str, float]] | None = None,
) -> tuple[Fit, ...]:
    """Time every library's linear kernels on this CPU, fit each one's cost, use the fits and ``keep`` them.

    A few seconds: 80 problems, about ``budget_ms`` per kernel and problem, all kernels of a problem interleaved. From
    then on :func:`choose` predicts by these fits wherever the very problem was not measured, in this process and in
    later ones with the same kernels, instruction set, number of threads and torch. ``progress(share done)`` is called
    after each problem. ``measured(problem, kernels) -> name -> us`` replaces the timing (tests).
    """
    if measured is None:

        def measured(problem: Problem, rows: list[_core.Kernel]) -> Mapping[str, float]:
            return timed(problem, rows, budget_ms)

    problems = [
        Problem("linear", m, n, k, io, io, epilogue)
        for io in IO_GRID for epilogue in EPILOGUES for n, k in NK_GRID for m in M_GRID
    ]  # fmt: skip
    _start()
    samples: dict[tuple[str, str], list[tuple[Sequence[float], float]]] = {}
    for done, problem in enumerate(problems):
        rows = [c.kernel for c in judge(problem).candidates if c.admitted and c.predicted_us <= _SLOWEST_US]
        features = _core.cost_features(problem.core())
        for name, us in measured(problem, rows).items():
            samples.setdefault((name, problem.x_dtype), []).append((features, us))
        if progress is not None:
            progress((done + 1) / len(problems))
    fits = tuple(_fit_of(*key, rows) for key, rows in samples.items() if len(rows) >= _FEWEST)
    if keep:
        _calibration_cache.write(_content(fits))
    use(fits)
    return fits


def use(fits: Sequence[Fit]) -> None:
    """Let dispatch predict by these fits instead of those it has."""
    _start()
    here = {kernel.name: kernel for kernel in _core.kernels()}
    for fit in fits:
        if fit.kernel in here:
            dtype = DTYPES[getattr(torch, fit.io)]
            _core.set_fitted_cost(here[fit.kernel], dtype, dtype, fit.coefficients)
    kernels.new_generation()


def load() -> None:
    """Use what an earlier process kept for this instruction set and number of threads; looked for once."""
    if _loaded == _where():
        return
    _start()
    content = _calibration_cache.read()
    if content:
        use([
            Fit(name, io, tuple(row["coefficients"]), row["error"], row["samples"])
            for name, by_io in content.items() for io, row in by_io.items()
        ])  # fmt: skip


_loaded: tuple[str, int] | None = None


def _where() -> tuple[str, int]:
    return _core.isa(), _core.threads()


def _start() -> None:
    """No fits; those of this instruction set and number of threads are the next ones."""
    global _loaded
    _loaded = _where()
    _core.forget_fitted_costs()


def _content(fits: Sequence[Fit]) -> dict[str, dict[str, dict[str, object]]]:
    content: dict[str, dict[str, dict[str, object]]] = {}
    for fit in fits:
        row = {"coefficients": list(fit.coefficients), "error": fit.error, "samples": fit.samples}
        content.setdefault(fit.kernel, {})[fit.io] = row
    return content


def _fit_of(name: str, io: str, rows: Sequence[tuple[Sequence[float], float]]) -> Fit:
    coefficients, error = fit([features for features, _ in rows], [us for _, us in rows])
    return Fit(name, io, tuple(coefficients), error, len(rows))


def fit(features: Sequence[Sequence[float]], us: Sequence[float]) -> tuple[list[float], float]:
    """Coefficients >= 0 with the least sum of squared relative errors, and the median relative error.

    Lawson and Hanson's active sets: solve freely for the features in use, step back where one turns negative, take in
    the one that the residual asks for most.
    """
    times = torch.tensor(us, dtype=torch.float64)
    a = torch.tensor(features, dtype=torch.float64) / times[:, None]
    b = torch.ones(len(us), dtype=torch.float64)
    size = a.norm(dim=0).clamp_min(1e-300)
    a = a / size
    x, used = torch.zeros(a.shape[1], dtype=torch.float64), torch.zeros(a.shape[1], dtype=torch.bool)
    for _ in range(3 * a.shape[1]):
        gradient = a.T @ (b - a @ x)
        gradient[used] = -1
        if float(gradient.max()) <= 1e-10:
            break
        used[int(gradient.argmax())] = True
        while True:
            trial = torch.zeros_like(x)
            trial[used] = torch.linalg.lstsq(a[:, used], b[:, None], driver="gelsd").solution[:, 0]
            negative = used & (trial <= 0)
            if not bool(negative.any()):
                break
            step = (x[negative] / (x[negative] - trial[negative])).min()
            x = x + step * (trial - x)
            used &= x > 1e-12
            x[~used] = 0
        x = trial
    error = float((a @ x - b).abs().median())
    return (x / size).tolist(), error
