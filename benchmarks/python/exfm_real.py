"""Distillation on real streams: deskdrop (likes within a day), ml-100k (likes), hotel_bookings (cancelled within 30
days); ``--data NAME=FILE[,FILE]`` takes one of ``taobao_ad``, ``kuaivideo``, ``amazon_reviews`` from its raw files (or
a log of ``octavo data convert``) instead.

The teacher is a larger DCN-V2 that has every domain and every task from the first event on; it publishes some 60
snapshots, which speak a day later. Students are small, have one task and the events of their own domain (device
family, house; where there is none a third of the users), and begin when 40% of the events are over. All learn in one
pass, each label when it is known, and are scored before they learn: the last 60% of a student's events. Rates are each
method's own (``exfm_real_settings.json``; ``--tune`` finds them again): the best NE over the 30% of a student's events
before those that are scored; a set that has none there is tuned first. The data are the same for every seed; initial
weights, of the teacher too, are not. Intervals are 95%, over seeds and users (hotel: days). AUC: difference; NE: gain
in % of the NE without distillation; up is better. Finished seeds of the sets that are here are kept below
``build/loka_quality``: a run that was cut goes on.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import harness
import numpy as np
import pyarrow as pa
import torch
from harness import Interval
from loka_quality_runs import side_by_side

from octavo import models
from octavo.config import build_config
from octavo.data import SETS, DataError, EventLog, Label, Schema, convert, load_schema
from octavo.data.hashing import mix_bits
from octavo.evaluation import Progressive, auc, ne, paired
from octavo.exfm import DAS, Adapter, Distillation, Distiller, Student
from octavo.training import Trainer

SETTINGS = Path(__file__).resolve().with_name("exfm_real_settings.json")
HOUR_MS, DAY_MS = 3_600_000, 86_400_000
SEEDS = {"smoke": 2, "quick": 3, "full": 5}
LIMIT = {"smoke": 3_000, "quick": 200_000, "full": 1_000_000}
RESAMPLES = {"smoke": 100, "quick": 200, "full": 1000}
UPDATES, SNAPSHOTS, ROWS = 600, 60, 1 << 17
BEGINS, TUNED, SCORED = 0.4, 0.1, 0.4  # of the log; of a student's events
METHODS: dict[str, Distillation | None] = {
    "none": None,
    "one_head": Distillation("one_head"),
    "ah": Distillation(),
    "ah_sa": Distillation(adapter=Adapter("adds")),
}
COMPARED = {"one_head": ("one_head", "none"), "ah": ("ah", "none"), "ah_sa": ("ah_sa", "none"),
            "ah_over_one_head": ("ah", "one_head"), "sa_over_ah": ("ah_sa", "ah")}  # fmt: skip
SMALL = {"kind": "dcnv2", "embedding_dim": 8, "cross_layers": 1, "deep": [32], "norm": None, "activation": "relu"}
LARGE = {**SMALL, "embedding_dim": 32, "cross_layers": 2, "deep": [256, 128]}
GRID = {"table_lr": (0.005, 0.02, 0.1), "lr": (3e-3,)}  # on ml-100k 1e-3 and 1e-2 were worse for every method
TUNE_SEED = 100


@dataclass(frozen=True)
class Study:
    """One set. ``labels``: the teacher's, of which the students have ``task``; ``wait_hours``: after how long each is
    known. ``students``: by name the domain, or, with ``of_users``, the remainder of the user's hash, that is theirs."""

    name: str
    log: EventLog
    task: str
    labels: tuple[Label, ...]
    wait_hours: Mapping[str, float]
    students: Mapping[str, int]
    of_users: int = 0

    def student(self, name: str, folder: Path) -> EventLog:
        """A student's log: its own events from the day it begins on."""
        path = folder / f"log-{name}"
        if not path.exists():
            table = self.log.columns(self.log.column_names, round(BEGINS * len(self.log)))
            column = table[self.log.schema.user if self.of_users else self.log.schema.domain].to_numpy()
            if self.of_users:
                column = (mix_bits(column.astype(np.int64).view(np.uint64)) % np.uint64(self.of_users)).astype(np.int64)
            rows = table.filter(pa.array(column == self.students[name]))
            EventLog.write(path, self.log.schema, [rows])
        return EventLog(path).with_labels(next(label for label in self.labels if label.task == self.task))


