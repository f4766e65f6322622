"""The compiled table: what serving needs of a fit for some windows, and nothing else."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.windows.events import numbers, probabilities
from octavo.windows.grid import CHUNK, Grid, Ints, WindowsError


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
        short, long = numbers(p_short, "p_short"), numbers(p_long, "p_long")
        if not len(short) == len(long) == len(rows):
            sizes = f"{len(short)}, {len(long)} and {len(rows)}"
            raise WindowsError(f"p_short, p_long, groups: {sizes} rows; expected equal")
        column = np.ascontiguousarray(self.alpha[:, number])
        places = np.ascontiguousarray(rows, np.int64)
        kind = np.result_type(short, long)
        result = np.empty(len(short), kind) if out is None else out
        repaired = 0
        share, gap = np.empty(CHUNK, np.float32), np.empty(CHUNK, kind)
        for begin in range(0, len(short), CHUNK):  # checked while it is in cache
            end = min(begin + CHUNK, len(short))
            s, far, at = short[begin:end], long[begin:end], places[begin:end]
            alpha, g, target = share[: end - begin], gap[: end - begin], result[begin:end]
            if at.view(np.uint64).max() >= len(column):  # a negative one is huge
                raise WindowsError(f"rows: found {rows.min()}..{rows.max()}; expected 0..{len(column) - 1}")
            np.take(column, at, out=alpha, mode="clip")  # "raise" would buffer
            np.subtract(far, s, out=g)
            if not (s.min() >= 0 and far.max() <= 1 and g.min() >= 0):  # nan fails too
                probabilities(short, "p_short")
                probabilities(long, "p_long")
                repaired += int(np.count_nonzero(g < 0))
                np.maximum(g, 0, out=g)
            if self.below[number]:
                np.multiply(s, alpha, out=target)
                continue
            np.multiply(g, alpha, out=g)
            np.add(s, g, out=target)
            if self.beyond[number]:
                np.minimum(target, 1, out=target)
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
