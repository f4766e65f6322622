"""Rows drawn like those a layer saw: normal with their mean and covariance, then sized like them (LoKA, Probe)."""

from __future__ import annotations

import math

import torch

from octavo.loka.statistics import Statistics

# Sizes are touched where a quantile of the rows' largest magnitudes is off by more than this factor.
SIZE_TOLERANCE = 1.1
_PILOT = 4096  # rows that show how large the normal rows are
_GRID = 257  # quantiles that are compared


class RowModel:
    """N(mean, covariance) of ``statistics``, by Cholesky or, from a sketch, low rank plus diagonal. Where rows' largest
    magnitudes are distributed otherwise than normal rows' (outlier rows), each row is scaled to the quantile of the
    seen ones at its own rank. Raises ValueError when no row was seen.
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
        self._sizes: tuple[torch.Tensor, torch.Tensor] | None = None  # quantiles of normal rows, and of those seen
        if statistics.tails and self.k > 0:
            self._sizes = self._compared(statistics, torch.Generator().manual_seed(seed))

    @property
    def scales_rows(self) -> bool:
        """Whether sizes of rows are taken from those seen."""
        return self._sizes is not None

    def draw(self, m: int, generator: torch.Generator) -> torch.Tensor:
        """[m, k] FP32."""
        x = self._normal(m, generator)
        if self._sizes is not None:
            normal, seen = self._sizes
            amax = x.abs().amax(1)
            x *= (_interpolated(amax, normal, seen) / amax.clamp_min(1e-300))[:, None]
        return x.float()

    def _normal(self, m: int, generator: torch.Generator) -> torch.Tensor:
        width = self._factor.shape[1]
        x = torch.randn(m, width, generator=generator, dtype=torch.float64) @ self._factor.T + self.mean
        if self._rest is not None:
            x += torch.randn(m, self.k, generator=generator, dtype=torch.float64) * self._rest
        return x

    def _compared(self, statistics: Statistics, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor] | None:
        # The ends of few rows are noise: the grid stops where a quantile has some rows beyond it.
        end = min(0.5, 4 / min(statistics.rows, _PILOT))
        q = torch.linspace(end, 1 - end, _GRID, dtype=torch.float64)
        normal = torch.quantile(self._normal(_PILOT, generator).abs().amax(1), q)
        seen = statistics.amax_quantiles(q)
        ratio = (seen.clamp_min(1e-300) / normal.clamp_min(1e-300)).log().abs()
        return (normal, seen) if float(ratio.max()) > math.log(SIZE_TOLERANCE) else None


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


def _interpolated(at: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """y at ``at``, linear between the knots x (rising), in proportion beyond them."""
    right = torch.searchsorted(x, at).clamp(1, len(x) - 1)
    low, high = x[right - 1], x[right]
    inside = ((at - low) / (high - low).clamp_min(1e-300)).clamp(0, 1)
    found = y[right - 1] + inside * (y[right] - y[right - 1])
    found = torch.where(at < x[0], y[0] * at / x[0].clamp_min(1e-300), found)
    return torch.where(at > x[-1], y[-1] * at / x[-1].clamp_min(1e-300), found)
