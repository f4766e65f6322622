"""Progress on a terminal; one line per stage elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


class Stages:
    """Listens to :func:`octavo.training.run`; a context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = console.is_terminal
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=console, disable=not self._live)
        self._stage, self._task, self._start = "", TaskID(0), time.monotonic()

    def __enter__(self) -> Stages:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def listen(self, stage: str, done: int, total: int) -> None:
        """Hear that ``done`` of ``total`` of a stage is over."""
        if stage != self._stage:
            self._stage = stage
            if self._live:
                self._task = self._progress.add_task(stage, total=total)
            else:
                self._console.print(f"{time.monotonic() - self._start:6.1f} s  {stage}", highlight=False)
        if self._live:
            self._progress.update(self._task, completed=done, total=total)
