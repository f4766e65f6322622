"""``octavo probe``: a stretch of training under a Probe, its report, the plan that follows, and what that plan does."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from octavo import loka
from octavo.config import RunConfig, run_id
from octavo.data import EventLog
from octavo.ops._types import NUMERICS
from octavo.ops.dispatch import Plan, Requirement, site_errors, sites
from octavo.ops.dispatch.plan import Site
from octavo.report import InputShape, MeasuredRow, NumericsRow, ProbeResults, SpeedRow, now, write_probe_report
from octavo.training import numerics, precision
from octavo.training.distributed import Group
from octavo.training.history import History
from octavo.training.run import Listener, machine_facts, open_log
from octavo.training.trainer import Trainer, TrainingError

HELDOUT_BATCHES, HELDOUT_ROWS = 4, 1024  # that predictions are held against
BINS, REACH = 64, 8.0  # of a picture of a layer's input


def probe_run(
    config: RunConfig,
    run_dir: str | Path,
    requirement: Requirement,
    *,
    steps: int = 1000,
    every: int = 10,
    draws: int = 100,
    min_speedup: float = 1.05,
    training: bool = True,
    out: str | Path | None = None,
    listen: Listener | None = None,
) -> ProbeResults:
    """Train ``config.model`` for ``steps`` batches with a Probe that looks at every ``every``-th; solve; compare.

    The model is that of the newest checkpoint in ``run_dir``, or a new one; it trains on from there, near the end of
    the training part through its last ``steps`` batches once more, in memory: checkpoints and history stay as they are.
    A run that gathered statistics itself (``training.probe``) is not trained on: they are what is judged.
    Writes ``report.json``, ``plan.json`` and ``report.html`` to ``out`` (default: ``run_dir/probe``). ``training``:
    plan gradients too. Raises :class:`TrainingError` for what cannot be probed.
    """
    run_dir = Path(run_dir)
    out = run_dir / "probe" if out is None else Path(out)
    tell: Listener = listen or (lambda stage, done, total, note: None)
    group = Group.current()
    if group.world > 1:
        raise TrainingError("probe: runs in one process; start it without torchrun (Probes merge with Probe.merge)")
    tell("reading the log", 0, 1, "")
    run_dir.mkdir(parents=True, exist_ok=True)
    log = open_log(config.data, run_dir)
    if config.data.limit is not None and config.data.limit < len(log):
        log = log.head(config.data.limit)
    trainer = _Probed(config, log, run_dir, group)
    first = trainer.start(steps)
    own = trainer.has_evidence
    probe = trainer.probe if own else loka.Probe(trainer.model, every=every)
    assert probe is not None
    try:
        for done in () if own else trainer.stretch(steps):
            probe.step()
            tell("training under the Probe", done, steps, "")
        looked = probe.observed if own else probe.steps // every
        numerics.run_all_in(trainer.model, "fp32")
        tell("drawing and judging", 0, 1, "")
        try:
            report = probe.evaluate(draws=draws, requirement=requirement)
        except RuntimeError as error:  # nothing observed
            raise TrainingError(str(error)) from None
    finally:
        probe.close()
    plan = loka.solve(report, requirement, min_speedup, training)
    out.mkdir(parents=True, exist_ok=True)
    report.save(out / "report.json")
    plan.save(out / "plan.json")
    tell("running the plan on held-out events", 0, 1, "")
    measured, inputs = _held_out(trainer, report)
    quality, speed = _compared(trainer, plan)
    seen = "from a new model" if first is None else f"from the checkpoint of step {first:,}"
    results = ProbeResults(
        run_id=run_id(config),
        title=f"octavo probe: {config.name}",
        created=now(),
        task=trainer.tasks[0],
        machine=machine_facts(),
        facts={
            "model": f"{config.model.kind}, {len(report.sites)} linear layers",
            "log": f"{config.data.source}, {len(log):,} events",
            "trained": f"{trainer.taken:,} batches of {config.training.batch_size}, {seen}, events up to "
            f"{trainer.position:,}",
            "Probe": f"every {probe.every} steps, up to {draws} draws, looked at {looked:,} steps"
            + (", what the run's own Probe saw, over all of its processes" if own else ""),
            "held out": _heldout_text(trainer),
            "not reached": ", ".join(report.settings.get("unreached", [])) or "none",
        },
        report=report, plan=plan, requirement=requirement, min_speedup=min_speedup, measured=measured, inputs=inputs,
        numerics=quality, speed=speed,
    )  # fmt: skip
    tell("writing the report", 0, 1, "")
    write_probe_report(results, out / "report.html")
    return results


class _Probed(Trainer):
    """A Trainer that writes nothing."""

    def __init__(self, config: RunConfig, log: EventLog, run_dir: Path, group: Group) -> None:
        chosen = config.training.model_copy(update={"checkpoint_every": 0})
        super().__init__(config.model_copy(update={"training": chosen}), log, run_dir, group)
        self.history = _Unwritten(run_dir / "history.jsonl")
        self.taken = 0

    def start(self, steps: int) -> int | None:
        """Take up the newest checkpoint, far enough from the end for ``steps`` batches unless the run has statistics of
        its own; its step, None without one."""
        found = self.step if self.resume() else None
        if self.has_evidence:
            return found
        latest = max(0, self.fit_end - steps * self.config.training.batch_size)
        if self.is_done or self.position > latest:
            if self._lanes:
                raise TrainingError(
                    "probe: the run is over, or nearly, and labels=known cannot be replayed; probe it from an earlier "
                    "checkpoint, or a new run with another run directory"
                )
            self.position, self.is_done = min(self.position, latest), False
        return found

    @property
    def has_evidence(self) -> bool:
        """Whether the checkpoint has a Probe that saw something: nothing is to be trained then."""
        return self.probe is not None and self.probe.observed > 0

    def stretch(self, steps: int) -> Any:
        """Train; yields the number of batches after each, and stops before the epoch's end is settled."""
        run = self.run()
        for _ in run:
            self.taken += 1
            yield self.taken
            if self.taken == steps or self.position >= self.fit_end:
                break
        run.close()  # type: ignore[attr-defined]


