"""The compiled table: what serving needs of a fit for some windows, and nothing else."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.windows.events import probabilities
from octavo.windows.grid import Grid, Ints, WindowsError

_CHUNK = 1 << 15  # rows whose intermediate values stay in L2


class ExtrapolationWarning(UserWarning):
    """A window outside the anchors' windows was asked for."""


@dataclass(frozen=True)
class LookupTable:
    """alpha by row and window, for two anchors: p(T) = p_s + alpha (p_l - p_s), and p_s times alpha for T up to the
    shorter window.

    ``alpha`` [rows, windows] float32, each window's column in one piece; row 0 is everything, then verticals, then
    groups: what :meth:`PersonalizedInterpolator.rows` returns. ``below``, ``beyond`` [windows]: whether the window is
    up to the shorter one, or longer than the longer one. It is made anew after each fit.
    """

    alpha: npt.NDArray[np.float32]
    windows: tuple[int, ...]
    below: tuple[bool, ...]
    beyond: tuple[bool, ...]

    def predict(
        self, p_short: Any, p_long: Any, rows: Ints, number: int = 0, out: npt.NDArray[Any] | None = None
    ) -> tuple[npt.NDArray[Any], int]:
        """(p(T) [n], how many p_long below p_short were raised to it). ``rows`` [n]: integers into :attr:`alpha`;
        ``number``: which window. Float32 in, float32 out."""
        short, long = probabilities(p_short, "p_short"), probabilities(p_long, "p_long")
        if not len(short) == len(long) == len(rows):
            raise WindowsError(
                f"p_short, p_long, groups: {len(short)}, {len(long)} and {len(rows)} rows; expected equal"
            )
        column = np.ascontiguousarray(self.alpha[:, number])
        if len(rows) and (int(rows.min()) < 0 or int(rows.max()) >= len(column)):
            raise WindowsError(f"rows: found {rows.min()}..{rows.max()}; expected 0..{len(column) - 1}")
        kind = np.result_type(short, long)
        result = np.empty(len(short), kind) if out is None else out
        repaired = 0
        share, gap = np.empty(_CHUNK, np.float32), np.empty(_CHUNK, kind)
        low = np.empty(_CHUNK, bool)
        for begin in range(0, len(short), _CHUNK):
            end = min(begin + _CHUNK, len(short))
            size = end - begin
            s, alpha, g, target = short[begin:end], share[:size], gap[:size], result[begin:end]
            np.take(column, rows[begin:end], out=alpha, mode="clip")  # checked above; "raise" would buffer
            np.subtract(long[begin:end], s, out=g)
            wrong = np.less(g, 0, out=low[:size])
            if wrong.any():
                repaired += int(np.count_nonzero(wrong))
                np.maximum(g, 0, out=g)
            if self.below[number]:
                np.multiply(s, alpha, out=target)
                continue
            np.multiply(g, alpha, out=g)
            np.add(s, g, out=target)
            if self.beyond[number]:
                np.minimum(target, 1, out=target)
            else:
                np.minimum(target, np.maximum(long[begin:end], s), out=target)
        return result, repaired


def warn_outside(grid: Grid, windows: Sequence[int], texts: Sequence[str]) -> None:
    """One warning for all windows that lie outside the anchors'. Raises for those too long even for that."""
    for text, window in zip(texts, windows, strict=True):
        grid.place(window, f"window {text}")
    outside = [text for text, window in zip(texts, windows, strict=True) if grid.is_extrapolated(window)]
    if outside:
        warnings.warn(
            f"window {', '.join(outside)}: outside the models' windows, extrapolated by the groups' delay laws alone",
            ExtrapolationWarning,
            stacklevel=3,
        )
