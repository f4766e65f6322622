"""What a fit of windows found, as plain values: read by its page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from octavo.evaluation import CalibrationBin, Interval


@dataclass(frozen=True)
class LawRow:
    """One row of a fit's diagnosis. ``alpha`` at the middle window with its 95% interval."""

    name: str
    level: str
    conversions: float
    family: str
    weight: float
    own: float
    alpha: float
    low: float
    high: float
    misfit: bool
    drift: bool


@dataclass(frozen=True)
class LawCurve:
    """A group's law between two models' windows: ``hours`` and ``alpha`` [points]; ``seen`` [(hours, share)]: matured
    outcomes alone."""

    name: str
    hours: list[float]
    alpha: list[float]
    seen: list[tuple[float, float]]


@dataclass(frozen=True)
class WindowCalibration:
    """How predictions of one window came true: over all matured events, by bins, and by group."""

    window: str
    own: bool  # one of the models' windows
    events: int
    calibration: Interval
    bins: list[CalibrationBin]
    groups: list[tuple[str, int, Interval]]  # name, outcomes, sum(p) / sum(y)


@dataclass(frozen=True)
class Rival:
    """A method for one window against the model retrained for it: ``gap`` of normalized entropies in % of that model's,
    ``ratio`` of the sums of predictions, ``calibration`` sum(p) / sum(y)."""

    method: str
    window: str
    gap: Interval
    ratio: Interval
    calibration: float


@dataclass(frozen=True)
class WindowsResults:
    """Everything that the page shows."""

    title: str
    created: str
    windows: list[str]
    middle: str
    settings: Mapping[str, Any]
    facts: Mapping[str, str]
    laws: list[LawRow]
    hidden: int  # groups that the table of laws leaves out
    curves: list[LawCurve]
    calibration: list[WindowCalibration] = field(default_factory=list)
    rivals: list[Rival] = field(default_factory=list)
