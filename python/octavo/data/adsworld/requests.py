"""Sessions and their requests: who asks when, and which items are candidates."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from octavo.data.adsworld.config import DAY_MS, AdsWorldConfig
from octavo.data.adsworld.laws import draw
from octavo.data.adsworld.model import Model
from octavo.data.adsworld.population import Ids, Items, Picker
from octavo.data.adsworld.streams import Stream, generator

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_LONGEST_GAP = 3650 * DAY_MS  # keeps the times of a heavy-tailed law in 64 bits
_POPULAR_ROUNDS = 4  # redraws of a repeated candidate by popularity before it is drawn evenly


@dataclass
class Requests:
    """``time`` ms since day 0, ``session``, ``user``, ``domain`` [r]; ``candidates`` [r, C], distinct in a row."""

    time: Ints
    session: Ints
    user: Ints
    domain: Ints
    candidates: Ints

    def __len__(self) -> int:
        return len(self.time)

    def take(self, rows: npt.NDArray) -> Requests:
        return Requests(*(getattr(self, field.name)[rows] for field in fields(self)))

    @staticmethod
    def join(parts: list[Requests]) -> Requests:
        return Requests(*(np.concatenate([getattr(p, field.name) for p in parts]) for field in fields(Requests)))


class Sessions:
    """The request stream, tick by tick. Requests of a session that reach into later ticks wait here."""

    def __init__(self, config: AdsWorldConfig, seed: int, model: Model, users: Ids, items: Items) -> None:
        self._config, self._seed, self._model, self._users, self._items = config, seed, model, users, items
        self._tick_ms = tick_ms(config)
        self._started = 0
        self._waiting: list[Requests] = []
        self._latest = np.empty((0, config.traffic.candidates), np.int32)  # [users, C]: of each user's latest session

    def tick(self, number: int) -> Requests:
        """The requests of tick ``number``, in order of time. Ticks must be asked for in turn."""
        begin, end = number * self._tick_ms, (number + 1) * self._tick_ms
        parts = [*self._waiting, self._start(number, begin)]
        pool = Requests.join(parts)
        due = pool.time < end
        self._waiting = [pool.take(~due)]
        now = pool.take(due)
        return now.take(np.argsort(now.time, kind="stable"))

    def _start(self, number: int, begin: int) -> Requests:
        """All requests of the sessions that start in this tick."""
        traffic = self._config.traffic
        rng = generator(self._seed, Stream.SESSIONS, number)
        rate = traffic.impressions_per_day / traffic.shown / traffic.requests_per_session
        swing = float(self._swing(np.array(begin + self._tick_ms // 2)))
        count = int(rng.poisson(rate * (1 + swing) * self._tick_ms / DAY_MS))
        day = begin / DAY_MS
        user = self._users.picker(day, 1).draw(rng.random(count))
        start = begin + rng.integers(0, self._tick_ms, count)
        stay = 1 - 1 / traffic.requests_per_session
        requests = rng.geometric(1 - stay, count) if stay > 0 else np.ones(count, np.int64)
        domain = np.searchsorted(self._model.domain_ends, rng.random(count), side="right")
        domain = np.where(rng.random(count) < traffic.loyalty, self._users["home"][user], domain)

        session = np.repeat(np.arange(count), requests)
        place = np.arange(len(session)) - np.repeat(np.cumsum(requests) - requests, requests)
        gap = draw(traffic.gap, rng, np.full(len(session), np.inf)) * 1000
        since = np.cumsum(np.where(place > 0, np.minimum(gap, _LONGEST_GAP), 0.0))
        since -= np.repeat(since[place == 0], requests)
        time = start[session] + since.astype(np.int64)
        chance = generator(self._seed, Stream.CANDIDATES, number)
        candidates = self._candidates(chance, day, user[session], place)
        if traffic.carry_sessions > 0:
            self._remember(user, candidates[np.cumsum(requests) - 1])
        found = Requests(time, self._started + session, user[session], domain[session], candidates)
        self._started += count
        return found

    def _swing(self, time: Ints) -> Floats:
        """What the hour adds to the rate 1 of sessions at ``time`` (ms since day 0)."""
        hour = ((self._config.start_ms + time) % DAY_MS) / 3_600_000
        return self._config.traffic.daily_swing * np.cos(2 * np.pi * (hour - 20) / 24)

    def sample(self, count: int) -> Requests:
        """``count`` first requests of the first domain, at day 0's traffic: no part of the stream."""
        rng = generator(self._seed, Stream.CALIBRATION)
        user = self._users.picker(0.0, 1).draw(rng.random(count))
        none = np.zeros(count, np.int64)
        minute = Picker(1 + self._swing(np.arange(1440) * 60_000)).draw(rng.random(count))
        time = np.sort(minute * 60_000 + rng.integers(0, 60_000, count))
        return Requests(time, none, user, none, self._candidates(rng, 0.0, user, none))

    def _candidates(self, rng: np.random.Generator, day: float, user: Ints, place: Ints) -> Ints:
        """[r, C]: a session's first requests, then its second ones, ... each after the one it carries over from."""
        traffic = self._config.traffic
        groups = self._config.tastes.categories
        picker = self._items.picker(day, 2 * traffic.candidates, self._items["category"], groups)
        alive = np.flatnonzero(self._items.weights(day))
        chosen = np.empty((len(user), traffic.candidates), np.int64)
        for step in range(int(place.max()) + 1 if len(place) else 0):
            rows = np.flatnonzero(place == step)
            shape = (len(rows), traffic.candidates)
            if step:
                previous, share = chosen[rows - 1], traffic.carry
            else:
                previous, share = self._recall(user[rows]), traffic.carry_sessions
            fresh = rng.random(shape) >= share if share > 0 else np.ones(shape, bool)
            fresh |= previous < 0
            wanted = self._draw(rng, picker, user[rows])
            chosen[rows] = _distinct(np.where(fresh, wanted, previous), fresh, rng, picker, alive)
        return chosen

    def _draw(self, rng: np.random.Generator, picker: Picker, user: Ints) -> Ints:
        """[r, C] items by popularity, a share of them from a category that the user likes."""
        traffic, shape = self._config.traffic, (len(user), self._config.traffic.candidates)
        uniform = rng.random(shape)
        if traffic.retrieval == 0:
            return picker.draw(uniform)
        liked = self._model.liked
        category = liked[self._users["segment"][user][:, None], rng.integers(0, liked.shape[1], shape)]
        return picker.draw(uniform, np.where(rng.random(shape) < traffic.retrieval, category, -1))

    def _recall(self, user: Ints) -> Ints:
        """[r, C] candidates of the users' latest sessions, -1 where there is none."""
        if self._config.traffic.carry_sessions == 0:
            return np.full((len(user), self._config.traffic.candidates), -1)
        self._make_room()
        return self._latest[user].astype(np.int64)

    def _remember(self, user: Ints, candidates: Ints) -> None:
        self._make_room()
        self._latest[user] = candidates  # the last of several sessions of one user stays

    def _make_room(self) -> None:
        missing = len(self._users["birth"]) - len(self._latest)
        if missing > 0:
            self._latest = np.concatenate([self._latest, np.full((missing, self._latest.shape[1]), -1, np.int32)])


