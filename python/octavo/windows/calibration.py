"""An isotonic map for each of some windows, from predictions to what matured anchors came to (methods.md 5b.5), and the
curve through them for all others."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.windows.grid import Floats, Ints, WindowsError

_FEWEST = 10  # of each outcome, in what a map is fitted on


class CalibrationWarning(UserWarning):
    """Calibration maps were dropped."""


@dataclass(frozen=True)
class Calibration:
    """``knots`` by window (ms): (prediction, calibrated) [k] each, increasing; straight in log odds between."""

    knots: dict[int, tuple[Floats, Floats]]

    @classmethod
    def fit(cls, predictions: Any, windows: Sequence[int], anchor: Ints, delay: Ints, until: int) -> Calibration:
        """``predictions`` [n, windows]; ``anchor`` [n] ms; ``delay`` [n] ms, -1 = none so far. For each window, anchors
        of at least its age at ``until`` teach. Raises :class:`WindowsError` where they hold fewer than 10 outcomes or
        fewer than 10 without."""
        from sklearn.isotonic import IsotonicRegression

        found = {}
        for number, window in enumerate(windows):
            mature = anchor + window <= until
            came = (delay >= 0) & (delay <= window)
            positive = int(came[mature].sum())
            if min(positive, int(mature.sum()) - positive) < _FEWEST:
                raise WindowsError(
                    f"calibrate: of {int(mature.sum())} anchors older than {window / 3.6e6:g} h {positive} converted "
                    f"in time; a map needs {_FEWEST} with and without"
                )
            x = _log_odds(np.asarray(predictions)[mature, number].astype(np.float64))
            model = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(x, came[mature])
            found[int(window)] = (model.X_thresholds_, model.y_thresholds_)
        return cls(found)

    def apply(self, predictions: npt.NDArray[Any], window: int) -> Floats:
        """[n] float64: through the map of ``window``, which has one."""
        x, y = self.knots[window]
        found: Floats = np.interp(_log_odds(predictions.astype(np.float64)), x, y)
        return found

    def curves(self, predicted: Callable[[int], npt.NDArray[Any]], windows: Sequence[int]) -> list[npt.NDArray[Any]]:
        """Calibrated p [n] of each of ``windows`` (ms), of any; ``predicted``: p of a window before calibration.

        At a window with a map it is the map's, raised to that of shorter ones where maps contradict each other. Between
        two of them it lies as far as the prediction lies between theirs; below the shortest it is scaled with its map;
        beyond the longest what was left of 1 is. So it never falls with the window, and depends on no other window that
        is asked for.
        """
        own = sorted(self.knots)
        raw = [predicted(window).astype(np.float64) for window in own]
        alone = [self.apply(p, window) for p, window in zip(raw, own, strict=True)]
        mapped = list(np.maximum.accumulate(alone, axis=0))
        nothing, all_ = np.zeros_like(raw[0]), np.ones_like(raw[0])
        ends, raw, mapped = [0, *own], [nothing, *raw, all_], [nothing, *mapped, all_]
        found = []
        for window in windows:
            p = predicted(window)
            k = bisect.bisect_left(ends, window) - 1  # after which of the ends
            if window in self.knots:
                found.append(mapped[k + 1].astype(p.dtype))
                continue
            width = raw[k + 1] - raw[k]
            even = (window - ends[k]) / (ends[k + 1] - ends[k]) if k + 1 < len(ends) else 0.0
            share = np.divide(p - raw[k], width, out=np.full(len(p), even), where=width > 0)
            value = mapped[k] + share * (mapped[k + 1] - mapped[k])
            found.append(np.clip(value, mapped[k], mapped[k + 1]).astype(p.dtype))
        return found


def _log_odds(p: Floats) -> Floats:
    kept = np.clip(p, 1e-9, 1 - 1e-9)
    found: Floats = np.log(kept) - np.log1p(-kept)
    return found
