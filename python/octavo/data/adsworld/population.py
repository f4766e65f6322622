"""Users and items: attributes in pages that do not depend on how many pages there are, births, deaths, popularity."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from octavo.data.adsworld.config import AdsWorldConfig, Population
from octavo.data.adsworld.model import PRICE_LOG_MEAN, PRICE_LOG_SD, Model
from octavo.data.adsworld.streams import Stream, generator
from octavo.data.errors import DataError

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]
Columns = dict[str, npt.NDArray]

PAGE = 4096
BEFORE_DAYS = 30.0  # over which the initial ids were born
_LAST_PAGE = (1 << 31) // PAGE


class Ids:
    """Ids 0, 1, ... in order of birth, with columns ``birth``, ``death`` (days), ``weight`` and those of ``describe``,
    which gives a page's columns from its generator."""

    def __init__(
        self, config: Population, seed: int, stream: Stream, describe: Callable[[np.random.Generator, int], Columns]
    ) -> None:
        self.config, self._seed, self._stream, self._describe = config, seed, stream, describe
        self._ranks = generator(seed, stream, _LAST_PAGE).permutation(config.initial) + 1
        self.columns: Columns = {}
        self._pages = 0
        self._grow(config.initial)

    def __getitem__(self, name: str) -> npt.NDArray:
        return self.columns[name]

    def born(self, day: float) -> int:
        """How many ids exist at ``day``; grows the columns to hold them."""
        spread = max(0.0, day - self.config.from_day) * self.config.per_day
        self._grow(self.config.initial + self.config.burst + math.ceil(spread) + 1)
        return int(np.searchsorted(self.columns["birth"], day, side="right"))

    def weights(self, day: float) -> Floats:
        """[born] popularity, 0 for the dead."""
        count = self.born(day)
        return np.where(self.columns["death"][:count] > day, self.columns["weight"][:count], 0.0)

    def picker(self, day: float, needed: int, group: Ints | None = None, groups: int = 1) -> Picker:
        """Draws by popularity. Raises :class:`DataError` where fewer than ``needed`` ids are alive."""
        weights = self.weights(day)
        alive = int(np.count_nonzero(weights))
        if alive < needed:
            name = self._stream.name.lower()
            raise DataError(
                f"{name}: {alive} alive on day {day:.3g}, {needed} needed; raise {name}.per_day or lifetime_days"
            )
        return Picker(weights, None if group is None else group[: len(weights)], groups)

    def _grow(self, count: int) -> None:
        pages = -(-count // PAGE)
        if pages <= self._pages:
            return
        new = [self._page(number) for number in range(self._pages, pages)]
        old = [self.columns] if self.columns else []
        self.columns = {name: np.concatenate([page[name] for page in old + new]) for name in new[0]}
        self._pages = pages

    def _page(self, number: int) -> Columns:
        config, initial = self.config, self.config.initial
        rng = generator(self._seed, self._stream, number)
        ids = np.arange(number * PAGE, (number + 1) * PAGE)
        jitter, chance, life = rng.random(PAGE), rng.random(PAGE), rng.standard_exponential(PAGE)
        first = ids < initial
        later = ids - initial - config.burst
        with np.errstate(divide="ignore"):
            spread = np.where(later < 0, 0.0, (later + jitter) / np.float64(config.per_day))
        birth = np.where(first, -BEFORE_DAYS * (1 - (ids + jitter) / initial), config.from_day + spread)
        rank = np.where(first, self._ranks[np.minimum(ids, initial - 1)], 1 + np.floor(chance * initial))
        death = np.full(PAGE, np.inf)
        if config.lifetime_days is not None:
            death = np.maximum(birth, 0.0) + config.lifetime_days * life
        return {"birth": birth, "death": death, "weight": rank**-config.zipf, **self._describe(rng, PAGE)}


class Picker:
    """Draws ids by weight, in one group or in all: one search in a cumulative sum laid out group by group."""

    def __init__(self, weights: Floats, group: Ints | None = None, groups: int = 1) -> None:
        if group is None:
            self._order = None
            self._ends = np.cumsum(weights)
            bounds = np.array([0.0, self._ends[-1]])
        else:
            self._order = np.argsort(group, kind="stable")
            self._ends = np.cumsum(weights[self._order])
            at = np.searchsorted(group[self._order], np.arange(groups + 1))
            bounds = np.concatenate(([0.0], self._ends))[at]
        self._low, self._high = bounds[:-1], bounds[1:]
        self._total = float(self._ends[-1])
        self._last = int(np.flatnonzero(np.diff(self._ends, prepend=0.0))[-1])

    def draw(self, uniform: Floats, group: Ints | None = None) -> Ints:
        """Ids for numbers in [0, 1); ``group`` -1, or one without weight: from all."""
        target = uniform * self._total
        if group is not None:
            low, high = self._low[group], self._high[group]
            target = np.where((group >= 0) & (high > low), low + uniform * (high - low), target)
        # Rounding may carry the largest numbers onto the end of the sum.
        found = np.minimum(np.searchsorted(self._ends, target, side="right"), self._last)
        ids: Ints = found if self._order is None else self._order[found]
        return ids


def users(config: AdsWorldConfig, seed: int, model: Model) -> Ids:
    """Columns ``segment``, ``factors`` [n, domains, dim], ``click_bias``, ``conversion_bias``, ``home``."""
    tastes, rho = config.tastes, config.tastes.domain_correlation

    def describe(rng: np.random.Generator, count: int) -> Columns:
        segment = rng.integers(0, tastes.segments, count)
        base = model.mix(model.segments[segment], _normal(rng, (count, tastes.dim)))
        factors = np.empty((count, len(config.domains), tastes.dim), np.float32)
        factors[:, 0] = base
        for domain in range(1, len(config.domains)):
            own = _normal(rng, (count, tastes.dim))
            factors[:, domain] = rho * base + math.sqrt(1 - rho * rho) * own
        return {
            "segment": segment,
            "factors": factors,
            "click_bias": config.effects.user_sd * rng.standard_normal(count),
            "conversion_bias": config.conversions.user_sd * rng.standard_normal(count),
            "home": np.searchsorted(model.domain_ends, rng.random(count), side="right"),
        }

    return Ids(config.users, seed, Stream.USERS, describe)


class Items(Ids):
    """Columns ``category``, ``advertiser``, ``factors`` [n, dim], ``speed`` [n, dim / 2] (radians a day),
    ``click_bias``, ``conversion_bias``, ``price``, ``price_z``."""

    def __init__(self, config: AdsWorldConfig, seed: int, model: Model) -> None:
        tastes = config.tastes

        def describe(rng: np.random.Generator, count: int) -> Columns:
            category = np.searchsorted(model.category_ends, rng.random(count), side="right")
            price_z = rng.standard_normal(count)
            return {
                "category": category,
                "advertiser": np.searchsorted(model.advertiser_ends, rng.random(count), side="right"),
                "factors": model.mix(model.categories[category], _normal(rng, (count, tastes.dim))),
                "speed": config.drift.rotation * _normal(rng, (count, tastes.dim // 2)),
                "click_bias": config.effects.item_sd * rng.standard_normal(count),
                "conversion_bias": config.conversions.item_sd * rng.standard_normal(count),
                "price": np.exp(PRICE_LOG_MEAN + PRICE_LOG_SD * price_z).astype(np.float32),
                "price_z": price_z,
            }

        super().__init__(config.items, seed, Stream.ITEMS, describe)
        self._world, self._rotates = config, config.drift.rotation > 0

    def factors(self, day: float) -> Singles:
        """[all, dim] float32, turned by what has drifted since day 0."""
        still = self.columns["factors"]
        if not self._rotates:
            return still
        angle = self.columns["speed"].astype(np.float64) * day
        cosine, sine = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
        turned = np.empty_like(still)
        turned[:, 0::2] = cosine * still[:, 0::2] - sine * still[:, 1::2]
        turned[:, 1::2] = sine * still[:, 0::2] + cosine * still[:, 1::2]
        return turned

    def reshuffle(self, share: float, number: int, day: float) -> None:
        """Draw anew the factors of a share of the items born by ``day``; shift ``number`` of this world."""
        count, dim = self.born(day), self._world.tastes.dim
        rng = generator(self._seed, Stream.RESHUFFLE, number)
        struck = rng.random(count) < share
        fresh = _normal(rng, (count, dim))
        self.columns["factors"][:count][struck] = fresh[struck]


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Singles:
    return rng.standard_normal(shape, dtype=np.float32)
