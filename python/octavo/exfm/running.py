"""Runs of ``octavo train`` that are teachers or students: what the configuration's sections ask for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from octavo import models
from octavo.config import DistillationConfig, PublishConfig, RunConfig, TeacherConfig
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
        watch = _publisher(config.publish)
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
    trained = meta["position"] if meta["epoch"] == 0 else events - round(config.training.holdout * events)
    plan = None if meta["plan"] is None else Plan.from_json(meta["plan"])
    until = int(log.read(trained - 1, trained).time)
    das = DAS.create(path, log.schema)
    return das.publish(teacher, model, config.model, until, delay_ms, embeddings, plan)


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
        for _ in das.annotate(teacher):
            progress = das.progress(teacher)
            tell(f"asking {teacher}", progress.parts, progress.of, "")
    soft = {teacher: das.soft_labels(teacher) for teacher in chosen.teachers}
    teachers = {teacher: distillation_of(of) for teacher, of in chosen.teachers.items()}

    def objective(model: models.Ranker) -> Distiller:
        return Distiller(Student(model, teachers, chosen.tasks), soft)

    return objective


def _publisher(chosen: PublishConfig) -> Callable[[Trainer], None]:
    def publish(trainer: Trainer) -> None:
        if trainer.step % chosen.every or trainer.epoch:
            return
        das = DAS.create(chosen.das, trainer.log.schema)
        until = int(trainer.log.read(trainer.position - 1, trainer.position).time)
        versions = das.lineage(chosen.teacher).versions
        if versions and versions[-1].trained_until >= until:  # published before the run was cut
            return
        das.publish(
            chosen.teacher, trainer.model, trainer.config.model, until, round(chosen.delay_hours * _HOUR_MS),
            chosen.embeddings, trainer.plan,
        )  # fmt: skip

    return publish