def bundled(name: str, limit: int) -> Study:
    """A set that octavo reads. Raises DataError where its files are not there."""
    whole = SETS[name].open()
    log = whole.head(min(limit, len(whole)))
    if name == "movielens":
        return Study(name, log, "like", (Label("like"),), {}, {"users": 0}, of_users=3)
    if name == "deskdrop":
        labels = log.schema.labels
        students = {"windows": 0, "mac": 1}
        return Study(name, log, "like", labels, dict.fromkeys(log.schema.tasks, 24.0), students)
    labels = tuple(Label(f"cancel_{days}d", f"cancel_{days}d_delay") for days in (7, 30))
    waits = {"cancel_7d": 7 * 24.0, "cancel_30d": 30 * 24.0}
    return Study(name, log.with_labels(*labels), "cancel_30d", labels, waits, {"resort": 0, "city": 1})


def supplied(name: str, files: Sequence[str], limit: int, folder: Path) -> Study:
    """A set that the user brings: raw files of a schema that octavo ships, or its log."""
    schema, source = load_schema(name)
    if len(files) == 1 and (Path(files[0]) / "log.json").exists():
        log = EventLog(files[0])
    else:
        ever = 1 << 50  # ms: the files are sorted here
        log, _ = convert(_smaller(schema, limit), files, folder / name, source, max_lateness_ms=ever)
    labels = log.schema.labels
    return Study(name, log.head(min(limit, len(log))), labels[0].task, labels, {}, {"users": 0}, of_users=3)


def _smaller(schema: Schema, limit: int) -> Schema:
    """With tables that some dozens of snapshots may hold, of no more rows than there are events."""
    most = min(ROWS, 1 << (limit - 1).bit_length())
    sparse, sequences = (
        tuple(replace(f, rows=min(f.rows, most)) if f.encoding.startswith("hash") else f for f in features)
        for features in (schema.sparse, schema.sequences)
    )
    return replace(schema, sparse=sparse, sequences=sequences)


class Kept(Progressive):
    """What was predicted of each event of one task before it was learned, in event time."""

    def __init__(self, tasks: Sequence[str], task: str) -> None:
        super().__init__(tasks, window=1)
        self._task = task
        self._parts: list[tuple[torch.Tensor, ...]] = []

    def update(self, logits: Any, labels: Any, time: Any, weight: Any = None, user: Any = None, domain: Any = None,
               tasks: Sequence[str] | None = None) -> list[Any]:  # fmt: skip
        """Keep them; there are no windows."""
        if tasks is None or self._task in tasks:
            self._parts.append((logits[self._task], labels[self._task], user, time))
        return []

    def columns(self) -> tuple[np.ndarray, ...]:
        """Logits, labels, users, times of the events whose labels came, from the first on."""
        return tuple(torch.cat(column).numpy() for column in zip(*self._parts, strict=True))


@dataclass(frozen=True)
class Passed:
    """A student's events, or the teacher's: logits and labels (nan: never known) and what is resampled."""

    logits: np.ndarray
    labels: np.ndarray
    clusters: np.ndarray

    def part(self, begin: float, end: float, events: int) -> Passed:
        """Between two shares of ``events``, where the label is known."""
        rows = slice(round(begin * events), round(end * events))
        known = ~np.isnan(self.labels[rows])
        return Passed(*(column[rows][known] for column in (self.logits, self.labels, self.clusters)))

    def ne(self) -> float:
        return float(ne(self.logits, self.labels, logits=True))


