"""Passes over a log that another interpreter makes: both ends of a pipe, nothing but the standard library.

The child reads a line for each pass and answers with one, after a first line that says it is ready: ``{"loss": ...}``,
the mean, where it trains, ``{"events": ...}`` where it only reads.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def serve(prepare: Callable[[dict[str, Any]], Callable[[], dict[str, Any]]]) -> None:
    """Child: ``prepare(settings of the file in argv)`` gives the pass that every line runs. What the peer prints goes
    to stderr."""
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    with contextlib.redirect_stdout(sys.stderr):
        one_pass = prepare(settings)
        answers.write(json.dumps({"ready": True}) + "\n")
        for _ in sys.stdin:
            answers.write(json.dumps(one_pass()) + "\n")


class Passes:
    """Parent: ``script`` run by ``python`` with ``settings``; ``call()`` is one pass. Use as a context manager."""

    def __init__(self, python: Path, script: Path, settings: dict[str, Any], folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path, self._log = folder / "settings.json", folder / "stderr"
        path.write_text(json.dumps(settings), encoding="utf-8")
        with self._log.open("w") as log:
            self._child = subprocess.Popen([str(python), str(script), str(path)], stdin=subprocess.PIPE,
                                           stdout=subprocess.PIPE, stderr=log, text=True, cwd=folder)  # fmt: skip

    def __enter__(self) -> Passes:
        try:
            self._answer()
        except RuntimeError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.wait()

    def call(self) -> dict[str, Any]:
        """One pass."""
        assert self._child.stdin is not None
        self._child.stdin.write("\n")
        self._child.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            self._child.wait()
            said = self._log.read_text(errors="replace").strip().splitlines()
            raise RuntimeError(f"{self._child.args[1]}: {said[-1] if said else 'ended'}")  # type: ignore[index]
        found: dict[str, Any] = json.loads(line)
        return found
