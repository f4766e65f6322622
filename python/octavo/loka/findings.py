"""What Probe found out about a model: its sites, and for each direction and class predicted errors, cost, concerns."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from octavo._files import content_hash, write_atomically
from octavo.ops._types import choice

DIRECTIONS = ("forward", "grad_input", "grad_weight")
# Definitions: octavo.ops.errors. After the next norm: of the forward alone.
ERRORS = ("rel_l1", "mere", "signal_rel", "post_norm", "sqnr_db")
CONCERNS = ("offset", "tail", "underflow", "saturation", "nan", "speed")
FORMAT = 2


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class SiteInfo:
    """A linear layer [n, k] as it was met: canonical module path, rows of a typical call, epilogue, input type, and the
    kind of device it ran on."""

    path: str
    n: int
    k: int
    m: int
    epilogue: str
    dtype: str
    device: str = "cpu"


@dataclass(frozen=True)
class Finding:
    """One numerics class at one site and direction.

    ``errors``: by the names of ``ERRORS``, those that mean something there; of one or two outputs without a norm, which
    a norm would leave nothing but signs of, ``post_norm`` is ``rel_l1``. ``us`` and ``reference_us``: a call with
    the site's m in this class and in high precision, None where it was not timed. ``draws``: pairs of input and weight
    that the errors come from. ``concerns``: of ``CONCERNS``, why the class is doubtful or useless here. ``pack_us`` and
    ``unpack_us``: what a forward in this class costs a training step besides: rounding the weight that changed, and
    reading the codes back for a grad_input in FP32; 0 where no gradient was seen.
    """

    site: str
    direction: str
    numerics: str
    errors: Mapping[str, Estimate]
    us: float | None
    reference_us: float | None
    draws: int
    concerns: tuple[str, ...] = ()
    pack_us: float = 0.0
    unpack_us: float = 0.0

    def __post_init__(self) -> None:
        choice("direction", self.direction, DIRECTIONS)
        for name in self.errors:
            choice("errors", name, ERRORS)
        for name in self.concerns:
            choice("concerns", name, CONCERNS)

    @property
    def speedup(self) -> float:
        """High precision's time over this class's; nan where one was not timed."""
        return math.nan if not self.us or not self.reference_us else self.reference_us / self.us


def error_of(demand: str, direction: str) -> str:
    """The error that a field of Requirement limits: no norm follows a gradient, and columns of a weight's gradient are
    no batch, so that ``max_post_norm`` and ``max_signal_rel`` are demands on ``rel_l1`` there."""
    error = demand.partition("_")[2]
    has_no_norm = error == "post_norm" and direction != "forward"
    has_no_batch = error == "signal_rel" and direction == "grad_weight"
    return "rel_l1" if has_no_norm or has_no_batch else error


@dataclass(frozen=True)
class Report:
    """All findings about one model. ``model``: fingerprint of its sites; ``machine``: where it was timed; ``steps``:
    how many training steps the statistics come from; ``settings``: of the Probe and the evaluation."""

    model: str
    machine: str
    steps: int
    sites: tuple[SiteInfo, ...]
    findings: tuple[Finding, ...]
    settings: Mapping[str, Any]

    def at(self, site: str, direction: str = "forward") -> tuple[Finding, ...]:
        """The findings of one site and direction, one per class. Raises KeyError for a site that is not there."""
        if site not in {info.path for info in self.sites}:
            raise KeyError(f"site: {site!r} is not in the report; it has {', '.join(info.path for info in self.sites)}")
        return tuple(f for f in self.findings if (f.site, f.direction) == (site, direction))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; infinite and undefined figures as text."""
        content: dict[str, Any] = _plain({"format": FORMAT, **asdict(self)})
        return {**content, "sha256": content_hash(content)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Report:
        """The inverse of :meth:`to_json`. Raises ValueError for another format or content that was changed."""
        if content.get("format") != FORMAT:
            raise ValueError(f"report: format {content.get('format')!r}, expected {FORMAT}; probe the model again")
        if content.get("sha256") != content_hash(content):
            raise ValueError("report: damaged or edited (its sha256 does not match); probe the model again")
        sites = tuple(SiteInfo(**site) for site in content["sites"])
        findings = tuple(
            Finding(**{
                **finding,
                "errors": {name: _estimate(entry) for name, entry in finding["errors"].items()},
                "concerns": tuple(finding["concerns"]),
            })
            for finding in content["findings"]
        )  # fmt: skip
        return cls(content["model"], content["machine"], content["steps"], sites, findings, content["settings"])

    def save(self, path: str | Path) -> None:
        """Write it, whole or not at all."""
        write_atomically(path, json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Report:
        """Read what :meth:`save` wrote. Raises ValueError that names the file."""
        try:
            return cls.from_json(json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: not a report of loka.Probe ({error})") from error


def _estimate(entry: Mapping[str, Any]) -> Estimate:
    return Estimate(**{key: float(value) for key, value in entry.items()})


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