class _Unwritten(History):
    def keep(self, lines: int) -> None:
        self.lines = lines

    def append(self, line: Mapping[str, Any]) -> None:
        self.lines += 1


def _heldout_start(trainer: Trainer) -> int:
    """Where the held-out events begin; without any, of the last training events."""
    end, events = trainer.train_end, len(trainer.log)
    return end if end < events else max(0, end - HELDOUT_BATCHES * HELDOUT_ROWS)


def _heldout_text(trainer: Trainer) -> str:
    held = len(trainer.log) - trainer.train_end
    return f"the last {held:,} events" if held else "none (training.holdout=0): predictions are held against training"


def _held_out(trainer: Trainer, report: loka.Report) -> tuple[list[MeasuredRow], list[InputShape]]:
    """Errors of every class that the report judges, and pictures of the inputs."""
    start, rows = _heldout_start(trainer), min(HELDOUT_ROWS, len(trainer.log))
    classes: dict[str, list[str]] = {}
    for finding in report.findings:
        if finding.direction == "forward" and finding.numerics in NUMERICS:
            classes.setdefault(finding.site, []).append(finding.numerics)
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    inputs: list[InputShape] = []
    starts = list(range(start, len(trainer.log) - rows + 1, rows))[:HELDOUT_BATCHES] or [len(trainer.log) - rows]
    for at in starts:
        met = sites(trainer.model, trainer.log.read(at, at + rows))
        if not inputs:
            inputs = [_shape(site) for site in met]
        for site in met:
            for name in classes.get(site.path, []):
                found.setdefault((site.path, name), []).append(site_errors(site, name))
    rows_of = [
        MeasuredRow(site, name, {
            error: (statistics.median(values), min(values), max(values))
            for error in batches[0] for values in [[batch[error] for batch in batches]]
        })
        for (site, name), batches in found.items()
    ]  # fmt: skip
    return rows_of, inputs


def _shape(site: Site) -> InputShape:
    x = site.x.float()
    rms = float(x.square().mean().sqrt())
    scaled = x / rms if rms > 0 else x
    width = 2 * REACH / BINS
    places = ((scaled + REACH) / width).nan_to_num(0).floor().clamp(0, BINS - 1).long()
    shares = torch.bincount(places.flatten(), minlength=BINS).double() / max(places.numel(), 1)
    amax = x.abs().amax(1)
    used = amax > 0
    crest = float((x[used] / amax[used, None]).square().mean() ** -0.5) if bool(used.any()) else 1.0
    middle, high = torch.quantile(amax.double(), torch.tensor([0.5, 0.999]).double()).tolist()
    std = float(scaled.std(correction=0))
    spread = high / middle if middle > 0 else 1.0
    return InputShape(site.path, shares.tolist(), REACH, rms, float(scaled.mean()), std, crest, spread)


def _compared(trainer: Trainer, plan: Plan) -> tuple[list[NumericsRow], list[SpeedRow]]:
    """Quality and speed of the whole model in FP32 and under the plan, on the held-out events."""
    log, end, config = trainer.log, trainer.train_end, trainer.config.plan
    if end == len(log):
        return [], []
    models = {
        precision.REFERENCE: trainer.model.eval(),
        precision.PLANNED: loka.install(trainer.model, plan, training=False),
    }
    rows, _ = precision.compare_quality(models, log, end, config)
    return rows, precision.compare_speed(models, log, end, config)
