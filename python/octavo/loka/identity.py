"""Which machine, and which model's layers, a report or a plan is about."""

from __future__ import annotations

from collections.abc import Iterable

from octavo import _core, _qualification_cache
from octavo._files import content_hash


def machine() -> str:
    """This machine as costs depend on it: CPU, instruction set, threads."""
    return f"{_qualification_cache.cpu_name()}, {_core.isa()}, {_core.threads()} threads"


def fingerprint(sites: Iterable[tuple[str, int, int, str]]) -> str:
    """16 hex digits over (path, n, k, epilogue) of a model's sites, in any order."""
    return content_hash({"sites": sorted(sites)})[:16]
