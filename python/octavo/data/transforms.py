"""Transforms of dense features: plain frozen values that serialise, applied in float64.

Training (a column) and serving (one event) run the same code on float64 arrays; the result is rounded to float32 once.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.data.errors import DataError, one_line

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Log1p:
    """ln(1 + x), for counts and amounts; x must be above -1 (clip first where it may not be)."""

    def apply(self, x: Array) -> Array:
        with np.errstate(invalid="ignore", divide="ignore"):
            result: Array = np.log1p(x)
        return result


@dataclass(frozen=True)
class Clip:
    """Limit to [low, high]."""

    low: float
    high: float

    def __post_init__(self) -> None:
        _as_floats(self)
        if not self.low <= self.high:
            raise DataError(f"clip: expected low <= high, found {self.low}, {self.high}")

    def apply(self, x: Array) -> Array:
        result: Array = np.clip(x, self.low, self.high)
        return result


@dataclass(frozen=True)
class Standardise:
    """(x - mean) / std with a frozen mean and std, in the units that the transforms before it leave."""

    mean: float
    std: float

    def __post_init__(self) -> None:
        _as_floats(self)
        if not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std > 0):
            raise DataError(f"standardise: expected a finite mean and std > 0, found {self.mean}, {self.std}")

    def apply(self, x: Array) -> Array:
        return (x - self.mean) / self.std


def _as_floats(transform: Clip | Standardise) -> None:
    """Clip(0, 1) and Clip(0.0, 1.0) are equal, so they must have one fingerprint."""
    for name, value in asdict(transform).items():
        object.__setattr__(transform, name, float(value))


Transform = Log1p | Clip | Standardise
_KINDS: dict[str, type[Log1p] | type[Clip] | type[Standardise]] = {
    "log1p": Log1p,
    "clip": Clip,
    "standardise": Standardise,
}


def to_json(transform: Transform) -> dict[str, Any]:
    """``{"kind": ..., parameters}``."""
    kind = next(kind for kind, cls in _KINDS.items() if isinstance(transform, cls))
    return {"kind": kind, **asdict(transform)}


def from_json(value: dict[str, Any], where: str) -> Transform:
    """The inverse of :func:`to_json`; ``where`` names the feature in errors."""
    parameters = {key: entry for key, entry in value.items() if key != "kind"}
    kind = value.get("kind")
    if kind not in _KINDS:
        raise DataError(f"{where}: unknown transform {kind!r}; expected one of {', '.join(_KINDS)}")
    try:
        return _KINDS[kind](**parameters)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: transform {kind!r}: {one_line(error)}") from None
