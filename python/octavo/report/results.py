"""What a run found, as plain values: written to ``results.json``, read by the report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from octavo._files import write_atomically
from octavo.evaluation import CalibrationBin, Interval, ProgressPoint, Quality


@dataclass(frozen=True)
class NumericsRow:
    """Held-out quality of the model in one numerics, and NE minus the FP32 model's NE (None for FP32 itself, and where
    it is not defined: labels of one class, one user)."""

    numerics: str
    task: str
    quality: Quality
    ne_difference: Interval | None = None


@dataclass(frozen=True)
class SliceRow:
    """Held-out quality of the FP32 model for one task in one domain (None: all)."""

    task: str
    domain: int | None
    quality: Quality


@dataclass(frozen=True)
class EpochRow:
    """Quality of one task on the validation slice after an epoch; ``best`` of the epochs so far; the layers' learning
    rate ``lr`` at its end; the mean ``loss`` of the updates since the history's line before (None: there were none)."""

    epoch: int
    best: bool
    lr: float
    loss: float | None
    task: str
    quality: Quality


@dataclass(frozen=True)
class SpeedRow:
    """Forward time of one contestant at one batch size: us per batch over the interleaved rounds.

    ``ratio`` is the time of torch's eager FP32 model divided by this one's, taken per round: its median, p10 and p90.
    """

    contestant: str
    batch_size: int
    p10_us: float
    p50_us: float
    p90_us: float
    ratio: float
    ratio_p10: float
    ratio_p90: float


@dataclass(frozen=True)
class PlanRow:
    """One layer's entry of the plan. ``kernels`` maps the bucket of M to the kernel's name."""

    site: str
    n: int
    k: int
    epilogue: str
    numerics: str
    kernels: Mapping[str, str]
    predicted_sqnr_db: float | None


@dataclass(frozen=True)
class TeacherRow:
    """What a student heard of one teacher: from which ``service``, learned by which ``method``, over how many
    ``events``, ``silent`` of which had no soft label; the others by the number of the version that spoke, its lag in
    hours (least, mean, greatest), and by head the mean ``losses`` of the updates (None: there were none)."""

    teacher: str
    service: str
    method: str
    events: int
    silent: int
    versions: Mapping[int, int]
    lag_hours: tuple[float, ...] | None
    losses: Mapping[str, float | None]


@dataclass(frozen=True)
class Results:
    """Everything the report shows. ``floor_ne`` is the NE of the generator's own probabilities where they are known."""

    run_id: str
    title: str
    created: str
    task: str
    config: Mapping[str, Any]
    config_sha256: str
    machine: Mapping[str, str]
    data: Mapping[str, str]
    training: Mapping[str, str]
    requirement: str
    progressive: list[ProgressPoint]
    heldout: Quality | None
    floor_ne: float | None = None
    baselines: Mapping[str, Quality] = field(default_factory=dict)
    calibration: list[CalibrationBin] = field(default_factory=list)
    epochs: list[EpochRow] = field(default_factory=list)
    teachers: list[TeacherRow] = field(default_factory=list)
    slices: list[SliceRow] = field(default_factory=list)
    numerics: list[NumericsRow] = field(default_factory=list)
    speed: list[SpeedRow] = field(default_factory=list)
    plan: list[PlanRow] = field(default_factory=list)

    def save(self, path: str | Path) -> None:
        """Write as JSON, atomically."""
        write_atomically(Path(path), json.dumps(asdict(self), indent=1, allow_nan=False))
