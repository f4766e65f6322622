"""The plan: which numerics class each layer runs in, and why. A JSON file to review, diff and reload."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from octavo import _core
from octavo._files import write_atomically
from octavo.ops._types import ALL_NUMERICS, choice

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class PlanEntry:
    """One site: canonical module path + direction.

    ``kernels``: preferred kernel per M bucket (key: the largest M of the bucket). ``measured``: errors of each class on
    the batch the plan was made from. ``reason``: why this class.
    """

    site: str
    n: int
    k: int
    epilogue: str
    numerics: str
    direction: str = "forward"
    kernels: Mapping[str, str] = field(default_factory=dict)
    requirement: Mapping[str, float | bool] = field(default_factory=dict)
    measured: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    predicted_us: float | None = None
    reason: str = ""

    @property
    def predicted_sqnr_db(self) -> float | None:
        """SQNR of the chosen class on the plan's batch; None for FP32."""
        return self.measured.get(self.numerics, {}).get("sqnr_db")


@dataclass(frozen=True)
class Plan:
    """The entries of one model, in module order. ``origin``: what it was made from, for readers and for checks."""

    entries: tuple[PlanEntry, ...]
    origin: Mapping[str, str] = field(default_factory=dict)

    def __iter__(self) -> Iterator[PlanEntry]:
        return iter(self.entries)

    def __getitem__(self, site: str) -> PlanEntry:
        for entry in self.entries:
            if entry.site == site:
                return entry
        raise KeyError(f"plan: no site {site!r}; it has {', '.join(e.site for e in self.entries) or 'none'}")

    def of_direction(self, direction: str) -> Plan:
        """The entries of one direction."""
        return Plan(tuple(entry for entry in self.entries if entry.direction == direction), self.origin)

    def save(self, path: str | Path) -> None:
        """Write as JSON, atomically."""
        write_atomically(path, json.dumps(self.to_json(), indent=1, allow_nan=False))

    def to_json(self) -> dict[str, Any]:
        """Plain values, as :meth:`save` writes them."""
        content = {"schema_version": SCHEMA_VERSION, "entries": [_finite(asdict(e)) for e in self.entries]}
        return {**content, "origin": dict(self.origin)} if self.origin else content

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan. Raises ValueError that names the file for anything that is not one."""
        try:
            return cls.from_json(json.loads(Path(path).read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: not a plan of octavo ({error}); write one with Plan.save") from error

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Plan:
        """The inverse of :meth:`to_json`. Raises ValueError, KeyError or TypeError for anything else."""
        missing = [name for name in ("schema_version", "entries") if name not in content]
        if missing:
            raise ValueError(f"it has no {' and no '.join(missing)}")
        version = content["schema_version"]
        if version != SCHEMA_VERSION:
            raise ValueError(f"schema version {version}, this octavo reads {SCHEMA_VERSION}; make the plan again")
        entries = tuple(PlanEntry(**entry) for entry in content["entries"])
        for entry in entries:
            choice(f"numerics of {entry.site}", entry.numerics, ALL_NUMERICS)
        return cls(entries, dict(content.get("origin", {})))

    def missing_kernels(self) -> dict[str, list[str]]:
        """Site -> preferred kernels this machine does not have; there another kernel of the same class runs."""
        here = {kernel.name for kernel in _core.kernels() if kernel.supported}
        gone: dict[str, set[str]] = {}
        for entry in self.entries:
            gone.setdefault(entry.site, set()).update(k for k in entry.kernels.values() if k not in here)
        return {site: sorted(names) for site, names in gone.items() if names}


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items() if not (isinstance(v, float) and not math.isfinite(v))}
    return value
