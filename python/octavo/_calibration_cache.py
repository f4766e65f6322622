"""Fitted costs of kernels on this machine, kept between processes. Works without torch.

One JSON file per (compiled kernels, machine, instruction set, driver) as in ``_qualification_cache``, number of threads
and torch version. Written atomically; where the directory is read-only, fits live in memory only.
"""

from __future__ import annotations

import contextlib
import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from octavo import _core, _qualification_cache
from octavo._files import write_atomically

VERSION = 1
FEATURES = 8
HINT = "run octavo doctor --calibrate"


def path() -> Path:
    """The file of this machine, this build, this torch and this many threads."""
    return _qualification_cache.file("costs", f"-torch{_qualification_cache.version('torch')}-{_core.threads()}threads")


def read() -> dict[str, Any]:
    """Kernel -> element type -> coefficients, error and samples; empty where nothing was kept. A damaged file is
    ignored with a warning."""
    try:
        text = path().read_text(encoding="utf-8")
    except OSError:
        return {}
    try:
        content = json.loads(text)
        if content["version"] != VERSION:
            return {}
        fits: dict[str, Any] = content["fits"]
        if not all(_is_fit(row) for by_io in fits.values() for row in by_io.values()):
            raise ValueError("a fit without its coefficients")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        warnings.warn(f"octavo: {path()} is damaged ({error}) and ignored; {HINT}", RuntimeWarning, stacklevel=2)
        return {}
    return fits


def write(fits: Mapping[str, Any]) -> None:
    """Keep these fits instead of what is there. A directory that cannot be written is not an error."""
    target = path()
    with contextlib.suppress(OSError):
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, json.dumps({"version": VERSION, "fits": fits}, indent=1, sort_keys=True))


def _is_fit(row: Any) -> bool:
    numbers = [*row["coefficients"], row["error"], row["samples"]]
    return len(row["coefficients"]) == FEATURES and all(
        isinstance(x, int | float) and math.isfinite(x) and x >= 0 for x in numbers
    )
