"""What was measured on this machine, kept between processes. Works without torch.

One JSON file of a kind per (compiled kernels, machine, instruction set, driver) as in ``_qualification_cache``, number
of threads and torch version. Written atomically; where the directory is read-only, measurements live in memory only.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo import _core, _qualification_cache
from octavo._files import write_atomically


@dataclass(frozen=True)
class CostFile:
    """A file of one kind. ``expect`` raises ValueError, KeyError, TypeError or AttributeError for content that is not
    what it should be; ``hint``: how to make it anew."""

    kind: str
    version: int
    hint: str
    expect: Callable[[dict[str, Any]], None]

    def path(self) -> Path:
        """Where it is for this machine, this build, this torch and this many threads."""
        suffix = f"-torch{_qualification_cache.version('torch')}-{_core.threads()}threads"
        return _qualification_cache.file(self.kind, suffix)

    def read(self) -> dict[str, Any]:
        """What was kept; empty where nothing was. A damaged file is ignored with a warning."""
        try:
            text = self.path().read_text(encoding="utf-8")
        except OSError:
            return {}
        except ValueError as error:
            return self._damaged(error)
        try:
            content = json.loads(text)
            if content["version"] != self.version:
                return {}
            kept: dict[str, Any] = content["kept"]
            self.expect(kept)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return self._damaged(error)
        return kept

    def write(self, kept: Mapping[str, Any]) -> None:
        """Keep this instead of what is there. A directory that cannot be written is not an error."""
        target = self.path()
        with contextlib.suppress(OSError):
            target.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(target, json.dumps({"version": self.version, "kept": kept}, indent=1, sort_keys=True))

    def _damaged(self, error: Exception) -> dict[str, Any]:
        message = f"octavo: {self.path()} is damaged ({error}) and ignored; {self.hint}"
        warnings.warn(message, RuntimeWarning, stacklevel=3)
        return {}
