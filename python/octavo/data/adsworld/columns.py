"""What the logging system writes: the schema of a world's log and the table of a tick."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from octavo.data.adsworld.config import DAY_MS, AdsWorldConfig
from octavo.data.adsworld.model import Model
from octavo.data.adsworld.outcomes import Impressions, Outcomes
from octavo.data.adsworld.population import Ids, Items
from octavo.data.adsworld.requests import Requests, tick_ms
from octavo.data.adsworld.streams import Stream, generator
from octavo.data.history import before
from octavo.data.schema import Dense, Label, Schema, Sparse
from octavo.data.transforms import Clip, Log1p, Standardise

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

POISONS = ("scale", "swap", "null", "category")  # _poisoned: 0 = clean, else 1 + index


def schema_of(config: AdsWorldConfig) -> Schema:
    """Ids are hashed: they go on being born."""
    item_rows = _power_of_two(4 * config.items.initial)
    history = (Sparse("history", rows=item_rows, encoding="hash", multi=True),) if config.history else ()
    return Schema(
        dense=(
            Dense("price", (Clip(0.0, 10_000.0), Log1p(), Standardise(1.2, 0.8)), missing=1.65),
            Dense("item_age_hours", (Clip(0.0, 10_000.0), Log1p(), Standardise(5.0, 1.2))),
            Dense("hour", (Standardise(12.0, 7.0),)),
            Dense("user_events", (Log1p(), Standardise(3.0, 1.5))),
            Dense("item_events", (Log1p(), Standardise(5.0, 2.0))),
            *(Dense(f"signal_{number}", (Clip(-8.0, 8.0),)) for number in range(config.effects.signals)),
        ),
        sparse=(
            Sparse("user", rows=_power_of_two(4 * config.users.initial), encoding="hash"),
            Sparse("item", rows=item_rows, encoding="hash"),
            Sparse("advertiser", rows=config.advertisers.count),
            Sparse("segment", rows=config.tastes.segments),
            Sparse("category", rows=config.tastes.categories),
            Sparse("position", rows=config.traffic.shown),
            Sparse("domain", rows=len(config.domains)),
        ),
        sequences=history,
        labels=(Label("click", "click_delay"), Label("conversion", "conversion_delay")),
        user="user",
        item="item",
        request="request",
        domain="domain",
    )


class Logger:
    """Turns ticks into tables and keeps what the log's features need of the past: counts and clicks."""

    def __init__(self, config: AdsWorldConfig, seed: int, model: Model, users: Ids, items: Items) -> None:
        self._config, self._seed, self._model, self._users, self._items = config, seed, model, users, items
        self._impressions = self._requests = 0
        self._user_events, self._item_events = np.zeros(0, np.int64), np.zeros(0, np.int64)
        self._clicks = np.zeros(0, np.int64)  # of each user so far
        self._clicked = np.zeros((0, config.history), np.int32)  # ring of each user's latest clicked items
        # Clicks that have not happened when the tick begins: their time, user, item.
        self._open: tuple[npt.NDArray, ...] = (np.zeros(0), np.zeros(0, np.int64), np.zeros(0, np.int64))

    def table(self, number: int, requests: Requests, shown: Impressions, outcomes: Outcomes) -> pa.Table:
        config, items, count = self._config, self._items, len(shown.item)
        self._make_room()
        if config.history:
            self._settle(number * tick_ms(config))
        time, advertiser = config.start_ms + shown.time, items["advertiser"][shown.item]
        inputs, poisoned = self._inputs(number, shown)
        user_events = self._user_events[shown.user] + before(shown.user, time, np.zeros(count))[0]
        item_events = self._item_events[shown.item] + before(shown.item, time, np.zeros(count))[0]
        age = np.maximum(time - config.start_ms - items["birth"][shown.item] * DAY_MS, 0) / 3_600_000
        sellers = self._model.advertisers
        columns = {
            "id": pa.array(self._impressions + np.arange(count)),
            "time": pa.array(time),
            "request": pa.array(self._requests + shown.request),
            "session": pa.array(requests.session[shown.request]),
            "user": pa.array(shown.user),
            "item": pa.array(shown.item),
            "domain": pa.array(shown.domain.astype(np.int16)),
            "advertiser": pa.array(advertiser.astype(np.int32)),
            "segment": pa.array(self._users["segment"][shown.user].astype(np.int16)),
            "category": inputs["category"],
            "position": pa.array(shown.position.astype(np.int16)),
            "price": inputs["price"],
            "item_age_hours": pa.array(age.astype(np.float32)),
            "hour": pa.array(((time // 3_600_000) % 24).astype(np.float32)),
            "user_events": pa.array(user_events),
            "item_events": pa.array(item_events),
            **{name: column for name, column in inputs.items() if name.startswith("signal_")},
            **({"history": self._history(shown.user)} if config.history else {}),
            "click": pa.array(outcomes.click.astype(np.int8)),
            "click_delay": _seconds(outcomes.click_delay),
            "conversion": pa.array(outcomes.conversion.astype(np.int8)),
            "conversion_delay": _seconds(outcomes.click_delay + outcomes.conversion_wait),
            "_p_click": pa.array(outcomes.p_click),
            "_p_conversion": pa.array(outcomes.p_conversion),
            "_conversion_wait": _seconds(outcomes.conversion_wait),
            "_law": pa.array(sellers.law[advertiser].astype(np.int16)),
            "_wait_p50": pa.array(sellers.quantiles(advertiser, 0.5, time).astype(np.float32)),
            "_wait_p90": pa.array(sellers.quantiles(advertiser, 0.9, time).astype(np.float32)),
            "_poisoned": pa.array(poisoned),
        }
        self._impressions += count
        self._requests += len(requests)
        np.add.at(self._user_events, shown.user, 1)
        np.add.at(self._item_events, shown.item, 1)
        if config.history:
            self._note(shown, outcomes)
        return pa.table(columns)

    def _inputs(self, number: int, shown: Impressions) -> tuple[dict[str, pa.Array], npt.NDArray[np.int8]]:
        """The inputs that poison may reach, as logged, and which rows it reached."""
        poison, count, day = self._config.poison, len(shown.item), shown.time / DAY_MS
        price = self._items["price"][shown.item].copy()
        category = self._items["category"][shown.item].astype(np.int16)
        signals = shown.signals.astype(np.float32)
        poisoned = np.zeros(count, np.int8)
        if poison.share > 0:
            rng = generator(self._seed, Stream.POISON, number)
            struck = (rng.random(count) < poison.share) & (day >= poison.from_day)
            struck &= day < (np.inf if poison.until_day is None else poison.until_day)
            codes = np.array([1 + POISONS.index(kind) for kind in poison.kinds], np.int8)
            poisoned = np.where(struck, codes[rng.integers(0, len(codes), count)], 0).astype(np.int8)
            other, kinds = rng.integers(0, max(1, count), count), self._config.tastes.categories
            away = rng.integers(1, max(2, kinds), count)
            scale, swap, _, wrong = (poisoned == code for code in range(1, 5))
            price, signals = np.where(swap, price[other], price), np.where(swap[:, None], signals[other], signals)
            price[scale] *= 1000
            signals[scale] *= 1000
            category = np.where(wrong, (category + away) % kinds, category).astype(np.int16)
        inputs = {"price": pa.array(price, mask=poisoned == 3), "category": pa.array(category)}
        for column in range(signals.shape[1]):
            inputs[f"signal_{column}"] = pa.array(np.ascontiguousarray(signals[:, column]))
        return inputs, poisoned

    def _history(self, user: Ints) -> pa.Array:
        """Each event's list: its user's latest clicked items, oldest first, of the clicks before this tick."""
        width, clicks = self._config.history, self._clicks[user]
        lengths = np.minimum(clicks, width)
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        place = np.arange(offsets[-1]) - np.repeat(offsets[:-1] - (clicks - lengths), lengths)
        values = self._clicked[np.repeat(user, lengths), place % width]
        return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values))

    def _note(self, shown: Impressions, outcomes: Outcomes) -> None:
        """Clicks go to the histories when a tick begins after they have happened."""
        rows = np.flatnonzero(outcomes.click)
        at = shown.time[rows] + outcomes.click_delay[rows] * 1000
        new = (at, shown.user[rows], shown.item[rows])
        self._open = tuple(np.concatenate(pair) for pair in zip(self._open, new))

    def _settle(self, begin: int) -> None:
        """Histories as of ``begin`` (ms since day 0)."""
        width, (at, user, item) = self._config.history, self._open
        due = at < begin
        self._open = (at[~due], user[~due], item[~due])
        order = np.lexsort((at[due], user[due]))
        user, item = user[due][order], item[due][order]
        first = np.flatnonzero(np.diff(user, prepend=-1))
        sizes = np.diff(first, append=len(user))
        place = np.arange(len(user)) - np.repeat(first, sizes)
        stays = place >= np.repeat(sizes, sizes) - width  # older ones of a full ring are written over anyway
        self._clicked[user[stays], (self._clicks[user] + place)[stays] % width] = item[stays]
        self._clicks[user[first]] += sizes

    def _make_room(self) -> None:
        users, items = len(self._users["birth"]), len(self._items["birth"])
        self._user_events, self._item_events = _grown(self._user_events, users), _grown(self._item_events, items)
        if self._config.history:
            self._clicks, self._clicked = _grown(self._clicks, users), _grown(self._clicked, users)


def candidate_schema(config: AdsWorldConfig) -> pa.Schema:
    """One row per (request, candidate). ``position``: where it was shown, null where it was not. ``_affinity`` (where
    there is a choice): the tastes' logit at that moment."""
    names: dict[str, pa.DataType] = {"time": pa.int64(), "request": pa.int64(), "session": pa.int64()}
    names |= {"user": pa.int64(), "item": pa.int64(), "domain": pa.int16(), "position": pa.int16()}
    names |= {"advertiser": pa.int32(), "segment": pa.int16(), "category": pa.int16(), "price": pa.float32()}
    if config.traffic.has_choice:
        names["_affinity"] = pa.float64()
    return pa.schema(list(names.items()))


def candidate_table(
    config: AdsWorldConfig,
    users: Ids,
    items: Items,
    requests: Requests,
    shown: Impressions,
    affinity: Floats,
    first: int,
) -> pa.Table:
    """The candidate sets of these requests as :func:`candidate_schema` has it. ``first``: number of the first one."""
    rows, width = requests.candidates.shape
    position = np.full((rows, width), -1, np.int16)
    position[shown.request, shown.slot] = shown.position
    request, item = np.repeat(np.arange(rows), width), requests.candidates.ravel()
    user = requests.user[request]
    columns: list[npt.NDArray] = [
        config.start_ms + requests.time[request],
        first + request,
        requests.session[request],
        user,
        item,
        requests.domain[request],
        position.ravel(),
        items["advertiser"][item],
        users["segment"][user],
        items["category"][item],
        items["price"][item],
        affinity.ravel(),
    ]
    schema = candidate_schema(config)
    arrays = [pa.array(column.astype(field.type.to_pandas_dtype())) for column, field in zip(columns, schema)]
    arrays[6] = pa.array(position.ravel(), mask=position.ravel() < 0)
    return pa.Table.from_arrays(arrays, schema=schema)


def _seconds(delay: Floats) -> pa.Array:
    return pa.array(delay.astype(np.float32), mask=np.isnan(delay))


def _grown(counts: npt.NDArray, size: int) -> npt.NDArray:
    if size == len(counts):
        return counts
    return np.concatenate([counts, np.zeros((size - len(counts), *counts.shape[1:]), counts.dtype)])


def _power_of_two(count: int) -> int:
    return 1 << max(0, count - 1).bit_length()
