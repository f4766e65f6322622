"""Progressive validation: quality of predictions made before training on the events they are about."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from octavo.evaluation.inputs import Floats, as_array, known_events
from octavo.evaluation.metrics import Quality, entropy_of, log_loss, probabilities, quality

_BUCKETS = 1 << 16
_SUMS = ("events", "weight", "weighted labels", "weighted losses", "weighted predictions")


@dataclass(frozen=True)
class ProgressPoint:
    """Quality over the window that ends after ``position`` events, the last of them at ``time_ms``."""

    task: str
    position: int
    time_ms: int
    quality: Quality


class Progressive:
    """Accumulates logits and labels per task, in stream order; every ``window`` events (labelled or not) make a point.

    Windows are exact (NE against the window's own mean label). Over the whole stream NE and calibration are exact;
    AUC is over 65,536 buckets of the float32 logit (sign, exponent and 7 bits of mantissa), ties within a bucket
    counting half. State is a fixed number of tensors: what is restored goes on bit for bit, however the events that
    follow are cut into batches.
    """

    def __init__(self, tasks: Sequence[str], window: int) -> None:
        if window < 1:
            raise ValueError(f"window: expected at least 1 event, found {window}")
        if not tasks or len(set(tasks)) != len(tasks):
            raise ValueError(f"tasks: expected distinct names, found {list(tasks)}")
        self.tasks = tuple(tasks)
        self.window = window
        self.position = 0
        self._points: dict[str, list[ProgressPoint]] = {task: [] for task in self.tasks}
        self._sums = {task: np.zeros(len(_SUMS)) for task in self.tasks}
        self._buckets = {task: np.zeros((2, _BUCKETS)) for task in self.tasks}
        self._open: dict[str, list[np.ndarray[Any, Any]]] = {task: [] for task in self.tasks}
        self._open_events = 0
        self._last_time = 0

    def update(
        self,
        logits: Mapping[str, torch.Tensor],
        labels: Mapping[str, torch.Tensor],
        time: torch.Tensor,
        weight: torch.Tensor | None = None,
    ) -> list[ProgressPoint]:
        """Add B events: ``logits[task]``, ``labels[task]`` [B] (nan = not known), ``time`` [B] ms, ``weight`` [B].

        Returns the points of the windows that these events complete. Raises KeyError for a task that is absent and
        ValueError for a nan logit or shapes that differ.
        """
        times = as_array(time, "time")
        loads = np.ones(len(times)) if weight is None else as_array(weight, "weight")
        rows = {}
        for task in self.tasks:
            scores, truth = as_array(logits[task], f"logits[{task!r}]"), as_array(labels[task], f"labels[{task!r}]")
            if len(truth) != len(times):
                raise ValueError(f"labels[{task!r}]: expected one per time ({len(times)}), found {len(truth)}")
            try:
                known_events(scores, truth, loads, logits=True, binary=True)
            except ValueError as error:
                raise ValueError(f"task {task!r}: {error}") from None
            rows[task] = np.stack([column.astype(np.float32) for column in (scores, truth, loads)])
        points: list[ProgressPoint] = []
        begin = 0
        while begin < len(times):
            end = min(len(times), begin + self.window - self._open_events)
            for task in self.tasks:
                self._open[task].append(rows[task][:, begin:end])
            self._open_events += end - begin
            self.position += end - begin
            self._last_time = int(times[end - 1])
            begin = end
            if self._open_events == self.window:
                points += self.flush()
        return points

    def flush(self) -> list[ProgressPoint]:
        """Close the open window, full or not, and return its points; nothing where it is empty."""
        if self._open_events == 0:
            return []
        points = []
        for task in self.tasks:
            scores, truth, loads = self._window(task)
            points.append(
                ProgressPoint(task, self.position, self._last_time, quality(scores, truth, loads, logits=True))
            )
            self._points[task].append(points[-1])
            sums, buckets = _totals(scores, truth, loads)
            self._sums[task] += sums
            self._buckets[task] += buckets
            self._open[task] = []
        self._open_events = 0
        return points

    @property
    def points(self) -> list[ProgressPoint]:
        """Every closed window's points, by position and then task."""
        return [point for points in zip(*self._points.values(), strict=True) for point in points]

    def cumulative(self) -> dict[str, Quality]:
        """Quality over everything seen, the open window included."""
        found = {}
        for task in self.tasks:
            sums, buckets = _totals(*self._window(task))
            found[task] = _quality(self._sums[task] + sums, self._buckets[task] + buckets)
        return found

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Everything as named tensors, ready for a checkpoint."""
        state = {"progress": torch.tensor([self.window, self.position, self._open_events, self._last_time])}
        for task in self.tasks:
            history = [
                [
                    p.position,
                    p.time_ms,
                    p.quality.events,
                    *map(_number, (p.quality.ne, p.quality.auc, p.quality.calibration)),
                ]
                for p in self._points[task]
            ]
            state[f"{task}/points"] = torch.tensor(history, dtype=torch.float64).view(-1, 6)
            state[f"{task}/sums"] = torch.from_numpy(self._sums[task].copy())
            state[f"{task}/buckets"] = torch.from_numpy(self._buckets[task].copy())
            state[f"{task}/open"] = torch.from_numpy(np.stack(self._window(task)))
        return state

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from :meth:`state_dict` of an accumulator with the same tasks and window; ValueError otherwise."""
        wanted = set(Progressive(self.tasks, self.window).state_dict())
        if set(state) != wanted:
            raise ValueError(f"state: expected tensors {sorted(wanted)}, found {sorted(state)}; the tasks differ")
        window, position, open_events, last_time = state["progress"].tolist()
        if window != self.window:
            raise ValueError(f"state: was written with window={window}, this accumulator has window={self.window}")
        self.position, self._open_events, self._last_time = position, open_events, last_time
        for task in self.tasks:
            self._points[task] = [
                ProgressPoint(task, int(row[0]), int(row[1]), Quality(int(row[2]), *map(_optional, row[3:])))
                for row in state[f"{task}/points"].tolist()
            ]
            self._sums[task] = state[f"{task}/sums"].numpy().copy()
            self._buckets[task] = state[f"{task}/buckets"].numpy().copy()
            self._open[task] = [state[f"{task}/open"].numpy().copy()] if open_events else []

    def _window(self, task: str) -> tuple[Any, Any, Any]:
        """Logits, labels and weights [open events] float32 of the open window."""
        parts = self._open[task]
        logits, labels, weight = np.concatenate(parts, axis=1) if parts else np.empty((3, 0), np.float32)
        return logits, labels, weight


def _totals(scores: Any, truth: Any, loads: Any) -> tuple[Floats, Floats]:
    """What is summed over the stream: see ``_SUMS``; and weights per (class, bucket of the logit) [2, 65536]."""
    losses = log_loss(scores, truth, logits=True)
    known = ~np.isnan(truth)
    kept, outcome, load = scores[known], truth[known].astype(np.float64), loads[known].astype(np.float64)
    chance = probabilities(kept.astype(np.float64), logits=True)
    sums = np.array([known.sum(), load.sum(), load @ outcome, load @ losses[known], load @ chance])
    bucket = _bucket(kept)
    counts = [np.bincount(bucket, share, minlength=_BUCKETS) for share in (load * (1 - outcome), load * outcome)]
    return sums, np.stack(counts)


def _bucket(logits: Any) -> Any:
    """The upper 16 bits of each float32 logit, in an order that follows the logits'."""
    bits = (logits + np.float32(0.0)).astype(np.float32).view(np.uint32)  # + 0.0: one zero only
    ordered = np.where(bits >> 31, ~bits, bits | np.uint32(0x80000000))
    return (ordered >> 16).astype(np.int64)


def _quality(sums: Floats, buckets: Floats) -> Quality:
    events, weight, positive, loss, predicted = sums.tolist()
    entropy = entropy_of(positive / weight) if weight > 0 else 0.0
    negatives, positives = buckets
    pairs = negatives.sum() * positives.sum()
    below = np.cumsum(negatives) - negatives
    return Quality(
        int(events),
        loss / weight / entropy if entropy > 0 else None,
        float(positives @ (below + 0.5 * negatives) / pairs) if pairs > 0 else None,
        predicted / positive if positive > 0 else None,
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _optional(value: float) -> float | None:
    return None if math.isnan(value) else value
