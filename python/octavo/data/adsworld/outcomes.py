"""From candidates to impressions, and their true probabilities and outcomes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from octavo.data.adsworld.config import DAY_MS, AdsWorldConfig
from octavo.data.adsworld.laws import draw
from octavo.data.adsworld.model import Model
from octavo.data.adsworld.population import Ids, Items
from octavo.data.adsworld.requests import Requests
from octavo.data.adsworld.streams import Stream, generator

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]


@dataclass
class Impressions:
    """Shown items [n] in order of time: ``request`` is the row in the tick's requests, ``slot`` the one in its
    candidates, ``position`` the place on the screen, ``affinity`` the tastes' logit; ``signals`` [n, signals]."""

    request: Ints
    slot: Ints
    position: Ints
    time: Ints
    user: Ints
    item: Ints
    domain: Ints
    affinity: Floats
    signals: Floats


@dataclass
class Outcomes:
    """``p_click``; ``p_conversion`` of a click; what happened; seconds from impression to click and from click to
    conversion, nan where there was none."""

    p_click: Floats
    p_conversion: Floats
    click: npt.NDArray[np.bool_]
    conversion: npt.NDArray[np.bool_]
    click_delay: Floats
    conversion_wait: Floats


class Answers:
    """Which candidates are shown, and what users do with them."""

    def __init__(self, config: AdsWorldConfig, seed: int, model: Model, users: Ids, items: Items) -> None:
        self._config, self._seed, self._model, self._users, self._items = config, seed, model, users, items

    def show(self, requests: Requests, factors: Singles, stream: Stream, number: int) -> tuple[Impressions, Floats]:
        """The impressions, and the affinities of all candidates [r, C] (empty [r, 0] where all are shown as drawn).

        ``factors``: the items', now. ``stream`` and ``number`` name the random numbers.
        """
        traffic, effects = self._config.traffic, self._config.effects
        rows, shown = len(requests), traffic.shown
        if traffic.has_choice:
            rng = generator(self._seed, stream, number)
            affinity = self._affinity(requests.user, requests.domain, requests.candidates, factors)
            score = rng.gumbel(size=affinity.shape) + traffic.ranking * affinity
            slots = np.argsort(-score, axis=1, kind="stable")[:, :shown]
        else:
            affinity = np.empty((rows, 0))
            slots = np.broadcast_to(np.arange(shown), (rows, shown))
        slot = slots.ravel()
        request = np.repeat(np.arange(rows), shown)
        item, user, domain = requests.candidates[request, slot], requests.user[request], requests.domain[request]
        if affinity.shape[1]:
            mine = affinity[request, slot]
        else:
            mine = self._affinity(user, domain, item[:, None], factors)[:, 0]
        rng = generator(self._seed, Stream.SIGNALS, int(stream), number)
        signals = rng.standard_normal((len(item), effects.signals))
        position = np.tile(np.arange(shown), rows)
        return Impressions(request, slot, position, requests.time[request], user, item, domain, mine, signals), affinity

    def _affinity(self, user: Ints, domain: Ints, items: Ints, factors: Singles) -> Floats:
        """[r, C] logits of taste for ``items`` [r, C]. Summed dimension by dimension: a matrix product's order of sums,
        and so a close choice between two candidates, would depend on the machine."""
        tastes, mine = self._config.tastes, self._users["factors"][user, domain]
        total = np.zeros(items.shape, np.float32)
        for column in range(tastes.dim):
            total += factors[:, column][items] * mine[:, column, None]
        return tastes.strength / tastes.dim**0.5 * total.astype(np.float64)

    def logits(self, shown: Impressions) -> tuple[Floats, Floats]:
        """Click and conversion logits [n] without the domains' intercepts, drift and shifts."""
        effects, conversions, model = self._config.effects, self._config.conversions, self._model
        users, items, sellers = self._users, self._items, model.advertisers
        advertiser, price = items["advertiser"][shown.item], items["price_z"][shown.item]
        click = shown.affinity + users["click_bias"][shown.user] + items["click_bias"][shown.item]
        click += sellers.click_bias[advertiser] + effects.price * price
        if effects.position:
            click -= effects.position * shown.position
        if effects.hour:
            hour = ((self._config.start_ms + shown.time) % DAY_MS) / 3_600_000
            click += effects.hour * np.cos(2 * np.pi * (hour - 20) / 24)
        conversion = conversions.affinity * shown.affinity + conversions.price * price
        conversion += users["conversion_bias"][shown.user] + items["conversion_bias"][shown.item]
        conversion += sellers.conversion_bias[advertiser]
        if effects.signals:
            click += shown.signals @ model.click_weights
            conversion += shown.signals @ model.conversion_weights
        return click, conversion

    def changes(self, time: Ints, domain: Ints) -> tuple[Floats, Floats]:
        """What drift and shifts add to the click and conversion logits at ``time`` (ms since day 0)."""
        drift = self._config.drift
        click, conversion = np.zeros(len(time)), np.zeros(len(time))
        if drift.click_amplitude or drift.conversion_amplitude:
            swing = np.sin((2 * math.pi / (drift.period_days * DAY_MS)) * time)
            click += drift.click_amplitude * swing
            conversion += drift.conversion_amplitude * swing
        names = [entry.name for entry in self._config.domains]
        for shift in self._config.shifts:
            struck = time >= shift.day * DAY_MS
            if shift.domain is not None:
                struck = struck & (domain == names.index(shift.domain))
            click += shift.click * struck
            conversion += shift.conversion * struck
        return click, conversion

    def answer(self, shown: Impressions, intercepts: Floats, number: int) -> Outcomes:
        """``intercepts`` [2, domains] of click and conversion."""
        count = len(shown.item)
        click, conversion = self.logits(shown)
        moved = self.changes(shown.time, shown.domain)
        p_click = sigmoid(intercepts[0][shown.domain] + click + moved[0])
        p_conversion = sigmoid(intercepts[1][shown.domain] + conversion + moved[1])
        rng = generator(self._seed, Stream.CLICKS, number)
        clicked = rng.random(count) < p_click
        rows = np.flatnonzero(clicked)
        clicks, window = self._config.clicks, self._config.clicks.window_hours * 3600
        click_delay, wait = np.full(count, np.nan), np.full(count, np.nan)
        click_delay[rows] = np.minimum(draw(clicks.delay, rng, np.full(len(rows), window)), window)
        rng = generator(self._seed, Stream.CONVERSIONS, number)
        converted = np.zeros(count, bool)
        converted[rows] = rng.random(len(rows)) < p_conversion[rows]
        rows = np.flatnonzero(converted)
        advertiser = self._items["advertiser"][shown.item[rows]]
        when = self._config.start_ms + shown.time[rows]
        wait[rows] = self._model.advertisers.draw(rng, advertiser, when)
        return Outcomes(p_click, p_conversion, clicked, converted, click_delay, wait)


def sigmoid(logits: Floats) -> Floats:
    with np.errstate(over="ignore"):
        chance: Floats = 1 / (1 + np.exp(-logits))
    return chance


def intercept_for(rate: float, logits: Floats, weight: Floats | None = None) -> float:
    """The intercept b with (weighted) mean sigmoid(b + logits) = rate, by bisection."""
    low, high = -60.0, 60.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        if np.average(sigmoid(middle + logits), weights=weight) < rate:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)
