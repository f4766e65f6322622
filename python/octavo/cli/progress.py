"""Progress on a terminal; one line per stage, and one now and then while training, elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_EVERY_S = 15.0  # between lines of one stage where there is no terminal


class Stages:
    """Listens to :func:`octavo.training.run`; a context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = console.is_terminal
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("ETA"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
        )  # fmt: skip
        self._progress = Progress(*columns, console=console, disable=not self._live)
        self._stage, self._task, self._start = "", TaskID(0), time.monotonic()
        self._begun = self._said = self._start
        self._first = 0

    def __enter__(self) -> Stages:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def listen(self, stage: str, done: int, total: int, note: str) -> None:
        """Hear that ``done`` of ``total`` of a stage is over; ``note`` says how it goes."""
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._begun, self._said, self._first = stage, now, now, done
            if self._live:
                self._task = self._progress.add_task(stage, total=total, note=note)
            else:
                self._console.print(f"{now - self._start:6.1f} s  {stage}", highlight=False)
        if self._live:
            self._progress.update(self._task, completed=done, total=total, note=note)
        elif now - self._said > _EVERY_S and done > self._first:
            left = (now - self._begun) * (total - done) / (done - self._first)
            text = f"{now - self._start:6.1f} s  {stage} {done:,} of {total:,}, {note}, ETA {left:,.0f} s"
            self._console.print(text, highlight=False)
            self._said = now
