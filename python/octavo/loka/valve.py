"""The safety valve: where what a layer sees drifts away from what its plan was made on, it trains in FP32 again."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from octavo.loka.findings import Report
from octavo.loka.installing import Installed, installed, is_installed, runs_low, to_high_precision
from octavo.loka.layers import fingerprint, is_of
from octavo.loka.watching import RecentRows, Watcher

log = logging.getLogger("octavo.loka")
_TAIL_ROWS = 4096  # of both sides, to compare 99.9% quantiles: of fewer, a few rows decide
_SHARES_SCALES = ("grad_weight", "e4m3_row")  # sums over rows: the scales there are the columns'


@dataclass(frozen=True)
class Closing:
    """A site that went back to high precision: at which step, which figure drifted, from what to what."""

    site: str
    step: int
    figure: str
    before: float
    now: float

    def __str__(self) -> str:
        return f"{self.figure} was {self.before:.3g}, is {self.now:.3g} at step {self.step}"


class SafetyValve:
    """Watches the sites that ``model`` runs in low precision under an installed plan; call :meth:`step` after each
    training step.

    A site closes, all its directions in FP32 for good, when one of these grew by more than ``limit`` against what the
    plan was made on:

    * ``offset_gain`` = sqrt(mean square / variance) of the input: what a common offset makes of a class's
      signal-relative error;
    * ``crest``: a row's largest magnitude over its root mean square, which INT8's error is proportional to;
    * ``amax_spread`` = 99.9% quantile of the rows' largest magnitudes over their median, what scales that rows share
      suffer from: where the gradient of the weight is in ``e4m3_row``, and both sides are of 4,096 rows;

    or when rows with NaN or infinities came that were not there before. Closings are in ``closed`` and in the log of
    ``octavo.loka``, as warnings.

    Args:
        model: installed with ``training=True``.
        statistics: a Watcher (a Probe, :class:`RecentRows`), whose summaries of this moment are what it compares with;
            or the Report that the plan was made from, whose ``settings["statistics"]`` holds them by site: the layers
            are then watched by a :class:`RecentRows` of its own.
        limit: factor above 1 that errors may grow by.
        every: steps between looks.
        least_rows: of a summary that says anything.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        statistics: Watcher | Report,
        limit: float = 1.5,
        every: int = 100,
        least_rows: int = 256,
    ) -> None:
        if not (isinstance(limit, int | float) and 1 < limit < math.inf):
            raise ValueError(f"limit: expected a factor above 1, found {limit!r}")
        if every < 1:
            raise ValueError(f"every: expected 1 step or more, found {every}")
        self.model, self.limit, self.every, self.least_rows = model, limit, every, least_rows
        self.closed: list[Closing] = []
        self.steps = 0
        if not is_installed(model):
            raise ValueError("model: follows no plan in training; install one with loka.install(..., training=True)")
        sites = list(self._open())
        mark = statistics.model if isinstance(statistics, Report) else getattr(statistics, "fingerprint", None)
        if not is_of(model, mark):
            raise ValueError(
                f"statistics: are of the model {mark}, this one is {fingerprint(model)}; give those of its own Probe"
            )
        if isinstance(statistics, Report):
            self._before = _of_report(statistics, sites)
        elif isinstance(statistics, Watcher):
            self._before = {site: dict(statistics.summary(site)) for site in sites}
        else:
            raise TypeError(f"statistics: expected a Probe or a Report, found {type(statistics).__name__}")
        self._own = RecentRows(model, max(1, every // 4), only=runs_low) if isinstance(statistics, Report) else None
        self._watcher: Watcher = self._own or statistics  # type: ignore[assignment]

    def step(self) -> list[Closing]:
        """A training step is over. Returns the sites that closed now."""
        self.steps += 1
        if self._own is not None:
            self._own.step()
        return self.check() if self.steps % self.every == 0 else []

    def check(self) -> list[Closing]:
        """Look now."""
        found = []
        for site, planned in self._open().items():
            before, now = self._before.get(site, {}), self._watcher.summary(site)
            drift = _broken(before, now)
            if drift is None and self._says_much(now):
                if not self._says_much(before):
                    self._before[site] = dict(now)
                    continue
                drift = _drift(before, now, self.limit, _compared(planned, before, now))
            if drift is not None:
                found.append(Closing(site, self.steps, *drift))
        for closing in found:
            self.closed.append(closing)
            self._close(closing)
            log.warning("safety valve: %s goes back to high precision: %s (limit: %g times)", closing.site, closing,
                        self.limit)  # fmt: skip
        return found

    def close(self) -> None:
        """Stop watching; what closed stays closed."""
        if self._own is not None:
            self._own.close()

    def state_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {"steps": self.steps, "closed": [asdict(c) for c in self.closed], "before": self._before}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint: its sites close again."""
        self.steps, self._before = state["steps"], {site: dict(values) for site, values in state["before"].items()}
        self.closed = [Closing(**entry) for entry in state["closed"]]
        for closing in self.closed:
            self._close(closing)

    def _says_much(self, summary: Mapping[str, float]) -> bool:
        return bool(figures(summary)) and summary.get("rows", math.inf) >= self.least_rows

    def _open(self) -> dict[str, Installed]:
        return {site: found for site, found in installed(self.model).items() if found.is_low}

    def _close(self, closing: Closing) -> None:
        found = installed(self.model).get(closing.site)
        if found is not None:
            to_high_precision(found, f"safety valve: {closing}")


_LEAST_SPREAD = 1e-12  # of a constant input: its figure stays finite, as checkpoints store it


def figures(summary: Mapping[str, float]) -> dict[str, float]:
    """Of a summary, what the valve compares: ``offset_gain``, ``crest``, ``amax_spread``; unknown ones left out."""
    found = {}
    share = summary.get("mean_square_share")
    if share is not None and not math.isnan(share):
        found["offset_gain"] = 1 / math.sqrt(max(1 - share, _LEAST_SPREAD))
    if not math.isnan(summary.get("crest", math.nan)):
        found["crest"] = summary["crest"]
    middle, high = summary.get("amax_p50", math.nan), summary.get("amax_p999", math.nan)
    if middle > 0 and not math.isnan(high):
        found["amax_spread"] = high / middle
    return found


def _broken(before: Mapping[str, float], now: Mapping[str, float]) -> tuple[str, float, float] | None:
    for name in ("nan_rows", "infinite_rows"):
        if now.get(name, 0) > 0 and before.get(name, 0) == 0:
            return name, 0, now[name]
    return None


def _compared(site: Installed, before: Mapping[str, float], now: Mapping[str, float]) -> list[str]:
    direction, numerics = _SHARES_SCALES
    entry = site.entries.get(direction)
    rows = min(summary.get("rows", math.inf) for summary in (before, now))
    shared = entry is not None and entry.numerics == numerics and rows >= _TAIL_ROWS
    return ["offset_gain", "crest", *(["amax_spread"] if shared else [])]


def _drift(
    before: Mapping[str, float], now: Mapping[str, float], limit: float, names: list[str]
) -> tuple[str, float, float] | None:
    was_all, now_all = figures(before), figures(now)
    grown = [(now_all[n] / was_all[n], n) for n in names if n in was_all and n in now_all and was_all[n] < math.inf]
    if not grown:
        return None
    factor, name = max(grown)
    return (name, was_all[name], now_all[name]) if factor > limit else None


def _of_report(report: Report, sites: list[str]) -> dict[str, dict[str, float]]:
    kept = report.settings.get("statistics", {})
    missing = [site for site in sites if site not in kept]
    if missing:
        raise ValueError(
            f"statistics: the report has no statistics of {', '.join(missing)} in settings['statistics']; give the "
            f"Probe instead"
        )
    return {site: {n: float(v) for n, v in kept[site].get("input", kept[site]).items()} for site in sites}
