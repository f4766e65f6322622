"""``history.jsonl``: a line per window of the progressive metrics and per epoch, without duplicates across resumes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from octavo.evaluation import ProgressPoint, Quality
from octavo.report import EpochRow
from octavo.training.checkpoint import CheckpointError


class History:
    """Appends lines. A checkpoint remembers how many there were (``lines``) after :meth:`flush`; :meth:`keep` drops
    what was written after it, so that going on writes every line once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines = 0

    def keep(self, lines: int) -> None:
        """Go on after the first ``lines`` lines. Raises :class:`CheckpointError` where there are fewer."""
        content = self.path.read_bytes() if self.path.exists() else b""
        whole = content.split(b"\n")[:-1]
        if len(whole) < lines:
            raise CheckpointError(
                f"{self.path}: holds {len(whole)} lines, the checkpoint was written after {lines}; restore the file or "
                "start afresh"
            )
        size = sum(len(line) + 1 for line in whole[:lines])
        if size != len(content):
            with self.path.open("r+b") as file:
                file.truncate(size)
        self.lines = lines

    def append(self, line: Mapping[str, Any]) -> None:
        """Add one line. Raises :class:`CheckpointError` where it cannot be written, as on a full disk; what was written
        of it is dropped by the run that goes on."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, allow_nan=False) + "\n")
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be written ({error.strerror}); make room and resume") from None
        self.lines += 1

    def flush(self) -> None:
        """Bring everything to the disk."""
        if self.path.exists():
            with self.path.open("rb") as file:
                os.fsync(file.fileno())


def window_lines(points: Sequence[ProgressPoint], state: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A line for each window of ``points``: where it ended, ``state`` of the training then, and the metrics by head."""
    lines: dict[tuple[int, int], dict[str, Any]] = {}
    for point in points:
        line = lines.setdefault((point.position, point.time_ms), {})
        head = line.setdefault(point.task, {"domains": {}})
        if point.domain is None:
            head |= quality_values(point.quality)
        else:
            head["domains"][str(point.domain)] = quality_values(point.quality)
    return [
        {
            "position": position,
            "time_ms": time_ms,
            "time": datetime.fromtimestamp(time_ms / 1e3, UTC).isoformat(timespec="seconds"),
            **state,
            "heads": heads,
        }
        for (position, time_ms), heads in lines.items()
    ]


def epoch_rows(path: Path) -> list[EpochRow]:
    """The epochs of a history, for the report."""
    if not path.exists():
        return []
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        EpochRow(line["epoch"], line["best"], line["lr"], line["loss"], task, Quality(**found))
        for line in lines
        if "validation" in line
        for task, found in line["validation"].items()
    ]


def quality_values(quality: Quality) -> dict[str, Any]:
    """events, ne, auc, gauc, calibration; null where not defined."""
    values = asdict(quality)
    return {name: values[name] for name in ("events", "ne", "auc", "gauc", "calibration")}
