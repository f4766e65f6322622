"""What a world's seed fixes once: centres of taste, advertisers and their delay laws, weights of the inputs."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from octavo.config import ConfigError
from octavo.data.adsworld.config import DAY_MS, AdsWorldConfig
from octavo.data.adsworld.laws import draw
from octavo.data.adsworld.streams import Stream, generator

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]

PRICE_LOG_MEAN, PRICE_LOG_SD = 0.733, 1.066  # of online_retail's 4,070 stock codes (median price each)
_SLOTS = 256  # resolution of a segment's taste for categories


class Model:
    """``segments`` [S, dim], ``categories`` [C, dim]: centres of taste; ``liked`` [S, 256]: categories in proportion to
    a segment's taste; ``click_weights``, ``conversion_weights`` [signals]; ``*_ends``: cumulative shares."""

    def __init__(self, config: AdsWorldConfig, seed: int) -> None:
        tastes, effects = config.tastes, config.effects
        rng = generator(seed, Stream.CENTRES)
        self.config = config
        self.segments = rng.standard_normal((tastes.segments, tastes.dim), dtype=np.float32)
        self.categories = rng.standard_normal((tastes.categories, tastes.dim), dtype=np.float32)
        self.category_ends = _ends(zipf(tastes.categories, tastes.category_zipf))
        self.advertiser_ends = _ends(zipf(config.advertisers.count, config.advertisers.zipf))
        self.domain_ends = _ends(np.array([domain.share for domain in config.domains]))
        self.liked = self._liked_categories()
        rng = generator(seed, Stream.EFFECTS)
        scale = effects.signal_sd / max(1, effects.signals) ** 0.5
        self.click_weights = scale * rng.standard_normal(effects.signals)
        self.conversion_weights = scale * rng.standard_normal(effects.signals)
        self.advertisers = Advertising(config, seed)

    def mix(self, centre: Singles, own: Singles) -> Singles:
        """Factors: a cluster's centre and what is an id's own, in the configured shares of the variance."""
        share = self.config.tastes.cluster
        return np.float32(share**0.5) * centre + np.float32((1 - share) ** 0.5) * own

    def _liked_categories(self) -> Ints:
        tastes = self.config.tastes
        appeal = self.segments.astype(np.float64) @ self.categories.T.astype(np.float64)
        appeal *= tastes.focus / tastes.dim**0.5
        shares = np.exp(appeal - appeal.max(1, keepdims=True)) * zipf(tastes.categories, tastes.category_zipf)
        at = (np.arange(_SLOTS) + 0.5) / _SLOTS
        return np.stack([np.searchsorted(_ends(row), at, side="right") for row in shares])


class Advertising:
    """Advertisers [count]: ``click_bias``, ``conversion_bias``, ``law`` (index into the configured laws), ``scale``
    (factor of its times)."""

    def __init__(self, config: AdsWorldConfig, seed: int) -> None:
        count, chosen = config.advertisers.count, config.conversions
        rng = generator(seed, Stream.ADVERTISERS)
        self.click_bias = config.advertisers.click_sd * rng.standard_normal(count)
        self.conversion_bias = config.advertisers.conversion_sd * rng.standard_normal(count)
        ends = _ends(np.array([entry.weight for entry in chosen.laws]))
        self.law: Ints = np.searchsorted(ends, rng.random(count), side="right")
        self.scale = np.exp(chosen.spread * rng.standard_normal(count))
        self.laws = tuple(entry.law for entry in chosen.laws)
        self.window = chosen.window_days * 86_400.0
        shifts = sorted((shift.day, n) for n, shift in enumerate(config.shifts) if shift.delay_factor != 1.0)
        self._starts = np.array([config.start_ms + day * DAY_MS for day, _ in shifts])
        factors = [self.scale]
        for _, n in shifts:
            struck = generator(seed, Stream.DELAY_SHIFT, n).random(count) < config.shifts[n].advertisers
            factors.append(factors[-1] * np.where(struck, config.shifts[n].delay_factor, 1.0))
        self._factors = np.stack(factors)  # [epochs, advertisers]: between shifts nothing changes
        everyone = np.arange(count)
        for start in (None, *self._starts):
            when = None if start is None else np.full(count, math.ceil(start))
            whole = self._reached(everyone, self.factor(everyone, when), np.full(count, self.window))
            if not (whole > 0).all():
                raise ConfigError(
                    f"conversions.window_days: advertiser {int(whole.argmin())} has no conversions within "
                    f"{chosen.window_days} days; raise it, or shorten conversions.laws or spread"
                )

    def factor(self, advertiser: Ints, time: Ints | None) -> Floats:
        """[n] what multiplies the law's times for an impression at ``time`` (ms; None: before any shift)."""
        found: Floats = self._factors[self._epoch(time), advertiser]
        return found

    def _epoch(self, time: Ints | None) -> Ints | int:
        return 0 if time is None else np.searchsorted(self._starts, time, side="right")

    def cdf(self, advertiser: Ints, seconds: Floats, time: Ints | None = None) -> Floats:
        """[n] P(delay <= seconds | conversion)."""
        factor, window = self.factor(advertiser, time), np.full(len(advertiser), self.window)
        inside = self._reached(advertiser, factor, np.clip(seconds, 0, self.window))
        return inside / self._reached(advertiser, factor, window)

    def _reached(self, advertiser: Ints, factor: Floats, seconds: Floats) -> Floats:
        """[n] the law's own distribution, without the window."""
        law, reached = self.law[advertiser], np.empty(len(advertiser))
        for number, chosen in enumerate(self.laws):
            mine = law == number
            reached[mine] = chosen.cdf(seconds[mine] / factor[mine])
        return reached

    def quantile(self, advertiser: Ints, q: Floats, time: Ints | None = None) -> Floats:
        """[n] seconds: the inverse of :meth:`cdf`."""
        return self._quantile(self.law[advertiser], self.factor(advertiser, time), q)

    def quantiles(self, advertiser: Ints, q: float, time: Ints) -> Floats:
        """:meth:`quantile` for one q and many rows: computed once for each advertiser between two shifts."""
        epochs, count = self._factors.shape
        table = self._quantile(np.tile(self.law, epochs), self._factors.ravel(), np.full(epochs * count, q))
        found: Floats = table.reshape(epochs, count)[self._epoch(time), advertiser]
        return found

    def _quantile(self, law: Ints, factor: Floats, q: Floats) -> Floats:
        seconds = np.empty(len(law))
        for number, chosen in enumerate(self.laws):
            mine = law == number
            seconds[mine] = chosen.quantile(q[mine] * chosen.cdf(self.window / factor[mine])) * factor[mine]
        return np.minimum(seconds, self.window)

    def draw(self, rng: np.random.Generator, advertiser: Ints, time: Ints) -> Floats:
        """[n] delays in seconds of conversions of these advertisers."""
        law, factor = self.law[advertiser], self.factor(advertiser, time)
        seconds = np.empty(len(advertiser))
        for number, chosen in enumerate(self.laws):
            mine = law == number
            seconds[mine] = draw(chosen, rng, self.window / factor[mine]) * factor[mine]
        return np.minimum(seconds, self.window)


def zipf(count: int, exponent: float) -> Floats:
    """[count] weights r^-exponent of the ranks r = 1..count."""
    return np.arange(1, count + 1, dtype=np.float64) ** -exponent


def _ends(weights: Floats) -> Floats:
    """[n - 1] inner bounds of the cumulative shares: what ``searchsorted`` of a uniform number needs."""
    ends: Floats = np.cumsum(weights)[:-1] / weights.sum()
    return ends