def passed(
    study: Study, log: EventLog, shape: Mapping[str, Any], rates: Mapping[str, float], seed: int,
    objective: Callable[[models.Ranker], Distiller] | None = None, after: Callable[[Trainer], None] | None = None,
) -> Passed:  # fmt: skip
    """One pass of octavo's trainer, and what it had predicted."""
    tables = {"kind": "row_wise_adagrad", "lr": rates["table_lr"]}
    waits = {task: hours for task, hours in study.wait_hours.items() if task in log.schema.heads}
    config = build_config(
        {
            "model": {**shape, "seed": seed, "table_optimizer": tables},
            "training": {
                "batch_size": int(np.clip(len(log) // UPDATES, 16, 2048)), "holdout": 0.0, "labels": "known",
                "wait_hours": waits, "optimizer": {"kind": "adam", "lr": rates["lr"]}, "checkpoint_every": 0,
                "seed": seed,
            },
        }
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as run:
        trainer = Trainer(config, log, run, objective=objective)
        kept = trainer.progressive = Kept(trainer.tasks, study.task)
        for _ in trainer.run():
            if after is not None:
                after(trainer)
    logits, labels, users, times = kept.columns()
    clusters = users if log.schema.user is not None else times // DAY_MS
    return Passed(logits.astype(np.float64), labels.astype(np.float64), clusters)


def service(study: Study, rates: Mapping[str, float], seed: int, folder: Path) -> DAS:
    """A service whose teacher has gone through the whole log, and been asked about the students' events."""
    das = DAS.create(folder / f"das-{seed}", study.log.schema)
    das.ingest({name: study.student(name, folder) for name in study.students})
    every = max(1, min(len(study.log) // 16, UPDATES) // SNAPSHOTS)

    def publish(trainer: Trainer) -> None:
        if trainer.step % every == 0:
            until = int(trainer.log.read(trainer.position - 1, trainer.position).time)
            das.publish("fm", trainer.model, trainer.config.model, until, DAY_MS)

    passed(study, study.log, LARGE, rates, seed, after=publish)
    for _ in das.annotate("fm"):
        pass
    return das


def taught(study: Study, das: DAS, log: EventLog, method: str, rates: Mapping[str, float], seed: int) -> Passed:
    """A student's pass."""
    chosen = METHODS[method]
    if chosen is None:
        return passed(study, log, SMALL, rates, seed)
    soft = {"fm": das.soft_labels("fm")}

    def objective(model: models.Ranker) -> Distiller:
        return Distiller(Student(model, {"fm": chosen}, seed=seed), soft, das.id)

    return passed(study, log, SMALL, rates, seed, objective)


def tuned(study: Study, folder: Path, run: harness.Run) -> dict[str, dict[str, float]]:
    """Rates of the teacher, then of each method, by NE before the scored events."""
    points = [dict(zip(GRID, values, strict=True)) for values in itertools.product(*GRID.values())]
    points = points[:2] if run.is_smoke else points
    head = study.log.head(round(BEGINS * len(study.log)))
    of_teacher = [passed(study, head, LARGE, rates, TUNE_SEED).part(TUNED, 1.0, len(head)).ne() for rates in points]
    chosen = {"teacher": points[int(np.argmin(of_teacher))]}
    das = service(study, chosen["teacher"], TUNE_SEED, folder)
    for method in METHODS:
        scores = []
        for rates in points:
            each = []
            for name in study.students:
                log = study.student(name, folder)
                begun = log.head(round(SCORED * len(log)))
                each.append(taught(study, das, begun, method, rates, TUNE_SEED).part(TUNED / SCORED, 1.0, len(begun)))
            scores.append(float(np.mean([one.ne() for one in each])))
            found = Interval(scores[-1], scores[-1], scores[-1])
            run.row("exfm_real tune", {"set": study.name, **rates}, method, found, {})
        chosen[method] = points[int(np.argmin(scores))]
    return chosen


def passes(name: str, files: Sequence[str], limit: int, seed: int, rates: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """One seed of one set: by student the labels, what is resampled and the share with an answer; each method's
    logits."""
    found: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        study = supplied(name, files, limit, folder) if files else bundled(name, limit)
        das = service(study, rates["teacher"], seed, folder)
        for student in study.students:
            log = study.student(student, folder)
            said = das.soft_labels("fm")(log.read(round(SCORED * len(log)), len(log)))
            found[f"{student}/answered"] = np.array(float((said.version > 0).float().mean()))
            for method in METHODS:
                one = taught(study, das, log, method, rates[method], seed).part(SCORED, 1.0, len(log))
                found |= {f"{student}/{key}": getattr(one, key) for key in ("labels", "clusters")}
                found[f"{student}/{method}"] = one.logits
    return found


def figures_of(run: harness.Run, study: Study, seeds: list[dict[str, np.ndarray]]) -> None:
    """Every student of a set."""
    for name in study.students:
        labels, clusters, answered = (
            [one[f"{name}/{key}"] for one in seeds] for key in ("labels", "clusters", "answered")
        )
        found = {
            method: [Passed(one[f"{name}/{method}"], y, c) for one, y, c in zip(seeds, labels, clusters, strict=True)]
            for method in METHODS
        }
        report(run, study, name, found, float(np.mean(answered)))


def report(run: harness.Run, study: Study, student: str, found: dict[str, list[Passed]], answered: float) -> None:
    """Rows of one student's methods, and its differences."""
    first = found["none"]
    labels, clusters = [one.labels for one in first], [one.clusters for one in first]
    resamples = RESAMPLES[run.effort.name]
    plain = float(np.mean([one.ne() for one in first]))
    for method, seeds in found.items():
        each = [one.ne() for one in seeds]
        facts = {"auc": round(float(np.mean([auc(one.logits, one.labels) for one in seeds])), 4), "answered": answered}
        shape = {"set": study.name, "student": student, "events": len(labels[0]), "task": study.task}
        run.row("exfm_real", shape, method, Interval(float(np.mean(each)), min(each), max(each)), facts)
    for name, (mine, other) in COMPARED.items():
        pair = [[one.logits for one in found[method]] for method in (mine, other)]
        loss = paired("ne", pair[1], pair[0], labels, clusters, resamples=resamples)
        gain = Interval(*(100 * v / plain for v in (loss.estimate, loss.low, loss.high)))
        run.measured(f"exfm_real_{study.name}_{student}_{name}_ne", gain, ne_without=plain)
        area = paired("auc", *pair, labels, clusters, resamples=resamples)
        run.measured(f"exfm_real_{study.name}_{student}_{name}_auc", Interval(area.estimate, area.low, area.high))


def studies(run: harness.Run, given: Mapping[str, Sequence[str]], folder: Path) -> list[Study]:
    """The sets that are here, or those that were given."""
    limit = LIMIT[run.effort.name]
    if given:
        return [supplied(name, files, limit, folder) for name, files in given.items()]
    found = []
    for name in ("movielens", "deskdrop", "hotel_bookings")[: 2 if run.is_smoke else 3]:
        try:
            found.append(bundled(name, limit))
        except DataError as error:
            print(f"exfm_real: {name} left out: {error}", file=sys.stderr)
            run.skip("exfm_real", {"set": name}, str(error))
    return found


def opened(run: harness.Run, given: Mapping[str, Sequence[str]]) -> Iterator[tuple[Study, Path]]:
    """Every set, with a folder for its students' logs and services."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        for study in studies(run, given, Path(temporary)):
            folder = Path(temporary) / f"{study.name}-runs"
            folder.mkdir()
            yield study, folder


def body(run: harness.Run, given: Mapping[str, Sequence[str]]) -> None:
    """Rates first, where a set has none; then every seed's teacher and students, and the figures of every set."""
    settings, effort = json.loads(SETTINGS.read_text(encoding="utf-8")), run.effort.name
    made = [(study, settings.get(study.name) or tuned(study, folder, run)) for study, folder in opened(run, given)]
    todo = [
        (
            passes,
            {
                "name": study.name,
                "files": given.get(study.name, ()),
                "limit": LIMIT[effort],
                "seed": seed,
                "rates": rates,
            },
        )
        for study, rates in made
        for seed in range(SEEDS[effort])
    ]
    found = iter(side_by_side(todo, keep=not run.is_smoke and not given))
    for study, _ in made:
        figures_of(run, study, [next(found) for _ in range(SEEDS[effort])])


def tune(run: harness.Run, given: Mapping[str, Sequence[str]]) -> None:
    """Write these sets' part of ``exfm_real_settings.json`` anew."""
    settings = json.loads(SETTINGS.read_text(encoding="utf-8"))
    for study, folder in opened(run, given):
        settings[study.name] = tuned(study, folder, run)
        SETTINGS.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="exfm_real.py", add_help=False)
    parser.add_argument("--data", action="append", default=[], metavar="NAME=FILE[,FILE]")
    known, rest = parser.parse_known_args(argv)
    given = {}
    for entry in known.data:
        name, _, files = entry.partition("=")
        if not name or not files:
            parser.error(f"--data: found {entry!r}, expected NAME=FILE[,FILE]")
        given[name] = files.split(",")
    harness.main("exfm_real", functools.partial(body, given=given), rest, tune=functools.partial(tune, given=given))


if __name__ == "__main__":
    main()
