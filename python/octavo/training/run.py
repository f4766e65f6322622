"""The main job: a log, one streaming pass, a plan, the converted model's quality and speed, a report."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import octavo
from octavo.config import DataConfig, RunConfig, config_hash, run_id, save_config
from octavo.data import SETS, AdsWorld, EventLog, Label, movielens, preset_hash, write_demo_log
from octavo.evaluation import calibration_bins, ne
from octavo.models import Ranker
from octavo.report import Results, now, write_report
from octavo.training import numerics, precision
from octavo.training.baseline import EVENTS_AT_ONCE, logistic_regression
from octavo.training.checkpoint import CheckpointError, discard
from octavo.training.distributed import Group
from octavo.training.history import epoch_rows
from octavo.training.memory import peak_bytes, resident_bytes
from octavo.training.objective import Objective
from octavo.training.slices import slices_of
from octavo.training.state import table_states
from octavo.training.trainer import Trainer

_DEMO_EVENTS = 200_000
Listener = Callable[[str, int, int, str], None]  # stage, done, total, what else to say


def open_log(config: DataConfig, run_dir: Path) -> EventLog:
    """The log that ``config`` names, with its labels; one that octavo makes is written below ``run_dir`` once."""
    return relabelled(_source(config, run_dir), config)


def relabelled(log: EventLog, config: DataConfig) -> EventLog:
    """``log`` with the labels that ``config`` gives, if any."""
    if not config.labels:
        return log
    return log.with_labels(
        *(Label(entry.task, entry.delay, entry.anchor, tuple(entry.windows)) for entry in config.labels)
    )


def _source(config: DataConfig, run_dir: Path) -> EventLog:
    if config.source == "movielens":
        return movielens(config.path, split=config.split)
    if config.source in SETS:
        return SETS[config.source].open(config.path)
    if config.source == "log":
        assert config.path is not None
        return EventLog(config.path)
    if config.source == "world":
        assert config.preset is not None
        size = f"{config.events}" if config.days is None else f"{config.days:g}d"
        path = run_dir / f"world-{config.preset}-{preset_hash(config.preset)[:8]}-{size}-{config.seed}"
        if path.exists():
            return EventLog(path)
        return AdsWorld(config.preset, config.seed).write(path, events=config.events, days=config.days)
    path = run_dir / f"log-{config.events or _DEMO_EVENTS}-{config.seed}"
    if path.exists():
        return EventLog(path)
    return write_demo_log(path, config.events or _DEMO_EVENTS, config.seed)


def run(
    config: RunConfig,
    run_dir: str | Path,
    fresh: bool = False,
    listen: Listener | None = None,
    resume: bool = False,
    objective: Callable[[Ranker], Objective] | None = None,
    watch: Callable[[Trainer], None] | None = None,
) -> Results | None:
    """Train, or go on training, and write ``plan.json``, ``results.json`` and ``report.html`` to ``run_dir``.

    ``fresh`` deletes what training left in ``run_dir`` first; ``resume`` demands that there is a checkpoint.
    ``listen(stage, done, total, note)`` hears of progress. ``objective``: what the model learns besides its labels;
    ``watch`` sees the trainer after every batch, and again where it goes on from a checkpoint. Under torchrun every
    process trains on its part of each batch; the first writes and returns results, the others return None.
    """
    run_dir = Path(run_dir)
    group = Group.current()
    before = resident_bytes()
    start = time.perf_counter()
    tell: Listener = listen or (lambda stage, done, total, note: None)
    run_dir.mkdir(parents=True, exist_ok=True)
    tell("reading the log", 0, 1, "")
    if group.is_first:
        open_log(config.data, run_dir)  # which makes it where there is none
    group.wait()
    log = open_log(config.data, run_dir)
    if config.data.limit is not None and config.data.limit < len(log):
        log = log.head(config.data.limit)
    trainer = Trainer(config, log, run_dir, group, objective)
    if fresh and group.is_first:
        for path in (run_dir / "best", trainer.checkpoints):  # checkpoints without their best say so, the best no more
            discard(path)
    group.wait()
    resumed = trainer.resume()
    if resume and not resumed:
        raise CheckpointError(f"{trainer.checkpoints}: holds no checkpoint to resume from; train without --resume")
    if group.is_first:
        save_config(config, run_dir / "config.yaml")
    if resumed and watch is not None and group.is_first:
        watch(trainer)  # the checkpoint's batch: a kill may have come between the two
    begun = trainer.seconds
    seen = first = trainer.epoch * trainer.fit_end + trainer.position
    for seen in trainer.run():
        rate = (seen - first) / max(trainer.seconds - begun, 1e-9)
        tell("training", seen, trainer.total, _note(trainer, rate))
        if watch is not None and group.is_first:
            watch(trainer)
    group.wait()
    if not group.is_first:
        return None
    results = evaluate(trainer, tell)
    held = max(0, peak_bytes() - before)
    cost = {
        "wall time": f"{time.perf_counter() - start:,.1f} s; training took {trainer.seconds:,.1f} s in all",
        "peak memory": f"{held / 2**20:,.0f} MiB beyond the {before / 2**20:,.0f} MiB at the start",
    }
    results = dataclasses.replace(results, training={**results.training, **cost})
    results.save(run_dir / "results.json")
    tell("writing the report", 0, 1, "")
    write_report(results, run_dir / "report.html")
    return results


def _note(trainer: Trainer, rate: float) -> str:
    """Rows/s, and NE of the first task's last window."""
    point = trainer.progressive.last(trainer.tasks[0])
    ne = "" if point is None or point.quality.ne is None else f", NE {point.quality.ne:.4f}"
    return f"{rate:,.0f} rows/s{ne}"


