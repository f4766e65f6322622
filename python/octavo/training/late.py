"""Labels that arrive late: a second cursor in the log, behind the stream by the time that a head's labels need."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from octavo.data import Batch, EventLog, Schema


class Lane:
    """Heads whose labels are known ``wait_ms`` after the event: what was predicted for events whose labels are not yet
    known, and the cursor of those whose labels are. Blocks are those of the stream, so both cut the log alike.
    """

    def __init__(self, heads: Sequence[str], wait_ms: int, log: EventLog, batch_size: int, stop: int) -> None:
        self.heads, self.wait_ms = tuple(heads), wait_ms
        self.position = 0  # events before it were scored and trained on
        self._log, self._size, self._stop = log, batch_size, stop
        self._held: deque[torch.Tensor] = deque()  # logits [heads, events] of the blocks from ``position`` on
        self._blocks: Iterator[Batch] | None = None
        self._next: Batch | None = None

    def hold(self, logits: Mapping[str, torch.Tensor]) -> None:
        """Keep the predictions of the stream's next block."""
        self._held.append(torch.stack([logits[head].detach() for head in self.heads]))

    def ready(self, now_ms: int) -> Iterator[tuple[Batch, dict[str, torch.Tensor]]]:
        """Blocks that were predicted and whose labels are known at ``now_ms``, with their logits; oldest first."""
        while self._held and (block := self._peek()) is not None and int(block.time[-1]) + self.wait_ms <= now_ms:
            self._next = None
            self.position += len(block)
            yield (
                as_known(block, self.heads, self.wait_ms, self._log.observed_until),
                dict(zip(self.heads, self._held.popleft().unbind(0), strict=True)),
            )

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The cursor and the held predictions."""
        name = self.heads[0]
        held = torch.cat([torch.empty(len(self.heads), 0), *self._held], 1)
        return {f"{name}/position": torch.tensor(self.position), f"{name}/held": held}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from :meth:`state_dict`."""
        self.position = int(state[f"{self.heads[0]}/position"])
        held = state[f"{self.heads[0]}/held"].clone()
        self._held = deque(held.split(self._size, 1) if held.shape[1] else ())
        self._blocks = self._next = None

    def _peek(self) -> Batch | None:
        if self._blocks is None:
            self._blocks = self._log.batches(self._size, self.position, self._stop)
        if self._next is None:
            self._next = next(self._blocks, None)
        return self._next


def lanes_of(
    log: EventLog, heads: Sequence[str], batch_size: int, stop: int, wait_hours: Mapping[str, float]
) -> list[Lane]:
    """A lane for each time that labels need, the shortest first. Raises ValueError for a head whose time nobody gave,
    and for a time of a head that there is not."""
    unknown = sorted(wait_hours.keys() - set(heads))
    if unknown:
        raise ValueError(f"wait_hours: the log has no task {unknown[0]!r}; it has {', '.join(heads)}")
    by_wait: dict[int, list[str]] = {}
    for head in heads:
        by_wait.setdefault(_wait_ms(log.schema, head, wait_hours), []).append(head)
    return [Lane(found, wait, log, batch_size, stop) for wait, found in sorted(by_wait.items())]


def as_known(batch: Batch, heads: Sequence[str], wait_ms: int, observed_until: int | None = None) -> Batch:
    """The batch with the labels of ``heads`` as they were ``wait_ms`` after each event: an outcome that came later had
    not happened, nor one that was still open when a log was collected at ``observed_until`` (ms), after the wait."""
    labels = dict(batch.labels)
    for head in heads:
        if head in batch.delay:  # a head without windows: the task itself
            later = (labels[head] > 0) & (batch.delay[head].double() * 1000 > wait_ms)
            if observed_until is not None:
                later |= labels[head].isnan() & (batch.time + wait_ms <= observed_until)
            labels[head] = labels[head].masked_fill(later, 0.0)
    return replace(batch, labels=labels)


def _wait_ms(schema: Schema, head: str, wait_hours: Mapping[str, float]) -> int:
    label = next(label for label in schema.labels if head in label.heads)
    if label.windows:
        wait = schema.wait_ms(head)
        if head in wait_hours:
            raise ValueError(f"training.wait_hours: {head!r} is known when its window closes; leave it out")
        if wait is None:
            raise ValueError(
                f"training.labels=known: {head!r} may wait for {label.anchor!r} forever; give that windows"
            )
        return wait
    if head in wait_hours:
        return round(wait_hours[head] * 3_600_000)
    if label.delay is not None:
        raise ValueError(f"training.wait_hours: the outcomes of task {head!r} are late; say after how many hours")
    return 0
