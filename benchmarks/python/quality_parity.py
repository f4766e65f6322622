"""Ranking quality against FuxiCTR: DeepFM and DCNv2 on MovieLens-100K (each user's last 20%) and Deskdrop (the last 20%
in time, four outcomes). Same rows, ids, embedding size, batch size, epochs with early stopping on both sides, and the
rates, optimizer and initial values of layers that FuxiCTR has.

FuxiCTR runs in a virtual environment of its own, ``build/peers/fuxictr``; the quick and the full run make it where it
is absent (``--smoke`` does not and says so). ``--tune`` finds ``quality_settings.json`` again: for each outcome, model
and side the settings with the smallest NE on the last tenth of the training rows, in the mean of several seeds.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from environments import FUXICTR
from harness import Interval

from octavo.config import build_config
from octavo.data import SETS, DataError, EventLog, Label, Schema, encode_table
from octavo.evaluation import auc, ne, paired
from octavo.training.slices import predict
from octavo.training.trainer import Trainer

HERE = Path(__file__).resolve()
SETTINGS = HERE.with_name("quality_settings.json")
SEEDS = {"smoke": 2, "quick": 5, "full": 10}
# FuxiCTR's early stopping also takes a tenth of the learning rate after every epoch without a better validation; its
# clipping of gradients at a norm of 10 has no counterpart for tables that train in backward.
BATCH, EPOCHS, PATIENCE, VALIDATION, TEST = 256, 20, 2, 0.1, 0.2
FEATURES = {
    "movielens": ("user", "item", "gender", "occupation", "zip_region"),
    "deskdrop": ("person", "content", "device", "country", "hour"),
}
# The sets' READMEs: one-hot logistic regression on the same split.
FLOORS = {
    ("movielens", "like"): 0.780,
    ("deskdrop", "like"): 0.740,
    ("deskdrop", "bookmark"): 0.752,
    ("deskdrop", "follow"): 0.721,
    ("deskdrop", "comment"): 0.745,
}
MODELS = ("deepfm", "dcnv2")
GRID = {  # of both sides
    "lr": [1e-3, 3e-3],
    "embedding_regularizer": [1e-4, 1e-3, 1e-2, 3e-2, 1e-1, 3e-1],
    "dropout": [0.0, 0.2],
}
TUNE_SEEDS, BEST = [99, 100, 101], 5  # every point with the first seed, the best ones with all; the runs' are others
STREAM = {"kind": "row_wise_adagrad", "lr": 0.02}  # the tables' optimizer of the streaming pass, not tuned
COMMON = {"embedding_dim": 16, "deep": [64, 32], "cross_layers": 2}


@dataclass(frozen=True)
class Problem:
    """One outcome of one set: its events in order (fit, validation, test), of which the first ``fit_end`` are trained
    on and those from ``train_end`` on are held out."""

    set: str
    task: str
    schema: Schema
    table: pa.Table
    fit_end: int
    train_end: int

    def inner(self) -> Problem:
        """The same without the test rows: what settings are chosen on. Validation rows are held out."""
        table = self.table.slice(0, self.train_end)
        return Problem(self.set, self.task, self.schema, table, round(self.fit_end * (1 - VALIDATION)), self.fit_end)

    def held_out(self, column: str) -> np.ndarray:
        """A column of the held-out rows."""
        return np.asarray(self.table.column(column))[self.train_end :]


def problem(name: str, task: str) -> Problem:
    """MovieLens: each user's last 20% are held out and the 10% before them validate. Deskdrop: the same in time."""
    log = SETS[name].open()
    schema = log.schema
    kept = Schema(
        sparse=tuple(next(f for f in schema.sparse if f.name == wanted) for wanted in FEATURES[name]),
        labels=(Label(task),),
        user=schema.user,
        item=schema.item,
    )
    table = log.columns(kept.columns()).combine_chunks()
    for at, field in enumerate(table.schema):  # a word that is not known is the unknown word on both sides
        if pa.types.is_string(field.type):
            table = table.set_column(at, field, pc.fill_null(table.column(at), ""))
    valid = 1 - TEST - VALIDATION * (1 - TEST)
    if name == "movielens":
        user = np.asarray(table.column("user"))
        order = np.argsort(user, kind="stable")
        _, first, count = np.unique(user[order], return_index=True, return_counts=True)
        place = np.empty(len(user))
        place[order] = (np.arange(len(user)) - np.repeat(first, count)) / np.repeat(count, count)
    else:
        place = np.arange(len(table)) / len(table)
    phase = (place >= valid).astype(np.int64) + (place >= 1 - TEST)
    known = ~np.isnan(np.asarray(table.column(task).cast(pa.float64()).fill_null(np.nan)))
    time = np.asarray(table.column("time"))
    shifted = time + phase * (time[-1] - time[0] + 1)
    rows = np.argsort(shifted, kind="stable")
    rows = rows[known[rows]]
    table = table.set_column(table.column_names.index("time"), "time", pa.array(shifted)).take(pa.array(rows))
    ends = np.searchsorted(phase[rows], [1, 2])
    return Problem(name, task, kept, table, int(ends[0]), int(ends[1]))


