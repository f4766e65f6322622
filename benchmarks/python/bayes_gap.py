"""How far the best model stays from the truth: AdsWorld ``reference``, AUC of clicks, for growing logs.

Each model makes one streaming pass over the log's first events and is scored on those that follow, never trained on;
the truth is scored on the same events with the same labels. The gap is the truth's AUC minus the model's, with a paired
bootstrap over users. Settings were found by ``--tune`` (a grid on 1 million events of another world) and are committed.
"""

from __future__ import annotations

import itertools
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import harness
import numpy as np
from harness import Interval

from octavo.config import build_config
from octavo.data import AdsWorld, EventLog, bayes_optimum
from octavo.evaluation import auc, paired
from octavo.training import Trainer
from octavo.training.slices import predict

GATE = 0.01
HELD_OUT = {"smoke": 1_000, "quick": 100_000, "full": 250_000}
# Events to train on, and which models: Wukong takes 4 to 6 times as long as the others.
SIZES: dict[str, dict[int, tuple[str, ...]]] = {
    "smoke": {2_000: ("dlrm", "dcnv2", "wukong")},
    "quick": {250_000: ("dlrm", "dcnv2", "wukong"), 1_000_000: ("dlrm", "dcnv2"), 4_000_000: ("dlrm",)},
    "full": {1_000_000: ("dlrm", "dcnv2", "wukong"), 4_000_000: ("dlrm", "dcnv2"), 16_000_000: ("dlrm",)},
}
MODELS: dict[str, dict[str, Any]] = {
    "dlrm": {"kind": "dlrm", "embedding_dim": 16, "bottom": [64], "top": [64, 32]},
    "dcnv2": {"kind": "dcnv2", "embedding_dim": 16, "cross_layers": 2, "deep": [64, 32]},
    "wukong": {"kind": "wukong", "embedding_dim": 16, "layers": 2, "top": [64, 32]},
}
TUNED = {"dlrm": (0.1, 0.003), "dcnv2": (0.3, 0.001), "wukong": (0.1, 0.003)}  # learning rates of tables, of the rest
GRID = ((0.03, 0.1, 0.3), (0.001, 0.003))


def train(
    log: EventLog, name: str, events: int, held_out: int, rates: tuple[float, float], run_dir: Path
) -> tuple[dict[str, Any], Interval]:
    """One pass, then the held-out events: facts, and the gap with its interval."""
    tables, dense = rates
    config = build_config(
        {
            "name": "bayes-gap",
            "data": {"source": "log", "path": str(log.path)},
            "model": {**MODELS[name], "table_optimizer": {"lr": tables}},
            "training": {
                "batch_size": 1024, "holdout": held_out / (events + held_out), "optimizer": {"lr": dense},
                "window": events, "checkpoint_every": 0, "by_domain": False,
            },
        }
    )  # fmt: skip
    trainer = Trainer(config, log.head(events + held_out), run_dir)
    start = time.perf_counter()
    for _ in trainer.run():
        pass
    seconds = time.perf_counter() - start
    begin, end = trainer.train_end, len(trainer.log)
    found = predict(trainer.model, trainer.log, begin, end)
    truth = trainer.log.columns(["_p_click"], begin, end)["_p_click"].to_numpy()
    z, labels = found.logits["click"], found.labels["click"]
    found_gap = paired("auc", np.log(truth / (1 - truth)), z, labels, found.user, resamples=200)
    gap = Interval(found_gap.estimate, found_gap.low, found_gap.high)
    facts = {
        "events": trainer.train_end,
        "auc": round(auc(z, labels), 5),
        "truth_auc": round(auc(truth, labels), 5),
        "bayes_auc": round(bayes_optimum(truth).auc, 5),
        "held_out": end - begin,
        "rows_per_s": round(trainer.train_end / seconds),
        "table_lr": tables,
        "lr": dense,
    }
    return facts, gap


def body(run: harness.Run) -> None:
    """Every size's models; the best at each size makes the curve."""
    sizes, held_out = SIZES[run.effort.name], HELD_OUT[run.effort.name]
    best: list[Interval] = []
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        log = AdsWorld("reference", 0).write(Path(folder) / "log", events=max(sizes) + held_out)
        for events, names in sizes.items():
            gaps = []
            for name in names:
                facts, gap = train(log, name, events, held_out, TUNED[name], Path(folder) / f"{name}-{events}")
                run.row("bayes_gap", {"events": events}, name, gap, facts)
                gaps.append(gap)
            best.append(min(gaps, key=lambda gap: gap.figure))
    run.measured("bayes_gap", best[-1], GATE, at_most=True, events=max(sizes))
    if len(best) > 1:
        falls = [Interval(a.figure - b.figure, a.low - b.high, a.high - b.low) for a, b in itertools.pairwise(best)]
        run.measured("bayes_gap_shrinks", min(falls, key=lambda fall: fall.figure), 0.0)


def tune(run: harness.Run) -> None:
    """The grid for every model on another world."""
    with tempfile.TemporaryDirectory() as folder:
        log = AdsWorld("reference", 1).write(Path(folder) / "log", events=1_100_000)
        for name, tables, dense in itertools.product(MODELS, *GRID):
            facts, gap = train(
                log, name, 1_000_000, 100_000, (tables, dense), Path(folder) / f"{name}-{tables}-{dense}"
            )
            run.row("bayes_gap tune", {"table_lr": tables, "lr": dense}, name, gap, facts)


if __name__ == "__main__":
    harness.main("bayes_gap", body, tune=tune)
