"""Five planted kernel faults: how far inputs that Probe learned tell a faulty kernel from a right one, beside real
held-out activations and N(0, 1), over the layers of trained models (those of ``loka_prediction``).

Separation: relative L1 of the faulty kernel over the right one's, on the same operands. The gate: wherever real inputs
separate by 10 or more (the whole 95% interval over groups of rows), learned ones do.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import harness
import numpy as np
import torch
from faulty_kernels import FAULTS, Fault
from harness import Interval
from loka_models import Subject
from loka_prediction import subjects
from loka_sites import RESAMPLES, measured

GATE = 10.0
DRAWS = {"smoke": 2, "quick": 8, "full": 16}
SEED = 4001


@dataclass(frozen=True)
class Separation:
    """Faulty over right at one site: on real inputs with its interval, on learned and on N(0, 1) ones."""

    fault: str
    site: str
    real: Interval
    learned: float
    normal: float

    @property
    def is_sure(self) -> bool:
        """Whether real inputs tell the two apart by the gate."""
        return self.real.low >= GATE


def separations(found: Subject, faults: Sequence[Fault], draws: int, seed: int) -> list[Separation]:
    """Every fault at every site of a trained model."""
    candidates = [candidate for fault in faults for candidate in fault.both]
    reports = [
        found.probe.evaluate(candidates, draws, inputs=inputs, measure_costs=False, seed=seed)
        for inputs in ("learned", "standard_normal")
    ]
    made = []
    for path, operands in found.operands.items():
        drawn = [{finding.numerics: finding.errors["rel_l1"].value for finding in r.at(path)} for r in reports]
        for fault in faults:
            right, faulty = (
                np.asarray(measured(candidate, operands, found.probe.sites[path], ("rel_l1",))["rel_l1"])
                for candidate in fault.both
            )
            learned, normal = (_over(d[fault.faulty.numerics], d[fault.right.numerics]) for d in drawn)
            made.append(Separation(fault.name, path, _ratio(faulty, right), learned, normal))
    return made


def _over(faulty: float, right: float) -> float:
    """1 where neither errs: inputs of zeros."""
    return faulty / right if right > 0 else 1.0 if faulty == 0 else float("inf")


def _ratio(faulty: np.ndarray, right: np.ndarray) -> Interval:
    """Of the means over groups, with a bootstrap over groups."""
    picks = np.random.default_rng(0).integers(0, len(right), (RESAMPLES, len(right)))
    drawn = [_over(a, b) for a, b in zip(faulty[picks].mean(1), right[picks].mean(1), strict=True)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(_over(faulty.mean(), right.mean()), float(low), float(high))


def body(run: harness.Run) -> None:
    """Every fault at every site of every subject, then a bar per fault: the least learned separation where real inputs
    separate; and how often N(0, 1) would have told."""
    torch.set_num_threads(1)
    made: list[Separation] = []
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        for number, found in enumerate(subjects(run, Path(folder))):
            here = separations(found, FAULTS, DRAWS[run.effort.name], SEED + number)
            made += here
            rows(run, found, here)
    for fault in FAULTS:
        own = [each for each in made if each.fault == fault.name]
        sure = [each for each in own if each.is_sure]
        name = f"loka_faults_{fault.name.replace(chr(39), '').replace(' ', '_')}"
        ratios = [abs(math.log(each.learned / each.real.figure)) for each in sure]
        facts = {
            "sites": len(own),
            "separated": len(sure),
            "learned": sum(each.learned >= GATE for each in sure),
            "normal": sum(each.normal >= GATE for each in sure),
            "false_alarms": sum(each.learned >= GATE and each.real.high < GATE for each in own),
            "median_log_ratio": float(np.median(ratios)) if sure else None,
        }
        if not sure:  # nothing to find: no verdict
            largest = max(own, key=lambda each: each.real.figure)
            run.measured(name, largest.real, largest=[largest.learned, largest.normal], **facts)
            continue
        run.measured(name, _least([each.learned for each in sure]), GATE, **facts)
        run.measured(f"{name}_normal", _least([each.normal for each in sure]))


def _least(values: Sequence[float]) -> Interval:
    """The least, and where the middle 95% lie."""
    low, high = np.quantile(values, [0.025, 0.975])
    return Interval(min(values), min(float(low), min(values)), float(high))


def rows(run: harness.Run, found: Subject, here: Sequence[Separation]) -> None:
    """A line per site: the largest real separation of any fault, and each fault's [real, learned, N(0, 1)]."""
    for path in dict.fromkeys(each.site for each in here):
        own = [each for each in here if each.site == path]
        faults = {
            each.fault: [float(f"{v:.4g}") for v in (each.real.figure, each.learned, each.normal)] for each in own
        }
        site = found.probe.sites[path]
        shape = {"data": found.data, "plant": found.plant, "site": path, "n": site.n, "k": site.k}
        run.row("loka_faults", shape, found.name, max(own, key=lambda e: e.real.figure).real, {"faults": faults})


if __name__ == "__main__":
    harness.main("loka_faults", body)