def tick_ms(config: AdsWorldConfig) -> int:
    return int(config.traffic.tick_minutes * 60_000)


def _distinct(
    chosen: Ints, fresh: npt.NDArray[np.bool_], rng: np.random.Generator, picker: Picker, alive: Ints
) -> Ints:
    """The same rows with fresh items drawn again until no row has an item twice; ``alive``: the items there are."""
    width = chosen.shape[1]
    if width == 1:
        return chosen
    bits = width.bit_length()
    open_rows, rounds = np.arange(len(chosen)), 0
    while len(open_rows):
        part, free = chosen[open_rows], fresh[open_rows]
        # One integer to sort by: item, then kept before fresh, then slot.
        keys = np.sort((((part << 1) | free) << bits) | np.arange(width), axis=1)
        again = (keys[:, 1:] >> (bits + 1)) == (keys[:, :-1] >> (bits + 1))
        row, at = np.nonzero(again)
        if not len(row):
            break
        slot = keys[row, at + 1] & ((1 << bits) - 1)
        uniform = rng.random(len(row))
        part[row, slot] = (
            picker.draw(uniform) if rounds < _POPULAR_ROUNDS else alive[(uniform * len(alive)).astype(np.int64)]
        )
        chosen[open_rows] = part
        open_rows, rounds = open_rows[again.any(1)], rounds + 1
    return chosen
