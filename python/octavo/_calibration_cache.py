"""Fitted costs of kernels on this machine, kept between processes. Works without torch."""

from __future__ import annotations

import math
from typing import Any

from octavo._cost_files import CostFile

FEATURES = 8
HINT = "run octavo doctor --calibrate"


def _expect(fits: dict[str, Any]) -> None:
    """Kernel -> element type -> coefficients, error and samples."""
    for by_io in fits.values():
        for row in by_io.values():
            numbers = [*row["coefficients"], row["error"], row["samples"]]
            whole = len(row["coefficients"]) == FEATURES
            if not whole or not all(isinstance(x, int | float) and math.isfinite(x) and x >= 0 for x in numbers):
                raise ValueError("a fit without its coefficients")


_FILE = CostFile("costs", version=2, hint=HINT, expect=_expect)
path, read, write = _FILE.path, _FILE.read, _FILE.write
