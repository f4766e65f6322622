"""Progressive validation: quality of predictions made before training on the events they are about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from octavo.evaluation.inputs import as_array, known_events
from octavo.evaluation.metrics import Quality
from octavo.evaluation.windows import EVERY, HeadWindows, ProgressPoint, state_names


class Progressive:
    """Accumulates logits and labels per task (head), in stream order. A window is ``window`` events (labelled or not),
    or the events of one span of ``window_ms`` of event time (spans start at multiples since 1970; a span closes when a
    later event comes); each closed window makes a point over all its events and, ``by_domain``, one for each domain.

    Windows are exact (NE against the window's own mean label). Over the whole stream NE and calibration are exact;
    AUC is over 65,536 buckets of the float32 logit (sign, exponent and 7 bits of mantissa), ties within a bucket
    counting half; GAUC is not kept. Memory: the open window, and 1 MiB per task and domain. What is restored goes on
    bit for bit, however the events that follow are cut into batches.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        window: int | None = None,
        *,
        window_ms: int | None = None,
        by_domain: bool = True,
    ) -> None:
        if (window is None) == (window_ms is None):
            raise ValueError("window, window_ms: give one of them, how a window closes")
        if window is not None and window < 1:
            raise ValueError(f"window: expected at least 1 event, found {window}")
        if window_ms is not None and window_ms < 1:
            raise ValueError(f"window_ms: expected at least 1, found {window_ms}")
        if not tasks or len(set(tasks)) != len(tasks):
            raise ValueError(f"tasks: expected distinct names, found {list(tasks)}")
        self.tasks = tuple(tasks)
        self.window, self.window_ms = window, window_ms
        self._heads = {task: HeadWindows(task, by_domain) for task in self.tasks}

    @property
    def position(self) -> int:
        """Events seen, of the task that has seen most."""
        return max(head.position for head in self._heads.values())

    def update(
        self,
        logits: Mapping[str, torch.Tensor],
        labels: Mapping[str, torch.Tensor],
        time: torch.Tensor,
        weight: torch.Tensor | None = None,
        user: torch.Tensor | None = None,
        domain: torch.Tensor | None = None,
        tasks: Sequence[str] | None = None,
    ) -> list[ProgressPoint]:
        """Add B events to ``tasks`` (None: all): ``logits[task]``, ``labels[task]`` [B] (nan = not known), ``time`` [B]
        ms, ``weight`` [B], ``user`` and ``domain`` [B] int64 (-1 = none; without users there is no GAUC).

        Returns the points of the windows that these events complete. Raises KeyError for a task that is absent and
        ValueError for a nan logit or shapes that differ.
        """
        times = as_array(time, "time").astype(np.int64)
        loads = np.ones(len(times)) if weight is None else as_array(weight, "weight")
        ids = np.stack(
            [*(_ids(column, name, len(times)) for column, name in ((user, "user"), (domain, "domain"))), times]
        )
        chosen = self.tasks if tasks is None else tuple(tasks)
        rows = {}
        for task in chosen:
            scores, truth = as_array(logits[task], f"logits[{task!r}]"), as_array(labels[task], f"labels[{task!r}]")
            if len(truth) != len(times):
                raise ValueError(f"labels[{task!r}]: expected one per time ({len(times)}), found {len(truth)}")
            try:
                known_events(scores, truth, loads, logits=True, binary=True)
            except ValueError as error:
                raise ValueError(f"task {task!r}: {error}") from None
            rows[task] = np.stack([column.astype(np.float32) for column in (scores, truth, loads)])
        points: list[ProgressPoint] = []
        for task in chosen:
            points += self._add(self._heads[task], rows[task], ids)
        return self._in_order(points)

    def flush(self) -> list[ProgressPoint]:
        """Close the open windows, full or not, and return their points; nothing where they are empty."""
        return self._in_order([point for head in self._heads.values() for point in head.close()])

    @property
    def points(self) -> list[ProgressPoint]:
        """Every closed window's points, by position, then task; a window's own before its domains'."""
        return self._in_order([point for head in self._heads.values() for point in head.points])

    def last(self, task: str) -> ProgressPoint | None:
        """The task's newest point over all events; None where no window has closed."""
        found = reversed(self._heads[task].points)
        return next((point for point in found if point.domain is None), None)

    def cumulative(self) -> dict[str, Quality]:
        """Quality over everything seen, the open windows included."""
        return {task: head.cumulative()[EVERY] for task, head in self._heads.items()}

    def cumulative_by_domain(self) -> dict[str, dict[int, Quality]]:
        """The same for every domain that came: task -> domain -> quality."""
        return {
            task: {domain: found for domain, found in sorted(head.cumulative().items()) if domain != EVERY}
            for task, head in self._heads.items()
        }

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Everything as named tensors, ready for a checkpoint."""
        state = {"windows": torch.tensor([self.window or 0, self.window_ms or 0])}
        for head in self._heads.values():
            state |= head.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from :meth:`state_dict` of an accumulator with the same tasks and window; ValueError otherwise."""
        wanted = {"windows"}.union(*(state_names(task) for task in self.tasks))
        if set(state) != wanted:
            raise ValueError(f"state: expected tensors {sorted(wanted)}, found {sorted(state)}; the tasks differ")
        window, window_ms = state["windows"].tolist()
        if (window, window_ms) != (self.window or 0, self.window_ms or 0):
            name, was, now = ("window", window, self.window) if window else ("window_ms", window_ms, self.window_ms)
            raise ValueError(f"state: was written with {name}={was}, this accumulator has {name}={now}")
        for head in self._heads.values():
            head.load_state_dict(state)

    def _add(self, head: HeadWindows, rows: Any, ids: Any) -> list[ProgressPoint]:
        points: list[ProgressPoint] = []
        count = rows.shape[1]
        if self.window is None:
            assert self.window_ms is not None
            span = ids[2] // self.window_ms
            if count and head.open_events and span[0] != head.last_time // self.window_ms:
                points += head.close()
            edges = [0, *(np.flatnonzero(np.diff(span)) + 1).tolist(), count]
            for begin, end in pairwise(edges):
                head.add(rows[:, begin:end], ids[:, begin:end])
                if end < count:
                    points += head.close()
            return points
        begin = 0
        while begin < count:
            end = min(count, begin + self.window - head.open_events)
            head.add(rows[:, begin:end], ids[:, begin:end])
            begin = end
            if head.open_events == self.window:
                points += head.close()
        return points

    def _in_order(self, points: list[ProgressPoint]) -> list[ProgressPoint]:
        return sorted(points, key=lambda point: (point.position, self.tasks.index(point.task)))


def _ids(column: Any, name: str, events: int) -> Any:
    if column is None:
        return np.full(events, -1, np.int64)
    found = as_array(column, name).astype(np.int64)
    if len(found) != events:
        raise ValueError(f"{name}: expected one per time ({events}), found {len(found)}")
    return found
