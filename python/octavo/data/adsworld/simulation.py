"""The world running: tick after tick, in event time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from octavo.data.adsworld.columns import Logger, candidate_table
from octavo.data.adsworld.config import DAY_MS, AdsWorldConfig
from octavo.data.adsworld.model import Model
from octavo.data.adsworld.outcomes import Answers, Impressions, intercept_for, sigmoid
from octavo.data.adsworld.population import Items, users
from octavo.data.adsworld.requests import Requests, Sessions, tick_ms
from octavo.data.adsworld.streams import Stream

Floats = npt.NDArray[np.float64]

CALIBRATION_REQUESTS = 20_000


@dataclass
class Tick:
    """``table``: the impressions. ``first_request``: number of the first of ``requests``."""

    table: pa.Table
    requests: Requests
    shown: Impressions
    affinity: Floats
    first_request: int


class Simulation:
    """One run of a world from day 0."""

    def __init__(self, config: AdsWorldConfig, seed: int, model: Model) -> None:
        self._config = config
        self._users, self._items = users(config, seed, model), Items(config, seed, model)
        self._sessions = Sessions(config, seed, model, self._users, self._items)
        self._answers = Answers(config, seed, model, self._users, self._items)
        self._logger = Logger(config, seed, model, self._users, self._items)

    def intercepts(self) -> Floats:
        """[2, domains]: the click and conversion intercepts that give the domains' base rates on day 0."""
        requests = self._sessions.sample(CALIBRATION_REQUESTS)
        found = np.empty((2, len(self._config.domains)))
        for number, domain in enumerate(self._config.domains):
            requests.domain = np.full(len(requests), number)
            shown, _ = self._answers.show(requests, self._items.factors(0.0), Stream.CALIBRATION, number)
            click, conversion = self._answers.logits(shown)
            if domain.ctr is not None:
                found[0, number] = intercept_for(domain.ctr, click)
            else:
                found[0, number] = found[0, 0] + (domain.offset or 0.0)
            found[1, number] = intercept_for(domain.cvr, conversion, sigmoid(found[0, number] + click))
        return found

    def ticks(self, intercepts: Floats, events: int | None, days: float | None) -> Iterator[Tick]:
        """Until ``events`` impressions or ``days`` are over, where given."""
        config, step = self._config, tick_ms(self._config)
        left = events
        end = None if days is None else round(days * DAY_MS)
        shifts = sorted((shift.day, number, shift.reshuffle) for number, shift in enumerate(config.shifts))
        number = first_request = 0
        while left != 0 and (end is None or number * step < end):
            day = number * step / DAY_MS
            while shifts and shifts[0][0] <= day:
                _, which, share = shifts.pop(0)
                self._items.reshuffle(share, which, day)
            requests = self._sessions.tick(number)
            shown, affinity = self._answers.show(requests, self._items.factors(day), Stream.RANKING, number)
            outcomes = self._answers.answer(shown, intercepts, number)
            table = self._logger.table(number, requests, shown, outcomes)
            # A tick is always drawn whole, and then cut: what comes before the cut must not depend on it.
            if end is not None:
                table = table.slice(0, int(np.searchsorted(shown.time, end)))
            if left is not None:
                table = table.slice(0, left)
                left -= len(table)
            yield Tick(table, requests, shown, affinity, first_request)
            first_request += len(requests)
            number += 1

    def candidates(self, tick: Tick) -> pa.Table:
        """The candidate sets of the requests whose impressions the tick's table holds."""
        count = -(-len(tick.table) // self._config.traffic.shown)
        rows = count * self._config.traffic.shown
        shown = Impressions(*(getattr(tick.shown, field.name)[:rows] for field in fields(Impressions)))
        return candidate_table(
            self._config,
            self._users,
            self._items,
            tick.requests.take(np.arange(count)),
            shown,
            tick.affinity[:count],
            tick.first_request,
        )
