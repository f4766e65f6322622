"""Durations as people write them: ``500ms``, ``30s``, ``90m``, ``12h``, ``7d``."""

from __future__ import annotations

import re

from octavo.data.errors import DataError

_UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_FORM = re.compile(r"(\d+)(ms|[smhd])")


def parse_duration(text: str, where: str) -> int:
    """Milliseconds. Raises :class:`DataError`, which starts with ``where``, for anything but a whole number and a unit
    (ms, s, m, h, d)."""
    match = _FORM.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise DataError(f"{where}: found {text!r}; expected a number and a unit, such as 30m, 12h or 7d")
    return int(match[1]) * _UNITS_MS[match[2]]