def ours(
    task: Problem, model: str, settings: dict[str, Any], seed: int, folder: Path, stream: bool = False
) -> np.ndarray:
    """octavo's logits for the held-out rows; ``stream``: after one pass in event time over all rows before them."""
    path = folder / f"{task.set}-{task.task}-{len(task.table)}"
    log = EventLog(path) if path.exists() else EventLog.write(path, task.schema, [task.table])
    decay = settings["embedding_regularizer"]
    dense = {"kind": "adam", "lr": settings["lr"], "weight_decay": decay, "lazy": False}  # as FuxiCTR's
    common = {key: value for key, value in COMMON.items() if key != "cross_layers" or model == "dcnv2"}
    epochs = {"validation": 1 - task.fit_end / task.train_end, "epochs": EPOCHS, "patience": PATIENCE, "shuffle": True,
              "plateau_factor": 0.1}  # fmt: skip
    values = {
        "model": {"kind": model, "seed": seed, **common, "norm": None, "activation": "relu", "layer_init": "xavier",
                  "dropout": settings["dropout"], "table_optimizer": STREAM if stream else dense},
        "training": {
            "batch_size": BATCH,
            "holdout": 1 - task.train_end / len(log),
            "optimizer": {"kind": "adam", "lr": settings["lr"]},
            "checkpoint_every": 0,
            "seed": seed,
            "window": 1 << 30,
            **({} if stream else epochs),
        },
    }  # fmt: skip
    with tempfile.TemporaryDirectory(dir=folder) as run:
        trainer = Trainer(build_config(values), log, run)
        for _ in trainer.run():
            pass
        found = predict(trainer.model, log, trainer.train_end, len(log))
    return found.logits[task.task].double().numpy()


class Theirs:
    """FuxiCTR at work in its own environment: one fit per (problem, model, settings, seed), one after the other."""

    def __init__(self, jobs: list[tuple[Problem, str, dict[str, Any], int]], folder: Path) -> None:
        self._jobs = _described(jobs, folder)
        (folder / "jobs.json").write_text(json.dumps(self._jobs), encoding="utf-8")
        command = [str(FUXICTR.python), str(HERE.with_name("fuxictr_peer.py")), str(folder / "jobs.json")]
        self._log = folder / "fuxictr.log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)

    def logits(self) -> list[np.ndarray]:
        """For the held-out rows, one array per job."""
        if self._process.wait():
            raise RuntimeError(f"fuxictr: {self._log.read_text()[-2000:]}")
        p = [np.clip(np.load(job["out"]).astype(np.float64), 1e-7, 1 - 1e-7) for job in self._jobs]
        return [np.log(x) - np.log1p(-x) for x in p]


