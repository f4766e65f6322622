"""What ``octavo probe`` found, as plain values for its page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from octavo.loka import Report
from octavo.ops.dispatch import Plan, Requirement
from octavo.report.results import NumericsRow, SpeedRow


@dataclass(frozen=True)
class MeasuredRow:
    """Errors of one class's forward at one site on held-out batches: by name, the median, least and largest batch."""

    site: str
    numerics: str
    errors: Mapping[str, tuple[float, float, float]]


@dataclass(frozen=True)
class InputShape:
    """What a layer's input looks like on a held-out batch.

    ``shares``: of the elements in equal bins over -``reach`` to ``reach`` root mean squares, the outermost with all
    beyond. ``mean`` and ``std`` of all elements in units of the root mean square ``rms``. ``crest``: a row's largest
    magnitude over its root mean square; ``spread``: 99.9% quantile of rows' largest magnitudes over their median.
    """

    site: str
    shares: list[float]
    reach: float
    rms: float
    mean: float
    std: float
    crest: float
    spread: float


@dataclass(frozen=True)
class ProbeResults:
    """Everything the page shows. ``numerics`` and ``speed``: of the whole model, FP32 and ``planned``."""

    run_id: str
    title: str
    created: str
    task: str
    machine: Mapping[str, str]
    facts: Mapping[str, str]
    report: Report
    plan: Plan
    requirement: Requirement
    min_speedup: float
    measured: list[MeasuredRow] = field(default_factory=list)
    inputs: list[InputShape] = field(default_factory=list)
    numerics: list[NumericsRow] = field(default_factory=list)
    speed: list[SpeedRow] = field(default_factory=list)
