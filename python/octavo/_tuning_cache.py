"""Times of kernels on problems that were tuned on this machine, kept between processes. Works without torch."""

from __future__ import annotations

import math
from typing import Any

from octavo._cost_files import CostFile

HINT = "call octavo.ops.dispatch.tune again"


def _expect(problems: dict[str, Any]) -> None:
    """A problem's name -> its fields, us by kernel, and for products of octavo's own us by tile."""
    for row in problems.values():
        fields = row["problem"]
        if not isinstance(fields, dict) or not all(isinstance(fields[name], int) for name in ("m", "n", "k")):
            raise ValueError("a problem without its shape")
        for times in (row["kernels"], *(tiles["us"] for tiles in row["tiles"])):
            if not all(isinstance(us, int | float) and math.isfinite(us) and us > 0 for us in times.values()):
                raise ValueError("a time that is none")


_FILE = CostFile("tuning", version=1, hint=HINT, expect=_expect)
path, read, write = _FILE.path, _FILE.read, _FILE.write