def _described(jobs: list[tuple[Problem, str, dict[str, Any], int]], folder: Path) -> list[dict[str, Any]]:
    """The jobs as ``fuxictr_peer.py`` reads them, their data written once."""
    described = []
    for number, (task, model, settings, seed) in enumerate(jobs):
        path = folder / f"{task.set}-{task.task}-{len(task.table)}.npz"
        if not path.exists():
            batch = encode_table(task.schema, task.table)
            ids = batch.sparse.values.view(len(task.schema.sparse), -1).T.contiguous().numpy()
            sizes = [feature.rows for feature in task.schema.sparse]
            np.savez(path, ids=ids, label=batch.labels[task.task].numpy(), sizes=sizes, fit_end=task.fit_end,
                     train_end=task.train_end)  # fmt: skip
        described.append({
            "data": str(path), "model": model, "settings": {**COMMON, **settings, "norm": False}, "seed": seed,
            "epochs": EPOCHS, "patience": PATIENCE, "batch_size": BATCH, "out": str(folder / f"fuxictr-{number}.npy"),
        })  # fmt: skip
    return described


def combinations() -> list[dict[str, Any]]:
    """Every point of the grid."""
    return [dict(zip(GRID, values)) for values in itertools.product(*GRID.values())]


def tune(outcomes: list[str]) -> None:
    """Write ``quality_settings.json``: these outcomes (``deskdrop-like``) of it, or all."""
    if reason := FUXICTR.missing(True, HERE.name):
        raise SystemExit(reason)
    torch.set_num_threads(1)
    chosen: dict[str, Any] = json.loads(SETTINGS.read_text(encoding="utf-8"))
    for name, outcome in FLOORS:
        if outcomes and f"{name}-{outcome}" not in outcomes:
            continue
        inner = problem(name, outcome).inner()
        for model in MODELS:
            points = {side: list(range(len(combinations()))) for side in ("octavo", "fuxictr")}
            found: dict[str, dict[int, list[float]]] = {side: {} for side in points}
            for seeds in (TUNE_SEEDS[:1], TUNE_SEEDS[1:]):
                for side, scores in _scores(inner, model, points, seeds).items():
                    for at, values in scores.items():
                        found[side].setdefault(at, []).extend(values)
                    points[side] = sorted(scores, key=lambda at: found[side][at][0])[:BEST]
            for side, scores in found.items():
                means = {at: float(np.mean(values)) for at, values in scores.items() if len(values) == len(TUNE_SEEDS)}
                best = min(means, key=lambda at: means[at])
                chosen.setdefault(name, {}).setdefault(outcome, {}).setdefault(model, {})[side] = combinations()[best]
                tried = [np.round(scores[at], 4).tolist() for at in sorted(means, key=lambda at: means[at])]
                print(name, outcome, model, side, combinations()[best], f"NE {means[best]:.4f} of {tried}", flush=True)
            SETTINGS.write_text(json.dumps(chosen, indent=1) + "\n", encoding="utf-8")


def _scores(
    task: Problem, model: str, points: dict[str, list[int]], seeds: list[int]
) -> dict[str, dict[int, list[float]]]:
    """NE of the held-out rows with every seed, at these points of the grid for each side."""
    label, grid = task.held_out(task.task), combinations()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        jobs = {
            side: [(task, model, grid[at], seed) for at in wanted for seed in seeds] for side, wanted in points.items()
        }
        peer = Theirs(jobs["fuxictr"], folder)
        logits = {"octavo": [ours(*job, folder) for job in jobs["octavo"]], "fuxictr": peer.logits()}
    scores = {side: [ne(z, label, logits=True) for z in rows] for side, rows in logits.items()}
    each = len(seeds)
    return {
        side: {at: scores[side][i * each : (i + 1) * each] for i, at in enumerate(wanted)}
        for side, wanted in points.items()
    }


