"""How much wider percentile intervals over few units must be."""

from __future__ import annotations

import math

Z = 1.959963984540054  # 97.5% of the normal distribution
_LARGE = 200  # degrees of freedom from which on the series is exact to 1e-9


def expansion(units: int) -> float:
    """The factor by which a 95% percentile interval of a bootstrap over ``units`` is too narrow: Student's t quantile
    over the normal one, and the variance that resampling ``units`` loses [Hesterberg 2015, expanded percentiles].
    Raises ValueError for fewer than 2.
    """
    if units < 2:
        raise ValueError(f"units: an interval needs at least 2, found {units}")
    return t_quantile(units - 1) / Z * math.sqrt(units / (units - 1))


def t_quantile(freedom: int) -> float:
    """97.5% of Student's t with ``freedom`` >= 1 degrees of freedom."""
    if freedom >= _LARGE:  # Abramowitz and Stegun 26.7.5
        z, v = Z, float(freedom)
        return (
            z + (z**3 + z) / (4 * v) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
            + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
        )  # fmt: skip
    low, high = 0.0, 13.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < 0.95 else (low, middle)
    return (low + high) / 2


def _within(t: float, freedom: int) -> float:
    """P(|T| <= t): Abramowitz and Stegun 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    if freedom % 2 == 0:
        term = total = 1.0
        for k in range(1, freedom // 2):
            term *= (2 * k - 1) / (2 * k) * cosine**2
            total += term
        return sine * total
    if freedom == 1:
        return 2 * angle / math.pi
    term = total = cosine
    for k in range(1, (freedom - 1) // 2):
        term *= 2 * k / (2 * k + 1) * cosine**2
        total += term
    return 2 / math.pi * (angle + sine * total)
