"""Monotone piecewise cubic interpolation [Fritsch and Carlson 1980] where every row has its own knots."""

from __future__ import annotations

import numpy as np

from octavo.windows.grid import Floats


def pchip(x: Floats, y: Floats, at: Floats) -> Floats:
    """y at ``at`` [n] through the knots ``x`` [n, k] (increasing; equal ones are one knot) and ``y`` [n, k].

    Nondecreasing y give a nondecreasing curve. As scipy.interpolate.PchipInterpolator, row by row.
    """
    width = np.diff(x, axis=1)
    rise = np.diff(y, axis=1)
    slope = np.divide(rise, width, out=np.zeros_like(rise), where=width > 0)
    inner = _inner(width, slope)
    first = _end(width[:, 0], width[:, 1], slope[:, 0], slope[:, 1])
    last = _end(width[:, -1], width[:, -2], slope[:, -1], slope[:, -2])
    slopes = np.concatenate([first[:, None], inner, last[:, None]], axis=1)
    piece = np.clip((at[:, None] >= x[:, 1:-1]).sum(axis=1), 0, width.shape[1] - 1)
    rows = np.arange(len(at))
    h = width[rows, piece]
    t = np.divide(at - x[rows, piece], h, out=np.ones_like(at), where=h > 0)
    t = np.clip(t, 0.0, 1.0)
    low, high = y[rows, piece], y[rows, piece + 1]
    curve = (
        low * (1 + 2 * t) * (1 - t) ** 2
        + high * t**2 * (3 - 2 * t)
        + h * slopes[rows, piece] * t * (1 - t) ** 2
        - h * slopes[rows, piece + 1] * t**2 * (1 - t)
    )
    # Rounding must not take a curve out of its interval.
    found: Floats = np.clip(curve, low, high)
    return found


def _inner(width: Floats, slope: Floats) -> Floats:
    """The weighted harmonic mean of the neighbours; 0 where they are of different sign or 0."""
    before, after = slope[:, :-1], slope[:, 1:]
    w1 = 2 * width[:, 1:] + width[:, :-1]
    w2 = width[:, 1:] + 2 * width[:, :-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = (w1 + w2) / (w1 / before + w2 / after)
    found: Floats = np.where((before * after > 0) & np.isfinite(mean), mean, 0.0)
    return found


def _end(h0: Floats, h1: Floats, m0: Floats, m1: Floats) -> Floats:
    """Three points, kept monotone."""
    total = h0 + h1
    d = np.divide((2 * h0 + h1) * m0 - h0 * m1, total, out=np.zeros_like(m0), where=total > 0)
    d = np.where(np.sign(d) != np.sign(m0), 0.0, d)
    return np.where((np.sign(m0) != np.sign(m1)) & (np.abs(d) > 3 * np.abs(m0)), 3 * m0, d)
