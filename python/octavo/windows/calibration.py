"""An isotonic map for each window, from predictions to what matured anchors came to (methods.md 5b.5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.windows.grid import Floats, Ints, WindowsError

_FEWEST = 10  # of each outcome, in what a map is fitted on


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

    def apply(self, predictions: npt.NDArray[Any], window: int) -> npt.NDArray[Any]:
        """[n] calibrated; as they are where the window has no map."""
        if window not in self.knots:
            return predictions
        x, y = self.knots[window]
        mapped = np.interp(_log_odds(predictions.astype(np.float64)), x, y)
        return mapped.astype(predictions.dtype)


def _log_odds(p: Floats) -> Floats:
    kept = np.clip(p, 1e-9, 1 - 1e-9)
    found: Floats = np.log(kept) - np.log1p(-kept)
    return found
