"""Runs of ``octavo train`` that are teachers or students: what the configuration's sections ask for."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from octavo import models
from octavo.config import ConfigError, DistillationConfig, PublishConfig, RunConfig, TeacherConfig, config_hash
from octavo.data import EventLog
from octavo.exfm.das import DAS
from octavo.exfm.distillation import Adapter, Distillation
from octavo.exfm.distiller import Distiller
from octavo.exfm.student import Student
from octavo.ops.dispatch import Plan
from octavo.report import Results
from octavo.store import Version
from octavo.training import Objective, Trainer, open_log
from octavo.training import run as run_training
from octavo.training.checkpoint import Checkpoint
from octavo.training.evaluate import config_of, load_trained
from octavo.training.run import Listener

_HOUR_MS = 3_600_000
_WAIT_S = 0.2


def run(
    config: RunConfig, run_dir: str | Path, fresh: bool = False, listen: Listener | None = None, resume: bool = False
) -> Results | None:
    """:func:`octavo.training.run`, and what ``distillation`` and ``publish`` say besides.

    A student's log is ingested and its teachers are asked first, in this process; what others have asked is not asked
    again. A teacher publishes while it trains; a run that goes on publishes nothing twice.
    """
    tell: Listener = listen or (lambda stage, done, total, note: None)
    objective = watch = None
    if config.distillation is not None:
        Path(run_dir).mkdir(parents=True, exist_ok=True)
        objective = _objective(config.distillation, config.name, open_log(config.data, Path(run_dir)), tell)
    if config.publish is not None:
        Path(run_dir).mkdir(parents=True, exist_ok=True)
        delay = round(config.publish.delay_hours * _HOUR_MS)
        expect_no_future(config, open_log(config.data, Path(run_dir)), delay)
        watch = _publisher(config.publish, config_hash(config), delay)
    return run_training(config, run_dir, fresh, listen, resume, objective, watch)


def publish_run(
    path: str | Path, run_dir: Path, teacher: str, delay_ms: int = 0, step: int | None = None, embeddings: bool = False
) -> Version:
    """Publish a trained run's checkpoint (None: the newest) as a teacher's next version; makes the service where there
    is none. Raises :class:`octavo.training.CheckpointError` and :class:`octavo.config.ConfigError` for a run that is
    none."""
    config = config_of(run_dir)
    log = open_log(config.data, run_dir)
    model, found = load_trained(run_dir, config, log, step)
    meta = Checkpoint(run_dir / "checkpoints" / f"step-{found:08d}").meta
    events = min(len(log), config.data.limit or len(log))
    in_time = meta["epoch"] == 0 and not config.training.shuffle
    trained = meta["position"] if in_time else events - round(config.training.holdout * events)
    expect_no_future(config, log, delay_ms)
    plan = None if meta["plan"] is None else Plan.from_json(meta["plan"])
    until = int(log.read(trained - 1, trained).time)
    das = DAS.create(path, log.schema)
    return das.publish(teacher, model, config.model, until, delay_ms, embeddings, plan, config_hash(config))


def expect_no_future(config: RunConfig, log: EventLog, delay_ms: int) -> None:
    """Raises ConfigError for a teacher that may speak of a moment whose later outcomes it has learned from: with
    ``labels: final`` it learns an outcome at its event, long before it has come."""
    if config.training.labels == "known":
        return
    for label in log.schema.labels:
        if label.delay is None:
            continue
        longest = max(label.windows_ms, default=None)
        if longest is None or label.anchor is not None or delay_ms < longest:
            raise ConfigError(
                f"publish: outcomes of {label.task!r} come late, and with training.labels=final the teacher learns "
                "them at their event: it would tell students of the future; set training.labels=known with "
                "training.wait_hours, or give all late tasks windows and a delay as long as the longest"
            )


def distillation_of(chosen: TeacherConfig) -> Distillation:
    """A teacher's settings from its section."""
    adapter = None if chosen.adapter is None else Adapter(**chosen.adapter.model_dump())
    return Distillation(**chosen.model_dump(exclude={"adapter"}), adapter=adapter)


def _objective(
    chosen: DistillationConfig, name: str, log: EventLog, tell: Listener
) -> Callable[[models.Ranker], Objective]:
    das = DAS(chosen.das)
    tell("adding the log to the service", 0, 1, "")
    das.ingest({chosen.student or name: log})
    for teacher in chosen.teachers:
        while True:
            for _ in das.annotate(teacher):
                progress = das.progress(teacher)
                tell(f"asking {teacher}", progress.parts, progress.of, "")
            progress = das.progress(teacher)
            if progress.parts == progress.of:
                break
            tell(f"waiting for others who ask {teacher}", progress.parts, progress.of, "")
            time.sleep(_WAIT_S)  # their parts are taken over where they died
    soft = {teacher: das.soft_labels(teacher) for teacher in chosen.teachers}
    teachers = {teacher: distillation_of(of) for teacher, of in chosen.teachers.items()}

    def objective(model: models.Ranker) -> Distiller:
        return Distiller(Student(model, teachers, chosen.tasks), soft, das.id)

    return objective


def _publisher(chosen: PublishConfig, run: str, delay_ms: int) -> Callable[[Trainer], None]:
    def publish(trainer: Trainer) -> None:
        if trainer.step % chosen.every:
            return
        das = DAS.create(chosen.das, trainer.log.schema)
        until = int(trainer.log.read(trainer.position - 1, trainer.position).time)
        versions = das.lineage(chosen.teacher).versions
        if any(version.run == run and version.trained_until >= until for version in versions):
            return  # published before the run was cut
        das.publish(
            chosen.teacher, trainer.model, trainer.config.model, until, delay_ms, chosen.embeddings, trainer.plan, run
        )

    return publish
