"""Rows drawn like those a layer saw: normal with their mean and covariance, then sized like them (LoKA, Probe)."""

from __future__ import annotations

import math

import torch

from octavo.loka.statistics import Statistics

SIZE_TOLERANCE = 1.1  # factor by which quantiles of rows' largest magnitudes may be off before they are corrected
SHAPE_TOLERANCE = 0.02  # mean difference that quantiles of elements over their row's largest magnitude may have
_PILOT = 4096  # rows that show what normal rows look like
_SIZES = 257  # quantiles of sizes that are compared
_ENDS = torch.logspace(-5, -2, 40, dtype=torch.float64)
_SHAPES = torch.cat([  # and of shapes: closer at the ends
    torch.zeros(1, dtype=torch.float64), _ENDS, torch.linspace(0.0101, 0.9899, 400, dtype=torch.float64),
    1 - _ENDS.flip(0), torch.ones(1, dtype=torch.float64),
])  # fmt: skip

_Map = tuple[torch.Tensor, torch.Tensor]  # quantiles of normal rows, and of those seen


class RowModel:
    """N(mean, covariance) of ``statistics``, by Cholesky or, from a sketch, low rank plus diagonal; then, where tails
    were kept and normal rows differ from those seen,

    * shape: elements over their row's largest magnitude are carried to the seen ones' quantiles, signs and zeros
      included (rectified, sparse, heavy-tailed data);
    * size: rows are scaled to the seen rows' largest magnitudes, quantile by quantile (outlier rows).

    Raises ValueError when no row was seen.
    """

    def __init__(self, statistics: Statistics, seed: int = 0) -> None:
        if statistics.rows == 0:
            raise ValueError("statistics: no finite row was seen, so none can be drawn")
        self.k = statistics.k
        self.mean = statistics.mean
        if statistics.rank:
            self._factor, rest = statistics.factors()
            self._rest: torch.Tensor | None = rest.sqrt()
        else:
            self._factor, self._rest = cholesky(statistics.covariance()), None
        self._shape: _Map | None = None
        self._size: _Map | None = None
        if statistics.tails and self.k > 0 and statistics.count("zero_rows") < statistics.rows:
            pilot = self._normal(_PILOT, torch.Generator().manual_seed(seed))
            self._shape = _shapes(statistics, pilot)
            self._size = _sizes(statistics, self._shaped(pilot))

    @property
    def corrections(self) -> tuple[str, ...]:
        """Which of ``shape`` and ``size`` are taken from what was seen."""
        return tuple(name for name, given in (("shape", self._shape), ("size", self._size)) if given is not None)

    def draw(self, m: int, generator: torch.Generator) -> torch.Tensor:
        """[m, k] FP32."""
        x = self._shaped(self._normal(m, generator))
        if self._size is not None:
            amax = x.abs().amax(1)
            x *= (_interpolated(amax, *self._size) / amax.clamp_min(1e-300))[:, None]
        return x.float()

    def _normal(self, m: int, generator: torch.Generator) -> torch.Tensor:
        width = self._factor.shape[1]
        x = torch.randn(m, width, generator=generator, dtype=torch.float64) @ self._factor.T + self.mean
        if self._rest is not None:
            x += torch.randn(m, self.k, generator=generator, dtype=torch.float64) * self._rest
        return x

    def _shaped(self, x: torch.Tensor) -> torch.Tensor:
        if self._shape is None:
            return x
        amax = x.abs().amax(1, keepdim=True).clamp_min(1e-300)
        return _between(x / amax, *self._shape) * amax


def _shapes(statistics: Statistics, normal: torch.Tensor) -> _Map | None:
    shares = (normal / normal.abs().amax(1, keepdim=True).clamp_min(1e-300)).flatten().sort().values
    expected = shares[(_SHAPES * (len(shares) - 1)).round().long()]
    seen = statistics.share_quantiles(_SHAPES)
    return (expected, seen) if float((expected - seen).abs().mean()) > SHAPE_TOLERANCE else None


def _sizes(statistics: Statistics, normal: torch.Tensor) -> _Map | None:
    # The ends of few rows are noise: the grid stops where a quantile has some rows beyond it.
    end = min(0.5, 4 / min(statistics.rows, _PILOT))
    q = torch.linspace(end, 1 - end, _SIZES, dtype=torch.float64)
    expected = torch.quantile(normal.abs().amax(1), q)
    seen = statistics.amax_quantiles(q)
    ratio = (seen.clamp_min(1e-300) / expected.clamp_min(1e-300)).log().abs()
    return (expected, seen) if float(ratio.max()) > math.log(SIZE_TOLERANCE) else None


def cholesky(covariance: torch.Tensor) -> torch.Tensor:
    """Lower L [k, k] with L L^T = covariance up to the smallest jitter that makes it positive definite. Jitter is
    relative to each column's own variance; columns without variance get rows of zeros."""
    deviation = covariance.diagonal().clamp_min(0).sqrt()
    varies = deviation > 0
    inverse = torch.where(varies, 1 / deviation.clamp_min(1e-300), 0.0)
    correlation = covariance * inverse[:, None] * inverse
    correlation.diagonal().copy_(torch.ones_like(inverse))
    jitter, identity = 1e-10, torch.eye(len(inverse), dtype=covariance.dtype)
    while True:
        lower, info = torch.linalg.cholesky_ex(correlation + jitter * identity)
        if not int(info):
            return lower * deviation[:, None]
        jitter *= 10


def _between(at: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """y at ``at``, linear between the knots x (rising) and level beyond them."""
    right = torch.searchsorted(x, at.contiguous()).clamp(1, len(x) - 1)
    low, high = x[right - 1], x[right]
    inside = ((at - low) / (high - low).clamp_min(1e-300)).clamp(0, 1)
    return y[right - 1] + inside * (y[right] - y[right - 1])


def _interpolated(at: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The same, but in proportion beyond the knots."""
    found = _between(at, x, y)
    found = torch.where(at < x[0], y[0] * at / x[0].clamp_min(1e-300), found)
    return torch.where(at > x[-1], y[-1] * at / x[-1].clamp_min(1e-300), found)
