"""Delay laws: how long after its anchor an outcome comes. Times are seconds, distributions start at 0."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, PositiveFloat, model_validator
from scipy.special import ndtr, ndtri

from octavo.config.sections import Section

Floats = npt.NDArray[np.float64]
_BISECTIONS = 80  # of a mixture's quantile, on a log scale: far below one float64 step


class Exponential(Section):
    """F(t) = 1 - exp(-t / mean)."""

    kind: Literal["exponential"] = "exponential"
    mean: PositiveFloat

    def cdf(self, seconds: Floats) -> Floats:
        return -np.expm1(-seconds / self.mean)

    def quantile(self, q: Floats) -> Floats:
        return self.mean * _hazard(q)


class Weibull(Section):
    """F(t) = 1 - exp(-(t / scale)^shape). shape < 1: many at once and a long tail; shape > 1: a hump."""

    kind: Literal["weibull"] = "weibull"
    shape: PositiveFloat
    scale: PositiveFloat

    def cdf(self, seconds: Floats) -> Floats:
        return -np.expm1(-((seconds / self.scale) ** self.shape))

    def quantile(self, q: Floats) -> Floats:
        return self.scale * _hazard(q) ** (1 / self.shape)


class LogNormal(Section):
    """F(t) = Phi(ln(t / median) / sigma)."""

    kind: Literal["lognormal"] = "lognormal"
    median: PositiveFloat
    sigma: PositiveFloat

    def cdf(self, seconds: Floats) -> Floats:
        with np.errstate(divide="ignore"):
            reached: Floats = ndtr(np.log(seconds / self.median) / self.sigma)
        return reached

    def quantile(self, q: Floats) -> Floats:
        times: Floats = self.median * np.exp(self.sigma * ndtri(q))
        return times


Part = Annotated[Exponential | Weibull | LogNormal, Field(discriminator="kind")]


class Mixture(Section):
    """F(t) = sum of weight_i F_i(t); the weights are normalised."""

    kind: Literal["mixture"] = "mixture"
    weights: tuple[PositiveFloat, ...]
    parts: tuple[Part, ...] = Field(min_length=2)

    @model_validator(mode="after")
    def _one_weight_per_part(self) -> Mixture:
        if len(self.weights) != len(self.parts):
            raise ValueError(f"weights: expected {len(self.parts)}, one per part, found {len(self.weights)}")
        return self

    @property
    def shares(self) -> Floats:
        """[parts], summing to 1."""
        return np.array(self.weights) / sum(self.weights)

    def cdf(self, seconds: Floats) -> Floats:
        reached = np.zeros_like(seconds)
        for share, part in zip(self.shares, self.parts, strict=True):
            reached += share * part.cdf(seconds)
        return reached

    def quantile(self, q: Floats) -> Floats:
        """By bisection between the parts' own quantiles, which enclose the mixture's."""
        ends = np.stack([part.quantile(q) for part in self.parts])
        low, high = np.log(np.maximum(ends.min(0), 1e-300)), np.log(np.maximum(ends.max(0), 1e-300))
        for _ in range(_BISECTIONS):
            middle = 0.5 * (low + high)
            below = self.cdf(np.exp(middle)) < q
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        return np.where(q <= 0, 0.0, np.exp(0.5 * (low + high)))


def _hazard(q: Floats) -> Floats:
    """-ln(1 - q), inf at 1."""
    with np.errstate(divide="ignore"):
        return -np.log1p(-q)


Law = Annotated[Exponential | Weibull | LogNormal | Mixture, Field(discriminator="kind")]
AnyLaw = Exponential | Weibull | LogNormal | Mixture


def draw(law: AnyLaw, rng: np.random.Generator, horizon: Floats) -> Floats:
    """[n] delays of the law given that each is at most its ``horizon`` [n] seconds (inf = the whole law)."""
    if not isinstance(law, Mixture):
        return np.minimum(law.quantile(rng.random(len(horizon)) * law.cdf(horizon)), horizon)
    reached = np.stack([share * part.cdf(horizon) for share, part in zip(law.shares, law.parts, strict=True)])
    pick = (np.cumsum(reached, 0) < rng.random(len(horizon)) * reached.sum(0)).sum(0)
    pick = np.minimum(pick, len(law.parts) - 1)
    delays = np.empty(len(horizon))
    for number, part in enumerate(law.parts):
        chosen = pick == number
        delays[chosen] = draw(part, rng, horizon[chosen])
    return delays
