"""The main job: a log, one streaming pass, a plan, the converted model's quality and speed, a report."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import octavo
from octavo.config import DataConfig, RunConfig, config_hash, run_id, save_config
from octavo.data import AdsWorld, EventLog, movielens, preset_hash, write_demo_log
from octavo.evaluation import calibration_bins, ne
from octavo.report import Results, now, write_report
from octavo.training import precision
from octavo.training.baseline import logistic_regression
from octavo.training.state import table_states
from octavo.training.trainer import Trainer

_DEMO_EVENTS = 200_000
Listener = Callable[[str, int, int], None]  # stage, done, total


def open_log(config: DataConfig, run_dir: Path) -> EventLog:
    """The log that ``config`` names; a log that octavo makes is written below ``run_dir`` once."""
    if config.source == "movielens":
        return movielens(config.path)
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


def run(config: RunConfig, run_dir: str | Path, fresh: bool = False, listen: Listener | None = None) -> Results:
    """Train, or go on training, and write ``plan.json``, ``results.json`` and ``report.html`` to ``run_dir``.

    ``fresh`` deletes the checkpoints in ``run_dir`` first. ``listen(stage, done, total)`` hears of progress.
    """
    run_dir = Path(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    tell: Listener = listen or (lambda stage, done, total: None)
    tell("reading the log", 0, 1)
    log = open_log(config.data, run_dir)
    if config.data.limit is not None and config.data.limit < len(log):
        log = log.head(config.data.limit)
    trainer = Trainer(config, log, run_dir)
    if fresh:
        shutil.rmtree(trainer.checkpoints, ignore_errors=True)
    trainer.resume()
    save_config(config, run_dir / "config.yaml")
    for position in trainer.run():
        tell("training", position, trainer.train_end)
    results = evaluate(trainer, tell)
    results.save(run_dir / "results.json")
    tell("writing the report", 0, 1)
    write_report(results, run_dir / "report.html")
    return results


def evaluate(trainer: Trainer, tell: Listener) -> Results:
    """Held-out quality, the plan, the comparison of numerics, speed: what the report shows."""
    config, log, end = trainer.config, trainer.log, trainer.train_end
    task = log.schema.tasks[0]
    common = _common(trainer, task)
    if end == len(log):
        return Results(**common, heldout=None, requirement="no held-out events: nothing was compared")
    tell("planning", 0, 1)
    plan = precision.make_plan(trainer.model, log, end, config.plan)
    plan.save(trainer.run_dir / "plan.json")
    batch = log.read(max(0, end - config.plan.calibration_events), end)
    models = precision.variants(trainer.model, plan, batch, config.plan)
    tell("scoring the held-out events", 0, 1)
    numerics, reference = precision.compare_quality(models, log, end, config.plan)
    tell("timing", 0, 1)
    speed = precision.compare_speed(models, log, end, config.plan)
    tell("fitting the baseline", 0, 1)
    baselines = {"logistic regression": logistic_regression(log, end, task)}
    heldout = next(row.quality for row in numerics if row.numerics == precision.REFERENCE and row.task == task)
    return Results(
        **common,
        heldout=heldout,
        requirement=f"SQNR of every layer's output >= {config.plan.min_sqnr_db:g} dB",
        floor_ne=_floor(log, end, task),
        baselines=baselines,
        calibration=calibration_bins(reference.logits[task], reference.labels[task], bins=15, logits=True),
        numerics=numerics,
        speed=speed,
        plan=precision.plan_rows(plan),
    )


def _common(trainer: Trainer, task: str) -> dict[str, Any]:
    config, log = trainer.config, trainer.log
    first, last = (log.read(at, at + 1).time.item() for at in (0, len(log) - 1))
    span = " to ".join(datetime.fromtimestamp(ms / 1e3, UTC).strftime("%Y-%m-%d") for ms in (first, last))
    info = octavo.info()
    parameters = sum(p.numel() for p in trainer.model.parameters())
    tables = [table.rows.shape for table in table_states(trainer.model).values()]
    progress = trainer.progressive.cumulative()[task]
    return {
        "run_id": run_id(config),
        "title": f"octavo: {config.name}",
        "created": now(),
        "task": task,
        "config": config.resolved(),
        "config_sha256": config_hash(config),
        "machine": {
            "CPU": info["cpu"],
            "instruction set": f"{info['isa']} ({', '.join(info['features'])})",
            "threads": str(torch.get_num_threads()),
            "octavo": info["version"],
            "torch": torch.__version__,
        },
        "data": {
            "source": config.data.source,
            "events": f"{len(log):,}",
            "span": span,
            "held out": f"the last {len(log) - trainer.train_end:,}",
            "end_ms": str(last),
        },
        "training": {
            "trained on": f"{trainer.train_end:,} events, once, in event time",
            "throughput": f"{trainer.train_end / max(trainer.seconds, 1e-9):,.0f} events/s, evaluation included",
            "dense parameters": f"{parameters:,}",
            "tables": f"{len(tables)}, {sum(rows for rows, _ in tables):,} rows, "
            f"{sum(rows * dim for rows, dim in tables):,} parameters",
            "progressive NE": _text(progress.ne),
            "progressive AUC": _text(progress.auc),
        },
        "progressive": trainer.progressive.points,
    }


def _text(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def _floor(log: EventLog, start: int, task: str) -> float | None:
    """NE of the generator's own probabilities, where the log holds them."""
    if "_p_true" not in log.column_names:
        return None
    labels = log.read(start).labels[task]
    found = ne(log.columns(["_p_true"], start)["_p_true"].to_numpy(), labels)
    return None if math.isnan(found) else found
