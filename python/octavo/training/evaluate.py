"""A trained run on a log: every metric of every head and domain, with intervals, beside another run's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from octavo import models
from octavo.config import ConfigError, RunConfig, load_config, run_id
from octavo.data import EventLog
from octavo.evaluation import Interval, Metric, interval, paired
from octavo.ops.dispatch import Plan
from octavo.training import numerics, planning
from octavo.training.checkpoint import Checkpoint, CheckpointError, list_checkpoints
from octavo.training.run import open_log, relabelled
from octavo.training.slices import Predictions, domains_of, predict
from octavo.training.state import copy_dense, dense_state, table_states

METRICS: tuple[Metric, ...] = ("ne", "auc", "gauc", "calibration")


@dataclass(frozen=True)
class EvaluationRow:
    """One head in one domain (None: all events): ``metrics``, and ``differences`` to the other run's."""

    head: str
    domain: int | None
    events: int
    metrics: Mapping[str, Interval]
    differences: Mapping[str, Interval] | None


@dataclass(frozen=True)
class Evaluation:
    """What :func:`evaluate_run` found on events ``start`` to ``stop`` (exclusive) of ``log``."""

    run_id: str
    step: int
    log: str
    start: int
    stop: int
    clusters: str
    resamples: int
    against: str | None
    rows: list[EvaluationRow]
    metrics: tuple[Metric, ...] = METRICS

    def to_json(self) -> dict[str, Any]:
        """Plain values; null where not defined."""
        values: dict[str, Any] = _nulls(asdict(self))
        return values


def evaluate_run(
    run_dir: str | Path,
    log: str | Path | None = None,
    step: int | None = None,
    part: str | None = None,
    against: str | Path | None = None,
    resamples: int = 400,
) -> Evaluation:
    """Score the checkpoint of ``step`` (None: the newest) of the run at ``run_dir``.

    ``log``: another log with the run's schema. ``part``: ``heldout`` (default), ``all`` (default with ``log``) or
    ``BEGIN:END``. ``against``: another run, scored on the same events, which neither run may be trained on. Intervals
    are 95% bootstraps over users, over days where the log has no users. Raises :class:`CheckpointError` and
    :class:`ConfigError` naming what is missing, or what the runs have seen.
    """
    run_dir = Path(run_dir)
    config = config_of(run_dir)
    events = open_log(config.data, run_dir) if log is None else relabelled(EventLog(log), config.data)
    whole = len(events)
    if log is None and config.data.limit is not None:
        events = events.head(min(len(events), config.data.limit))
    start, stop = _span(part or ("heldout" if log is None else "all"), len(events), config.training.holdout)
    checkpoint = _checkpoint_of(run_dir, step)
    other = None
    if against is not None:
        other_config, other_checkpoint = config_of(Path(against)), _checkpoint_of(Path(against), None)
        runs = {str(run_dir): (config, checkpoint), str(against): (other_config, other_checkpoint)}
        _expect_unseen(runs, events, whole, start)
        other = predict(_model_of(other_checkpoint, other_config, events), events, start, stop)
    found = predict(_model_of(checkpoint, config, events), events, start, stop)
    if other is not None and other.logits.keys() != found.logits.keys():
        raise ConfigError(f"{against}: predicts {sorted(other.logits)}, {run_dir} {sorted(found.logits)}")
    rows = [
        _row(found, other, found.clusters, head, domain, inside, resamples)
        for head in found.logits
        for domain, inside in domains_of(found).items()
    ]
    return Evaluation(
        run_id(config), checkpoint.step, str(events.path), start, stop, "users" if found.has_users else "days",
        resamples, None if against is None else str(against), rows,
    )  # fmt: skip


def load_trained(run_dir: Path, config: RunConfig, log: EventLog, step: int | None = None) -> tuple[models.Ranker, int]:
    """The model of a checkpoint in evaluation mode, in the precision it was trained in, and the checkpoint's step."""
    checkpoint = _checkpoint_of(run_dir, step)
    return _model_of(checkpoint, config, log), checkpoint.step


