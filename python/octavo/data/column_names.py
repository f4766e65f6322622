"""Columns are known by their names, so a name is there once."""

from __future__ import annotations

from collections.abc import Sequence

from octavo.data.errors import DataError


def expect_distinct(names: Sequence[str], where: str) -> None:
    """Raises :class:`DataError` that starts with ``where`` for a name that two columns have."""
    if len(set(names)) < len(names):
        twice = next(name for at, name in enumerate(names) if name in names[:at])
        raise DataError(f"{where}: {names.count(twice)} columns are named {twice!r}; rename or remove all but one")
