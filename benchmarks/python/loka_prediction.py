"""How well Probe's predictions meet what held-out events show: signal-relative and post-norm errors of every class over
the layers of four trained models, natural and with offsets, skews and outlier rows planted in their inputs, on AdsWorld
and, where it is, on MovieLens. The N(0, 1) benchmark stands beside; gradients' predictions too, without a gate.

Seeds are others than the tests'. Intervals: 95% bootstrap over sites.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import harness
import numpy as np
import torch
from harness import Interval
from loka_models import PLANTS, SHAPES, Subject, subject
from loka_sites import BATCH, GROUPS, RESAMPLES, ROWS, Compared, compared, log_ratio, spearman

from octavo.data import AdsWorld, DataError, EventLog, movielens

WORLD_SEED, SEED = 2011, 3001
STEPS = {"smoke": 12, "quick": 96, "full": 300}
DRAWS = {"smoke": 2, "quick": 8, "full": 32}
LEAST_SPEARMAN, MOST_LOG_RATIO = 0.9, 0.1
GATED = ("signal_rel", "post_norm")


def subjects(run: harness.Run, folder: Path) -> Iterator[Subject]:
    """Trained models one after the other. Smoke: one; quick: every model natural, one planted; full: all."""
    steps = STEPS[run.effort.name]
    world = AdsWorld("reference", WORLD_SEED).write(folder / "log", events=steps * BATCH + ROWS * GROUPS)
    plants = {"smoke": PLANTS[:1], "quick": PLANTS[:2], "full": PLANTS}[run.effort.name]
    for number, name in enumerate(["dcnv2"] if run.is_smoke else SHAPES):
        for plant in plants:
            yield subject(world, "adsworld", name, plant, steps, SEED + number)
    real = None if run.is_smoke else _movielens()
    if real is None:
        run.skip("loka_prediction", {"data": "movielens"}, "smoke" if run.is_smoke else "the data set is not here")
        return
    for number, name in enumerate(("mlp", "wukong") if not run.is_full else SHAPES):
        yield subject(real, "movielens", name, "none", steps, SEED + 100 + number)


def _movielens() -> EventLog | None:
    try:
        return movielens(None)
    except DataError as error:
        print(f"loka_prediction: {error}", file=sys.stderr)
        return None


def body(run: harness.Run) -> None:
    """Compare every subject's sites, then a gate per class, error and figure."""
    torch.set_num_threads(1)
    groups: dict[tuple[str, str, str], list[Compared]] = defaultdict(list)
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        for number, found in enumerate(subjects(run, Path(folder))):
            pairs = compared(found.probe, found.operands, DRAWS[run.effort.name], SEED + number)
            rows(run, found, pairs)
            for pair in pairs:
                groups[pair.direction, pair.error, pair.numerics].append(pair)
                if found.data == "movielens" and pair.direction == "forward":
                    groups["movielens", pair.error, pair.numerics].append(pair)
    for (direction, error, numerics), pairs in groups.items():
        slug = numerics if direction == "forward" else f"{direction}_{numerics}"
        bars(run, f"loka_prediction_{slug}_{error}", pairs, direction == "forward" and error in GATED)


def rows(run: harness.Run, found: Subject, pairs: Sequence[Compared]) -> None:
    """A line per site: predicted over measured in the forward, and each class's [predicted, measured, N(0, 1)]."""
    for path in dict.fromkeys(pair.site for pair in pairs):
        here = [pair for pair in pairs if pair.site == path]
        ratios = np.asarray([pair.predicted / pair.measured for pair in here if pair.direction == "forward"])
        errors = {
            f"{pair.direction} {pair.numerics} {pair.error}": [
                float(f"{value:.4g}") for value in (pair.predicted, pair.measured, pair.normal)
            ]
            for pair in here
        }
        site = found.probe.sites[path]
        shape = {"data": found.data, "plant": found.plant, "site": path, "n": site.n, "k": site.k}
        ratio = Interval(float(np.median(ratios)), float(ratios.min()), float(ratios.max()))
        run.row("loka_prediction", shape, found.name, ratio, {"errors": errors})


def bars(run: harness.Run, name: str, pairs: Sequence[Compared], is_gated: bool) -> None:
    """Rank correlation and median |log ratio| of predicted and of N(0, 1) errors with measured ones."""
    values = np.asarray([(pair.predicted, pair.measured, pair.normal) for pair in pairs])
    for slug, figure, bar in (("spearman", spearman, LEAST_SPEARMAN), ("log_ratio", log_ratio, MOST_LOG_RATIO)):
        normal = over_sites(values[:, 2], values[:, 1], figure)
        facts = {"sites": len(pairs), "normal": [normal.figure, normal.low, normal.high]}
        at_most, learned = slug == "log_ratio", over_sites(values[:, 0], values[:, 1], figure)
        run.measured(f"{name}_{slug}", learned, bar if is_gated else None, at_most, **facts)


def over_sites(
    a: np.ndarray, b: np.ndarray, figure: Callable[[Sequence[float], Sequence[float]], float]
) -> Interval:  # fmt: skip
    """``figure`` of two columns with its 95% bootstrap interval over rows."""
    generator = np.random.default_rng(0)
    picks = generator.integers(0, len(a), (RESAMPLES, len(a)))
    drawn = np.asarray([figure(a[pick], b[pick]) for pick in picks])
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return Interval(float(figure(a, b)), float(low), float(high))


if __name__ == "__main__":
    harness.main("loka_prediction", body)