def _checkpoint_of(run_dir: Path, step: int | None) -> Checkpoint:
    root = run_dir / "checkpoints"
    paths = list_checkpoints(root)
    if step is not None:
        kept = ", ".join(str(int(path.name.removeprefix("step-"))) for path in paths) or "none"
        paths = [path for path in paths if path.name == f"step-{step:08d}"]
        if not paths:
            raise CheckpointError(f"{root}: has no checkpoint of step {step}; there are {kept}")
    if not paths:
        raise CheckpointError(f"{root}: holds no checkpoint; train the run first")
    return Checkpoint(paths[-1])


def _model_of(checkpoint: Checkpoint, config: RunConfig, log: EventLog) -> models.Ranker:
    if checkpoint.meta["schema"] != log.schema.fingerprint:
        raise CheckpointError(f"{checkpoint.path}: was trained on another schema than that of {log.path}")
    model = models.build(log.schema, config.model)
    copy_dense(dense_state(model), checkpoint.group("dense"), str(checkpoint.path))
    for name, table in table_states(model).items():
        checkpoint.read_table(name, table)
    if checkpoint.meta["plan"] is not None:
        plan = Plan.from_json(checkpoint.meta["plan"])
        numerics.follow(model, planning.in_force(plan, checkpoint.meta.get("valve")))
    elif config.training.precision == "bf16":
        numerics.run_all_in(model, "bf16")
    return model.eval()


def _expect_unseen(runs: Mapping[str, tuple[RunConfig, Checkpoint]], log: EventLog, whole: int, start: int) -> None:
    """Raises ConfigError where one of ``runs`` trains on events of ``log`` from ``start`` on; ``whole``: its length
    without any run's limit."""
    ends = {}
    for name, (config, checkpoint) in runs.items():
        if checkpoint.meta["log"] == log.fingerprint:
            events = min(whole, config.data.limit or whole)
            ends[name] = events - round(config.training.holdout * events)
    late = max(ends, key=lambda name: ends[name], default=None)
    if late is not None and ends[late] > start:
        unseen = f"{ends[late]}:{len(log)}"
        rest = f"neither has seen --slice {unseen}" if ends[late] < len(log) else "there is no event that neither has"
        raise ConfigError(
            f"against: {late} was trained on the first {ends[late]} events and the slice begins at {start}; {rest}"
        )


def config_of(run_dir: Path) -> RunConfig:
    """The configuration of a run's directory. Raises ConfigError where there is none."""
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"{path}: not found; is {run_dir} a directory that octavo train left?")
    return load_config(path)


def _span(part: str, events: int, holdout: float) -> tuple[int, int]:
    if part == "all":
        return 0, events
    if part == "heldout":
        start = events - round(holdout * events)
        if start == events:
            raise ConfigError("slice: the run has no held-out events (training.holdout=0); use --slice all")
        return start, events
    begin, colon, end = part.partition(":")
    try:
        start, stop = int(begin or 0), int(end or events)
    except ValueError:
        start = stop = -1
    if not colon or not 0 <= start < stop <= events:
        raise ConfigError(f"slice: expected heldout, all or BEGIN:END within 0:{events}, found {part!r}")
    return start, stop


def _row(
    found: Predictions, other: Predictions | None, clusters: torch.Tensor, head: str, domain: int | None,
    inside: torch.Tensor, resamples: int,
) -> EvaluationRow:  # fmt: skip
    z, labels = found.logits[head][inside], found.labels[head][inside]
    options: dict[str, Any] = {
        "weight": found.weight[inside], "group": found.user[inside], "logits": True, "resamples": resamples,
    }  # fmt: skip
    names = clusters[inside]
    metrics: dict[str, Interval] = {metric: interval(metric, z, labels, names, **options) for metric in METRICS}
    differences: dict[str, Interval] | None = None
    if other is not None:
        rival = other.logits[head][inside]
        differences = {metric: paired(metric, z, rival, labels, names, **options) for metric in METRICS}
    return EvaluationRow(head, domain, int((~labels.isnan()).sum()), metrics, differences)


def _nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _nulls(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_nulls(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value
