"""One streaming pass in event time: predict a batch, score the prediction, then train on it."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import torch

import octavo
from octavo import loka, models
from octavo.config import RunConfig, config_hash
from octavo.data import Batch, EventLog, prefetched
from octavo.evaluation import Progressive, ProgressPoint
from octavo.ops.dispatch import Plan
from octavo.training import epochs, learning, numerics, planning
from octavo.training.checkpoint import Checkpoint, CheckpointError, list_checkpoints, write_checkpoint
from octavo.training.distributed import Group
from octavo.training.history import History, quality_values, window_lines
from octavo.training.late import Lane, lanes_of
from octavo.training.objective import Objective
from octavo.training.state import (
    TableTracker,
    copy_dense,
    dense_state,
    optimizer_tensors,
    restore_optimizer,
    set_table_lr,
    table_states,
)

# What may change between a run and its resumption: it does not change what is learned.
_FREE = ("checkpoint_every", "keep_checkpoints", "full_every", "probe")
_PLANNING = ("min_sqnr_db", "calibration_events")  # of the plan's section, what training.precision=plan depends on


class TrainingError(RuntimeError):
    """Training cannot go on: says where in the log and why."""


class Trainer:
    """Trains ``config.model`` on all but the last ``holdout`` share of ``log``, in event time.

    Each batch is first predicted (``progressive`` collects the quality), then trained on; with ``labels=known`` both
    its score and its training come when its labels are known. Checkpoints go to ``run_dir/checkpoints``, a line per
    window to ``run_dir/history.jsonl``; a new Trainer with the same configuration and log goes on from the newest
    checkpoint, bit for bit. ``group``: the processes that share every batch; the first writes. ``objective``: makes, of
    the model, what it learns besides its labels (one process).
    Raises :class:`CheckpointError` when that checkpoint is damaged or of another configuration, schema or log, and
    :class:`TrainingError` when a loss is not finite.
    """

    def __init__(
        self,
        config: RunConfig,
        log: EventLog,
        run_dir: str | Path,
        group: Group | None = None,
        objective: Callable[[models.Ranker], Objective] | None = None,
    ) -> None:
        self.config, self.log, self.run_dir = config, log, Path(run_dir)
        self.group = group or Group()
        chosen = config.training
        if not log.schema.labels:
            raise TrainingError(
                f"{log.path}: has no label, so nothing can be learned; it is a stream to replay or inspect"
            )
        self.train_end = len(log) - round(chosen.holdout * len(log))
        self.fit_end = self.train_end - round(chosen.validation * self.train_end)
        if self.fit_end == 0:
            raise TrainingError(
                f"log: {len(log)} events leave none to train on with holdout={chosen.holdout}"
                + (f" and validation={chosen.validation}" if chosen.validation else "")
            )
        try:
            learning.check_outcomes(log)
        except ValueError as error:
            raise TrainingError(str(error)) from None
        self.model = models.build(log.schema, config.model)
        self.tracker = TableTracker(self.model, chosen.full_every)
        self.group.attach(self.model)
        self.group.compress(chosen.communication)
        self.tasks = list(self.model.tasks)
        span = None if chosen.window_hours is None else max(1, round(chosen.window_hours * 3_600_000))
        self.progressive = Progressive(
            self.tasks, None if span else chosen.window, window_ms=span, by_domain=chosen.by_domain
        )
        self.history = History(self.run_dir / "history.jsonl")
        self.position = 0  # in the log, of the epoch
        self.epoch = 0
        self.step = 0  # batches of the stream
        self.updates = 0
        self.seconds = 0.0
        self.stopping = epochs.Progress()
        self.is_done = False
        self.plan: Plan | None = None
        self.valve: planning.Valve | None = None
        self.probe: loka.Probe | None = None
        self._losses = (0.0, 0)  # sum and number since the last line of the history
        self._mark = (time.perf_counter(), 0)
        self._lanes = self._build_lanes() if chosen.labels == "known" else []
        if objective is not None and self.group.world > 1:
            raise TrainingError("objective: learns in one process; run without torchrun")
        self.objective = None if objective is None else objective(self.model)
        named = list(self.model.named_parameters())
        if self.objective is not None:
            named += [(f"objective.{name}", parameter) for name, parameter in self.objective.learned_parameters()]
        self._names = [name for name, _ in named]
        self.optimizer = learning.build_optimizer([parameter for _, parameter in named], chosen.optimizer)
        if chosen.precision == "bf16":
            numerics.run_all_in(self.model, "bf16")
        torch.manual_seed(chosen.seed + self.group.rank)  # what dropout leaves out: not the same in every part
        if chosen.threads is not None:
            torch.set_num_threads(chosen.threads)

    @property
    def checkpoints(self) -> Path:
        return self.run_dir / "checkpoints"

    @property
    def total(self) -> int:
        """Events of all epochs."""
        return self.fit_end * self.config.training.epochs

    def resume(self) -> bool:
        """Go on from the newest checkpoint. False when there is none."""
        found = list_checkpoints(self.checkpoints)
        if not found:
            return False
        checkpoint = Checkpoint(found[-1])
        meta, chosen = checkpoint.meta, self.config.training
        self._refuse_differences(checkpoint.path, meta)
        copy_dense(dense_state(self.model), checkpoint.group("dense"), str(checkpoint.path))
        for name, table in table_states(self.model).items():
            checkpoint.read_table(name, table)
        self.tracker.saved(checkpoint.path)
        restore_optimizer(self.optimizer, self._names, checkpoint.group("optimizer"))
        self.progressive.load_state_dict(checkpoint.group("progressive"))
        for lane in self._lanes:
            lane.load_state_dict(checkpoint.group("late"))
        if "communication" in checkpoint.groups:
            self.group.owe(self.model, checkpoint.group("communication"))
        if self.objective is not None:
            self.objective.load_state_tensors(checkpoint.group("objective"))
        self._draw_on(checkpoint.group("rng")["torch"])
        self.position, self.step, self.seconds = meta["position"], checkpoint.step, meta["seconds"]
        self.epoch, self.updates, self.is_done = meta["epoch"], meta["updates"], meta["is_done"]
        self.stopping = epochs.Progress(**meta["stopping"])
        self._slow_tables_down()
        self._losses = (float.fromhex(meta["loss"]), meta["losses"])
        if meta["plan"] is not None:
            self._follow(Plan.from_json(meta["plan"]))
        if meta["valve"] is not None:
            assert self.valve is not None
            self.valve.load(meta["valve"], checkpoint.group("valve"))
        if meta["probe"] and chosen.probe is not None:
            self._watch(checkpoint.group("probe"))
        if self.is_done:
            self._stop_watching()
        if self.group.is_first:
            self.history.keep(meta["history"])
        return True

    def run(self) -> Iterator[int]:
        """Train to the end of the training part. Yields the number of events seen after every batch."""
        if self.is_done:
            return
        if self.step == 0 and self.group.is_first:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            self.history.keep(0)
        chosen, start, before = self.config.training, time.perf_counter(), self.seconds
        self._mark = (start, self.epoch * self.fit_end + self.position)
        shuffled = epochs.Shuffled(self.log, self.fit_end, chosen.seed) if chosen.shuffle else None
        while not self.is_done:
            for batch in prefetched(self._batches(shuffled)):
                self._take(batch)
                self.position += len(batch)
                self.step += 1
                self.seconds = before + time.perf_counter() - start
                is_due = chosen.checkpoint_every and self.step % chosen.checkpoint_every == 0
                if is_due and self.position < self.fit_end:
                    self.save()
                yield self.epoch * self.fit_end + self.position
            if self.epoch == 0:
                self._learn_late(self._end_ms())
                self._record(self.progressive.flush())
            with self._unwatched():
                self._end_epoch()
            self.seconds = before + time.perf_counter() - start
            self.save()
        self._stop_watching()
        if chosen.precision == "plan" and self.plan is None:
            due = chosen.plan_after if chosen.plan_from == "probe" else numerics.FIRST_PLAN
            warnings.warn(
                f"training.precision=plan: the plan is made after {due} updates, the run had {self.updates}: all FP32",
                stacklevel=2,
            )

    def save(self) -> Path | None:
        """Write a checkpoint of this moment; the first process does."""
        seen = self.probe
        if seen is not None and self.group.world > 1:
            seen = seen.merge_ranks()
        owed = self.group.owed(self.model)
        drawn = self.group.join(torch.get_rng_state().unsqueeze(0), [1] * self.group.world)
        if not self.group.is_first:
            self.group.wait()
            return None
        self.history.flush()
        meta = {
            "position": self.position,
            "epoch": self.epoch,
            "updates": self.updates,
            "is_done": self.is_done,
            "stopping": vars(self.stopping),
            "loss": self._losses[0].hex(),
            "losses": self._losses[1],
            "plan": None if self.plan is None else self.plan.to_json(),
            "valve": None if self.valve is None else self.valve.state_dict(),
            "probe": seen is not None,
            "objective": self._described(),
            "history": self.history.lines,
            "seconds": self.seconds,
            "config": self.config.resolved(),
            "config_sha256": config_hash(self.config),
            "schema": self.log.schema.fingerprint,
            "log": self.log.fingerprint,
            "versions": {"octavo": octavo.__version__, "torch": torch.__version__},
        }
        groups = {
            "dense": dense_state(self.model),
            "optimizer": optimizer_tensors(self.optimizer, self._names),
            "progressive": self.progressive.state_dict(),
            "rng": {"torch": drawn},
        }
        if owed:
            groups["communication"] = owed
        if self.objective is not None:
            groups["objective"] = self.objective.state_tensors()
        if self._lanes:
            groups["late"] = {name: value for lane in self._lanes for name, value in lane.state_dict().items()}
        if self.valve is not None:
            groups["valve"] = self.valve.recent()
        if seen is not None:
            groups["probe"] = seen.state_dict()
        tables = table_states(self.model)
        keep = self.config.training.keep_checkpoints
        base = self.tracker.base()
        path = write_checkpoint(self.checkpoints, self.step, meta, groups, tables, keep=keep, base=base)
        self.tracker.saved(path)
        self.group.wait()
        return path

    def _draw_on(self, drawn: torch.Tensor) -> None:
        """Go on with this process's random numbers, ``drawn`` [processes, state]; a process that was not there begins
        its own."""
        states = drawn.view(-1, drawn.shape[-1])  # [state]: of a checkpoint of one process, as they once were
        if self.group.rank < len(states):
            torch.set_rng_state(states[self.group.rank].clone())  # aligned, as its reader takes it to be

    def _build_lanes(self) -> list[Lane]:
        chosen = self.config.training
        try:
            return lanes_of(self.log, self.tasks, chosen.batch_size, self.fit_end, chosen.wait_hours)
        except ValueError as error:
            raise TrainingError(str(error)) from None

    def _batches(self, shuffled: epochs.Shuffled | None) -> Iterable[Batch]:
        size = self.config.training.batch_size
        if shuffled is not None:
            return shuffled.batches(size, self.epoch, self.position)
        return self.log.batches(size, self.position, self.fit_end)

    def _take(self, batch: Batch) -> None:
        """Predict the stream's next batch; learn from it now, or from those whose labels are known by now."""
        if not self._lanes:
            self._learn(batch, self.tasks, None)
            return
        if len(batch):
            self._learn_late(int(batch.time[0]))
        logits = self._predicted(batch)
        for lane in self._lanes:
            lane.hold(logits)

    def _predicted(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Every process's logits as the model would serve them: with all its units."""
        self.model.train(not self.config.model.dropout)
        with torch.no_grad(), self._unwatched():
            logits = self.log.as_sampled(self.model(self.group.part(batch)))
        self.model.train()
        return self._joined(logits, len(batch))

    def _learn_late(self, now_ms: int) -> None:
        for lane in self._lanes:
            for batch, logits in lane.ready(now_ms):
                self._learn(batch, lane.heads, logits)

    def _learn(self, batch: Batch, tasks: Sequence[str], held: dict[str, torch.Tensor] | None) -> None:
        """Score the predictions of ``batch`` (``held``: made before; None: made now) and train on it."""
        chosen = self.config.training
        self._plan_if_due(batch)
        if chosen.probe is not None and self.probe is None and self.updates >= chosen.probe.after:
            self._watch()
        self.model.train()
        part = self.group.part(batch)
        totals = learning.total_weights(batch, tasks)
        if self.objective is None:
            found, further = self.model(part), None
        else:
            found, further = self.objective.learn(part, tasks, self.log.negatives)
        logits = self.log.as_sampled(found)
        loss = learning.loss_of(logits, part, totals)
        whole = self._joined(logits, len(batch))
        value = float(loss.detach()) if self.group.world == 1 else float(learning.loss_of(whole, batch, totals))
        if further is not None:
            loss, value = loss + further, value + float(further.detach())
        if not math.isfinite(value):
            late = next((lane.position for lane in self._lanes if lane.heads == tasks), 0)
            first = self.position if held is None else late - len(batch)
            raise TrainingError(
                f"loss is {value} on events {first} to {first + len(batch) - 1}; checkpoints may hold the update that "
                "diverged: start afresh (--fresh) with a lower training.optimizer.lr or with training.clip_norm"
            )
        self._losses = (self._losses[0] + value, self._losses[1] + 1)
        if self.epoch == 0 and not chosen.shuffle:
            if held is None:  # a second forward only where the first one left units out; after it: new ids have rows
                held = self._predicted(batch) if self.config.model.dropout else whole
            points = self.progressive.update(
                held, batch.labels, batch.time, batch.weight, batch.user, batch.domain, tasks
            )
            self._record(points)
        learning.update(self.model, self.optimizer, loss, self._lr(), chosen.clip_norm, self.group)
        self.updates += 1
        if self.probe is not None:
            self.probe.step()
        if self.valve is not None:
            self.valve.step()

    def _joined(self, logits: Mapping[str, torch.Tensor], events: int) -> dict[str, torch.Tensor]:
        """Every process's logits, [events] by task."""
        detached = {task: z.detach() for task, z in logits.items()}
        if self.group.world == 1:
            return detached
        whole = self.group.join(torch.stack(list(detached.values()), 1), self.group.sizes(events))
        return dict(zip(detached, whole.unbind(1), strict=True))

    def _lr(self) -> float:
        chosen = self.config.training.optimizer
        return chosen.lr * self._slowed() * (min(1.0, (self.updates + 1) / chosen.warmup) if chosen.warmup else 1.0)

    def _slowed(self) -> float:
        """What is left of the learning rates after the epochs that brought nothing better."""
        return float(self.config.training.plateau_factor**self.stopping.plateaus)

    def _slow_tables_down(self) -> None:
        if self.config.training.plateau_factor < 1:  # else the tables' rates are the caller's to change
            set_table_lr(self.model, self.config.model.table_optimizer.lr * self._slowed())

    def _plan_if_due(self, batch: Batch) -> None:
        chosen = self.config.training
        if chosen.precision != "plan" or len(batch) == 0:
            return
        if chosen.plan_from == "batch":
            since = self.updates - numerics.FIRST_PLAN
            if since == 0 or (since > 0 and chosen.plan_every and since % chosen.plan_every == 0):
                made = numerics.training_plan(self.model, batch, self.config.plan) if self.group.is_first else None
                self._follow(self.group.share(made))
        elif self.plan is None and chosen.plan_file is not None:
            try:
                plan = Plan.load(chosen.plan_file)
            except (OSError, ValueError) as error:
                raise TrainingError(f"training.plan_file: {error}") from None
            self._follow(plan)
        elif self.plan is None and self.probe is not None and self.updates >= chosen.plan_after:
            self._follow(*planning.from_probe(self.probe, self.config.plan.min_sqnr_db, self.group))

    def _follow(self, plan: Plan, seen: Mapping[str, Any] | None = None) -> None:
        """``seen``: by site, what the plan was made on, for the valve."""
        self.plan = plan
        if self.config.training.plan_from == "batch":
            numerics.follow(self.model, plan)
            return
        try:
            loka.install(self.model, plan, training=True)
        except ValueError as error:
            raise TrainingError(f"training.plan_file: {error}") from None
        self.valve = planning.valve_of(self.model, plan, self.config.training, self.group, seen)

    def _watch(self, seen: Mapping[str, torch.Tensor] | None = None) -> None:
        """A Probe from the next update on; ``seen``: what the processes saw before, which the first one holds."""
        assert self.config.training.probe is not None
        self.probe = loka.Probe(self.model, every=self.config.training.probe.every)
        if seen is None:
            return
        if not self.group.is_first:
            seen = {**self.probe.state_dict(), "steps": seen["steps"] * torch.tensor([1, 0])}
        self.probe.load_state_dict(seen)

    def _unwatched(self) -> AbstractContextManager[object]:
        """Calls of the model inside are none that it learns from."""
        stack = ExitStack()
        for watching in (self.probe, self.valve):
            if watching is not None:
                stack.enter_context(watching.paused())
        return stack

    def _stop_watching(self) -> None:
        for watching in (self.probe, self.valve):
            if watching is not None:
                watching.close()

    def _end_ms(self) -> int:
        """The moment at which the trained model would serve: of the first event that it is not trained on."""
        at = self.train_end if self.train_end < len(self.log) else len(self.log) - 1
        return int(self.log.read(at, at + 1).time)

    def _record(self, points: Sequence[ProgressPoint]) -> None:
        """A line of the history for every window that has closed."""
        if not points or not self.group.is_first:
            return
        for line in window_lines(points, self._since_last_line()):
            self.history.append(line)

    def _since_last_line(self) -> dict[str, Any]:
        """Where training stands, and its speed and mean loss since the history's last line."""
        now, seen = time.perf_counter(), self.epoch * self.fit_end + self.position
        seconds, rows = now - self._mark[0], seen - self._mark[1]
        total, count = self._losses
        self._mark, self._losses = (now, seen), (0.0, 0)
        return {
            "step": self.step,
            "rows_per_s": round(rows / seconds, 1) if rows > 0 and seconds > 0 else None,
            "lr": self._lr(),
            "loss": total / count if count else None,
        }

    def _end_epoch(self) -> None:
        """Score the validation slice, keep the best weights, and decide whether there is another epoch."""
        chosen = self.config.training
        improved = True
        if chosen.validation:
            found = epochs.validate(self.model, self.log, self.fit_end, self.train_end)
            value = epochs.stopping_value(found, chosen.metric)
            since = self._since_last_line() if self.group.is_first else {}  # with the rate that the epoch had
            improved = self.stopping.take(value, self.step)
            self._slow_tables_down()
            if self.group.is_first:
                if improved:
                    epochs.save_best(self.run_dir / "best", self.step, self.model)
                line = {"epoch": self.epoch + 1, "best": improved, **since}
                self.history.append(line | {"validation": {task: quality_values(q) for task, q in found.items()}})
            self.group.wait()
        self.is_done = self.epoch + 1 == chosen.epochs or self.stopping.stale >= chosen.patience
        if self.is_done and self.stopping.step is not None and not improved:
            epochs.load_best(self.run_dir / "best", self.stopping.step, self.model)
            self.tracker.changed()
        if not self.is_done:
            self.epoch, self.position = self.epoch + 1, 0

    def _described(self) -> str | None:
        return None if self.objective is None else self.objective.describe()

    def _refuse_differences(self, path: Path, meta: dict[str, Any]) -> None:
        if meta["schema"] != self.log.schema.fingerprint:
            raise CheckpointError(f"{path}: was trained on a log with another schema; start afresh or use that log")
        if meta["log"] != self.log.fingerprint:
            raise CheckpointError(f"{path}: was trained on another log; start afresh or use that log")
        if meta.get("objective") != self._described():
            was, now = meta.get("objective") or "nothing", self._described() or "nothing"
            raise CheckpointError(
                f"{path}: besides its labels the model learned {was}, now it would learn {now}; start afresh"
            )
        config = self.config.resolved()
        fixed = [(s, key) for s in ("data", "model", "training") for key in config[s] if key not in _FREE]
        fixed += [("training", "probe")] if self.config.training.plan_from == "probe" else []
        if self.config.training.precision == "plan":
            fixed += [("plan", key) for key in _PLANNING]
        changed = [
            f"{section}.{key} was {was!r}, is {now!r}"
            for section, key in fixed
            if (was := meta["config"][section].get(key)) != (now := config[section][key])
        ]
        if changed:
            raise CheckpointError(
                f"{path}: was trained with another configuration ({'; '.join(changed)}); start afresh"
            )
