"""The questions and answers of dispatch, as frozen values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from octavo import _core
from octavo.ops._types import ALL_NUMERICS, DTYPES, choice

_TORCH = {
    "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16,
    "float8_e4m3fn": torch.float8_e4m3fn, "int8": torch.int8,
}  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """One call to be served: ``op`` (``linear``) of x [m, k] with a weight [n, k].

    ``x_dtype`` and ``out_dtype`` may be ``float8_e4m3fn`` or ``int8``: codes with a scale per row. ``epilogue`` lists
    what is fused, in order and joined by ``+`` (``bias+layer+hardswish``). ``numerics`` restricts the choice to one
    class (the weight is packed already); None = any class.
    """

    op: str
    m: int
    n: int
    k: int
    x_dtype: str = "float32"
    out_dtype: str = "float32"
    epilogue: str = ""
    device: str = "cpu"
    numerics: str | None = None

    def __post_init__(self) -> None:
        choice("op", self.op, tuple(_core.Op.__members__))
        choice("device", self.device, ("cpu", "cuda"))
        for name in ("x_dtype", "out_dtype"):
            choice(name, getattr(self, name), tuple(_TORCH))
        if self.numerics is not None:
            choice("numerics", self.numerics, ALL_NUMERICS)
        for name in ("m", "n", "k"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected a size >= 0, found {getattr(self, name)}")

    def core(self) -> _core.Problem:
        """The core's view of it."""
        return _core.Problem(
            _core.Op[self.op], self.m, self.n, self.k, DTYPES[_TORCH[self.x_dtype]], DTYPES[_TORCH[self.out_dtype]],
            self.epilogue, _core.Device[self.device], None if self.numerics is None else _core.Numerics[self.numerics],
        )  # fmt: skip


@dataclass(frozen=True)
class Requirement:
    """What a layer's low-precision output must hold; None demands nothing. Definitions: ``octavo.ops.errors``."""

    max_rel_l1: float | None = None
    max_mere: float | None = None
    max_signal_rel: float | None = None
    max_post_norm: float | None = None
    min_sqnr_db: float | None = None
    deterministic: bool = False

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if isinstance(value, float | int) and math.isnan(value):
                raise ValueError(f"{name}: is NaN; give a number, or None to demand nothing")
            if name.startswith("max_") and value is not None and value < 0:
                raise ValueError(f"{name}: found {value}, which no error meets; give 0 or more, or None")

    def core(self) -> _core.Requirement:
        """The core's view of it."""
        return _core.Requirement(**asdict(self))

    def demands(self) -> dict[str, Any]:
        """Only what is demanded."""
        return {name: value for name, value in asdict(self).items() if value is not None and value is not False}


@dataclass(frozen=True)
class Evidence:
    """A site's errors per numerics class: ``{"int8_dynamic": {"sqnr_db": 38.2, "rel_l1": 0.012}}``. Missing =
    unknown.
    """

    errors: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def core(self) -> dict[_core.Numerics, _core.ErrorEstimate]:
        """The core's view of it."""
        names = ("rel_l1", "mere", "signal_rel", "post_norm", "sqnr_db")
        for numerics, errors in self.errors.items():
            choice("errors", numerics, ALL_NUMERICS)
            for name in errors:
                choice(f"errors[{numerics!r}]", name, names)
        return {
            _core.Numerics[numerics]: _core.ErrorEstimate(*(float(errors.get(name, math.nan)) for name in names))
            for numerics, errors in self.errors.items()
        }


@dataclass(frozen=True)
class Alternative:
    """One row of the table as it was judged. ``source`` of the time: ``measured`` (this problem on this machine),
    ``calibrated`` (a fit to this machine) or ``prior``; ``reason`` says why it was not admitted ('' when it was)."""

    kernel: str
    numerics: str
    predicted_us: float
    source: str
    sqnr_db: float
    admitted: bool
    reason: str


@dataclass(frozen=True)
class Decision:
    """The kernel that serves a problem and why. ``predicted_error``: the class's errors by name, unknown ones left
    out.
    """

    kernel: str
    numerics: str
    predicted_us: float
    predicted_error: Mapping[str, float]
    reason: str
    alternatives: tuple[Alternative, ...]
