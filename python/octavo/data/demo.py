"""A generated feed-and-ads log whose true click probabilities are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from octavo.data.event_log import EventLog
from octavo.data.history import before
from octavo.data.schema import Dense, Label, Schema, Sparse
from octavo.data.transforms import Clip, Log1p, Standardise

DAYS = 14
CATEGORIES, SEGMENTS, TAGS, ADVERTISERS = 24, 12, 64, 200
DEVICES = ("android", "ios", "web")
COUNTRIES = ("BR", "DE", "FR", "GB", "IN", "JP", "MX", "US")
_START = 1_767_225_600_000
_DAY = 86_400_000

DEMO_SCHEMA = Schema(
    dense=(
        Dense("price", (Log1p(), Standardise(2.5, 1.0))),
        Dense("item_age_hours", (Clip(0.0, 10_000.0), Log1p(), Standardise(4.0, 1.5))),
        Dense("hour", (Standardise(12.0, 7.0),)),
        Dense("user_events", (Log1p(), Standardise(3.0, 1.5))),
        Dense("item_events", (Log1p(), Standardise(4.0, 2.0))),
        Dense("rating", (Standardise(3.5, 0.8),), missing=3.5),
    ),
    sparse=(
        Sparse("user", rows=1 << 15, encoding="hash"),
        Sparse("item", rows=1 << 13, encoding="hash"),
        Sparse("advertiser", rows=1 << 10, encoding="hash_text"),
        Sparse("segment", rows=SEGMENTS),
        Sparse("category", rows=CATEGORIES),
        Sparse("position", rows=8),
        Sparse("device", encoding="vocabulary", vocabulary=DEVICES),
        Sparse("country", encoding="vocabulary", vocabulary=COUNTRIES),
        Sparse("tags", rows=TAGS, multi=True),
    ),
    labels=(Label("click"),),
    user="user",
    item="item",
    request="request",
)


def write_demo_log(path: str | Path, events: int, seed: int = 0) -> EventLog:
    """Generate ``events`` impressions over 14 days and write them as a log at ``path``; equal seeds, equal logs.

    Users are active by a power law, items appear over time and fade, each (segment, category) pair's appeal drifts.
    The task is ``click``; the column ``_p_true`` (outside the schema) holds its true probability.
    """
    if events < 1:
        raise ValueError(f"events: expected at least 1, found {events}")
    return EventLog.write(path, DEMO_SCHEMA, [_generate(events, np.random.default_rng(seed))])


def _generate(events: int, rng: np.random.Generator) -> pa.Table:
    users, items = max(20, events // 25), max(50, events // 100)
    time = np.sort(rng.integers(0, DAYS * _DAY, events))
    day, hour = time / _DAY, (time // 3_600_000) % 24

    user = rng.permutation(users)[(users * rng.random(events) ** 2.5).astype(np.int64)]
    born = np.sort(np.concatenate((-_DAY * 10 * rng.random(items // 3), DAYS * _DAY * rng.random(items - items // 3))))
    alive = np.searchsorted(born, time, side="right")
    item = (alive * (1 - rng.random(events) ** 1.8)).astype(np.int64)
    item = np.minimum(item, alive - 1)

    advertiser_of = _skewed(rng, ADVERTISERS, items)
    segment_of, category_of = rng.integers(0, SEGMENTS, users), _skewed(rng, CATEGORIES, items)
    segment, category = segment_of[user], category_of[item]
    appeal = rng.normal(0, 0.9, (SEGMENTS, CATEGORIES))
    swing, phase = rng.normal(0, 0.6, (SEGMENTS, CATEGORIES)), rng.uniform(0, 2 * np.pi, (SEGMENTS, CATEGORIES))
    affinity = appeal[segment, category] + swing[segment, category] * np.sin(
        2 * np.pi * day / DAYS + phase[segment, category]
    )

    price = rng.lognormal(2.3, 0.9, items)[item]
    rating = np.clip(rng.normal(3.6, 0.7, items), 1, 5)[item]
    tag_count = rng.integers(0, 5, items)
    tag_start = np.concatenate(([0], np.cumsum(tag_count)))
    tag_values = _skewed(rng, TAGS, int(tag_start[-1]))
    tag_effect = rng.normal(0, 0.5, TAGS)
    tag_total = np.concatenate(([0.0], np.cumsum(tag_effect[tag_values])))
    tag_sum = tag_total[tag_start[item + 1]] - tag_total[tag_start[item]]

    position = rng.integers(0, 8, events)
    device = rng.integers(0, len(DEVICES), users)[user]
    country = _skewed(rng, len(COUNTRIES), users)[user]
    age = (time - born[item]) / 3_600_000
    zeros = np.zeros(events)
    user_events, item_events = before(user, time, zeros)[0], before(item, time, zeros)[0]
    logit = (
        -1.2
        + affinity
        + rng.normal(0, 0.5, users)[user]
        + rng.normal(0, 0.5, items)[item]
        + rng.normal(0, 0.4, ADVERTISERS)[advertiser_of[item]]
        + tag_sum
        - 0.35 * (np.log1p(price) - 2.4)
        + 0.5 * (rating - 3.6)
        - 0.25 * (np.log1p(age) - 4.0)
        - 0.18 * position
        + 0.3 * np.cos(2 * np.pi * (hour - 20) / 24)
        + np.array([0.1, 0.25, -0.3])[device] * (1 + 0.3 * (category % 3))
    )
    p_true = 1 / (1 + np.exp(-logit))
    click = (rng.random(events) < p_true).astype(np.int8)
    unrated = rng.random(events) < 0.05
    return pa.table(
        {
            "id": pa.array(np.arange(events)),
            "time": pa.array(_START + time),
            "request": pa.array(np.cumsum(rng.random(events) < 0.25)),
            "user": pa.array(user),
            "item": pa.array(item),
            "advertiser": pa.array([f"advertiser-{number}" for number in range(ADVERTISERS)]).take(
                pa.array(advertiser_of[item])
            ),
            "segment": pa.array(segment.astype(np.int16)),
            "category": pa.array(category.astype(np.int16)),
            "position": pa.array(position.astype(np.int8)),
            "device": pa.array(DEVICES).take(pa.array(device)),
            "country": pa.array(COUNTRIES).take(pa.array(country)),
            "tags": _lists(tag_values, tag_start, item),
            "price": pa.array(price.astype(np.float32)),
            "item_age_hours": pa.array(age.astype(np.float32)),
            "hour": pa.array(hour.astype(np.float32)),
            "user_events": pa.array(user_events),
            "item_events": pa.array(item_events),
            "rating": pa.array(rating.astype(np.float32), mask=unrated),
            "click": pa.array(click),
            "_p_true": pa.array(p_true),
        }
    )


def _skewed(rng: np.random.Generator, kinds: int, count: int) -> npt.NDArray[np.int64]:
    """``count`` draws of 0 .. kinds-1 with Zipf-like shares."""
    shares = 1 / np.arange(1, kinds + 1) ** 0.8
    draws: npt.NDArray[np.int64] = rng.choice(kinds, count, p=shares / shares.sum())
    return draws


def _lists(values: npt.NDArray[np.int64], start: npt.NDArray[np.int64], item: npt.NDArray[np.int64]) -> pa.Array:
    """Each event's list: its item's slice of ``values``."""
    lengths = np.diff(start)[item]
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    picks = np.arange(offsets[-1]) - np.repeat(offsets[:-1] - start[item], lengths)
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values[picks].astype(np.int32)))