def body(run: harness.Run) -> None:
    """Fit everything; one gate per model, its floor, and what the streaming pass reaches."""
    absent = FUXICTR.missing(not run.is_smoke, HERE.name)
    try:
        problems = [problem(name, task) for name, task in (list(FLOORS)[:2] if run.is_smoke else FLOORS)]
    except DataError as error:
        absent, problems = str(error), []
    if absent:
        print(absent, file=sys.stderr)
    settings = json.loads(SETTINGS.read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    seeds = range(SEEDS[run.effort.name])
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for model in MODELS[:1] if run.is_smoke else MODELS:
            if run.is_smoke:
                problems = [
                    Problem(p.set, p.task, p.schema, p.table.slice(p.fit_end - 4000), 4000, 5000) for p in problems
                ]
            cases = [(task, seed) for task in problems for seed in seeds]
            if not cases:
                run.bars.append(_missing(f"quality_parity_{model}_auc", "data"))
                continue
            jobs = [(task, model, settings[task.set][task.task][model]["fuxictr"], seed) for task, seed in cases]
            peer = None if absent else Theirs(jobs, folder)
            mine = [
                ours(task, model, settings[task.set][task.task][model]["octavo"], seed, folder) for task, seed in cases
            ]
            streamed = [
                ours(task, model, settings[task.set][task.task][model]["octavo"], seed, folder, True)
                for task, seed in cases
            ]
            report(run, model, cases, mine, streamed, None if peer is None else peer.logits())


def report(
    run: harness.Run, model: str, cases: list[tuple[Problem, int]], mine: list[np.ndarray], streamed: list[np.ndarray],
    peer: list[np.ndarray] | None,
) -> None:  # fmt: skip
    """The bars of one model."""
    labels = [task.held_out(task.task).astype(np.float64) for task, _ in cases]
    users = [task.held_out(task.schema.user or "user") for task, _ in cases]
    resamples = {"smoke": 100, "quick": 200, "full": 1000}[run.effort.name]

    def by_outcome(logits: list[np.ndarray]) -> dict[str, dict[str, float]]:
        rows: dict[str, list[tuple[float, float]]] = {}
        for (task, _), z, y in zip(cases, logits, labels):
            rows.setdefault(f"{task.set} {task.task}", []).append((auc(z, y), ne(z, y, logits=True)))
        return {
            key: {"auc": float(np.mean(v, 0)[0]), "ne": float(np.mean(v, 0)[1]), "auc_low": float(np.min(v, 0)[0]),
                  "auc_high": float(np.max(v, 0)[0])}
            for key, v in rows.items()
        }  # fmt: skip

    own, stream = by_outcome(mine), by_outcome(streamed)
    if peer is None:
        run.bars.append(_missing(f"quality_parity_{model}_auc", "fuxictr"))
    else:
        other = by_outcome(peer)
        gap = paired("auc", mine, peer, labels, users, resamples=resamples)
        spread = float(np.mean([row["auc"] - row["auc_low"] for row in other.values()]))
        run.measured(f"quality_parity_{model}_auc", Interval(gap.estimate, gap.low, gap.high), -0.005,
                     fuxictr_spread=spread, octavo=own, fuxictr=other)  # fmt: skip
        run.bars[-1]["holds"] = bool(gap.low >= -0.005 or gap.estimate >= -spread)
        loss = paired("ne", mine, peer, labels, users, resamples=resamples)
        run.measured(f"quality_parity_{model}_ne", Interval(loss.estimate, loss.low, loss.high))
        floors = [other[f"{s} {t}"]["auc"] - floor for (s, t), floor in FLOORS.items() if f"{s} {t}" in other]
        run.measured(f"quality_parity_{model}_fuxictr_over_floor", Interval(min(floors), min(floors), max(floors)))
    floors = [own[f"{s} {t}"]["auc"] - floor for (s, t), floor in FLOORS.items() if f"{s} {t}" in own]
    run.measured(f"quality_parity_{model}_over_floor", Interval(min(floors), min(floors), max(floors)), 0.0)
    gap = paired("auc", streamed, mine, labels, users, resamples=resamples)
    run.measured(
        f"quality_parity_{model}_stream_minus_epochs_auc", Interval(gap.estimate, gap.low, gap.high), stream=stream
    )


def _missing(name: str, peer: str) -> dict[str, Any]:
    return {
        "name": name,
        "figure": None,
        "low": None,
        "high": None,
        "bar": -0.005,
        "holds": False,
        "did_not_run": [peer],
    }


if __name__ == "__main__":
    if "--tune" in sys.argv[1:]:
        tune([name for name in sys.argv[1:] if name != "--tune"])
    else:
        harness.main("quality_parity", body)