def evaluate(trainer: Trainer, tell: Listener) -> Results:
    """Held-out quality, the plan, the comparison of numerics, speed: what the report shows."""
    config, log, end = trainer.config, trainer.log, trainer.train_end
    task = trainer.tasks[0]
    common = _common(trainer, task)
    if end == len(log):
        return Results(**common, heldout=None, requirement="no held-out events: nothing was compared")
    tell("planning", 0, 1, "")
    as_trained = {}
    if config.training.precision != "fp32":
        as_trained = {f"as trained ({config.training.precision})": copy.deepcopy(trainer.model).eval()}
        numerics.run_all_in(trainer.model, "fp32")
    plan = precision.make_plan(trainer.model, log, end, config.plan)
    plan.save(trainer.run_dir / "plan.json")
    batch = log.read(max(0, end - config.plan.calibration_events), end)
    models = precision.variants(trainer.model, plan, batch, config.plan) | as_trained
    tell("scoring the held-out events", 0, 1, "")
    rows, reference = precision.compare_quality(models, log, end, config.plan)
    tell("timing", 0, 1, "")
    speed = precision.compare_speed(models, log, end, config.plan)
    tell("fitting the baseline", 0, 1, "")
    baseline = logistic_regression(log, end, task)
    if baseline is None:
        common["training"]["baseline"] = f"none: the known labels of {task!r} before the held-out events are one class"
    heldout = next(row.quality for row in rows if row.numerics == precision.REFERENCE and row.task == task)
    return Results(
        **common,
        heldout=heldout,
        requirement=f"SQNR of every layer's output >= {config.plan.min_sqnr_db:g} dB",
        floor_ne=_floor(log, end, task),
        baselines={} if baseline is None else {"logistic regression": baseline},
        calibration=calibration_bins(reference.logits[task], reference.labels[task], bins=15, logits=True),
        slices=slices_of(reference),
        numerics=rows,
        speed=speed,
        plan=precision.plan_rows(plan),
    )


def _common(trainer: Trainer, task: str) -> dict[str, Any]:
    config, log = trainer.config, trainer.log
    first, last = (log.read(at, at + 1).time.item() for at in (0, len(log) - 1))
    span = " to ".join(datetime.fromtimestamp(ms / 1e3, UTC).strftime("%Y-%m-%d") for ms in (first, last))
    parameters = sum(p.numel() for p in trainer.model.parameters())
    tables = [table.rows.shape for table in table_states(trainer.model).values()]
    progress = trainer.progressive.cumulative()[task]
    chosen = config.training
    passes = "once, in event time" if trainer.epoch == 0 else f"in {trainer.epoch + 1} epochs"
    late = ", when their labels were known" if chosen.labels == "known" else ""
    seen = trainer.epoch * trainer.fit_end + trainer.position
    facts = {
        "trained on": f"{trainer.fit_end:,} events, {passes}{late}",
        "precision": chosen.precision,
        "throughput": f"{seen / max(trainer.seconds, 1e-9):,.0f} events/s, evaluation included",
        "dense parameters": f"{parameters:,}",
        "tables": f"{len(tables)}, {sum(rows for rows, _ in tables):,} rows, "
        f"{sum(rows * dim for rows, dim in tables):,} parameters",
    }
    if progress.events:
        facts |= {"progressive NE": _text(progress.ne), "progressive AUC": _text(progress.auc)}
    if trainer.stopping.best is not None:
        facts["best epoch"] = f"{chosen.metric} {trainer.stopping.best:.4f} after step {trainer.stopping.step:,}"
    if trainer.group.world > 1:
        facts["processes"] = str(trainer.group.world)
    return {
        "run_id": run_id(config),
        "title": f"octavo: {config.name}",
        "created": now(),
        "task": task,
        "config": config.resolved(),
        "config_sha256": config_hash(config),
        "machine": machine_facts(),
        "data": {
            "source": config.data.source,
            "events": f"{len(log):,}",
            "span": span,
            "held out": f"the last {len(log) - trainer.train_end:,}",
            "end_ms": str(last),
        },
        "training": facts,
        "progressive": trainer.progressive.points,
        "epochs": epoch_rows(trainer.history.path),
        "teachers": [] if trainer.objective is None else trainer.objective.report(),
    }


def machine_facts() -> dict[str, str]:
    """What a report says of this machine."""
    info = octavo.info()
    return {
        "CPU": info["cpu"],
        "instruction set": f"{info['isa']} ({', '.join(info['features'])})",
        "threads": str(torch.get_num_threads()),
        "octavo": info["version"],
        "torch": torch.__version__,
    }


def _text(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def _floor(log: EventLog, start: int, task: str) -> float | None:
    """NE of the generator's own probabilities, where the log holds them; of a log with fewer negatives, as they are for
    its events."""
    truth = "_p_click" if task == "click" else "_p_true"  # AdsWorld's is of the click; the demo has one task
    name = next((name for name in ("_p_true", truth) if name in log.column_names), None)
    if name is None:
        return None
    labels = torch.cat([batch.labels[task] for batch in log.batches(EVENTS_AT_ONCE, start)])
    truths = torch.logit(torch.tensor(log.columns([name], start)[name].to_numpy(), dtype=torch.float64))
    found = ne(log.as_sampled({task: truths})[task], labels, logits=True)
    return None if math.isnan(found) else found
