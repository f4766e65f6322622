"""Deskdrop (CI&T): a first view of an article; does the reader then like, bookmark, follow or comment on it?"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from octavo.data.history import before, previous, recent
from octavo.data.schema import Dense, Label, Schema, Sparse
from octavo.data.sets.real_set import RealSet, ints, text
from octavo.data.transforms import Clip, Log1p, Standardise

TASKS = ("like", "bookmark", "follow", "comment")
DEVICES = (
    "web_windows", "web_mac", "web_linux", "app_android", "app_ios", "web_android", "web_chromeos", "web_ios",
    "unknown",
)  # fmt: skip
_COUNTRIES = ("BR", "US", "KR", "AU", "CA", "JP")
_RATES = {"like": 0.13, "bookmark": 0.045, "follow": 0.034, "comment": 0.035}
_PRIOR = 10.0  # a rate over n views is (actions + PRIOR * RATE) / (n + PRIOR)
_HISTORY = 20

DESKDROP_SCHEMA = Schema(
    dense=(
        Dense("person_views", (Log1p(), Standardise(3.5, 1.6))),
        Dense("content_views", (Log1p(), Standardise(2.3, 1.5))),
        Dense("person_hours", (Clip(0.0, 10_000.0), Log1p(), Standardise(6.0, 2.5))),
        Dense("content_hours", (Clip(0.0, 10_000.0), Log1p(), Standardise(3.0, 2.5))),
        Dense("idle_hours", (Clip(0.0, 10_000.0), Log1p(), Standardise(2.0, 2.0)), missing=10_000.0),
        *(
            Dense(f"{who}_{task}_rate", (Clip(0.0, 5 * _RATES[task]), Standardise(_RATES[task], _RATES[task])))
            for who in ("person", "content")
            for task in TASKS
        ),
    ),
    sparse=(
        Sparse("person", rows=1895),
        Sparse("content", rows=2987),
        Sparse("device", encoding="vocabulary", vocabulary=DEVICES),
        Sparse("country", encoding="vocabulary", vocabulary=_COUNTRIES),
        Sparse("hour", rows=24),
        Sparse("weekday", rows=7),
    ),
    sequences=(Sparse("viewed", rows=2987, multi=True, table="content"),),
    labels=tuple(Label(task, delay=f"{task}_delay") for task in TASKS),
    user="person",
    item="content",
    request="session",
    domain="family",
)


def build(events: pa.Table) -> pa.Table:
    """One event per (person, content) with a view: its first. Time, device and country are that view's own.

    A task's outcome is the first such action at or after the first view. Where the action came before it, the outcome
    is null: it was known. Counts are over what the log holds strictly before the view, actions included.
    """
    events = events.take(np.argsort(ints(events, "timestamp"), kind="stable"))
    person, content, time = (ints(events, name) for name in ("person", "content", "timestamp"))
    kind = text(events, "event").to_numpy(zero_copy_only=False)
    pair = person * (content.max() + 1) + content
    is_view = kind == "VIEW"
    at = np.unique(pair[is_view], return_index=True)[1]
    first = np.sort(np.flatnonzero(is_view)[at])  # the log's rows of first views, in event time
    columns: dict[str, pa.Array] = {}
    for task in TASKS:
        columns |= _outcome(task, kind == task.upper(), pair, time, first)
    seen = {who: before(ids, time, is_view.astype(float))[1] for who, ids in (("person", person), ("content", content))}
    for who, ids in (("person", person), ("content", content)):
        columns[f"{who}_views"] = pa.array(seen[who][first])
        columns[f"{who}_hours"] = pa.array(_hours_since_first(ids, time)[first])
        for task in TASKS:
            actions = before(ids, time, (kind == task.upper()).astype(float))[1][first]
            rate = (actions + _PRIOR * _RATES[task]) / (seen[who][first] + _PRIOR)
            columns[f"{who}_{task}_rate"] = pa.array(rate)
    columns["idle_hours"] = pa.array(
        (time - previous(person, time, time.astype(float)))[first] / 3600, from_pandas=True
    )
    values, offsets = recent(person[first], time[first], content[first], _HISTORY)
    device = text(events, "device").take(pa.array(first))
    family = pc.fill_null(pc.index_in(device, pa.array(DEVICES[:4])), 4)
    return pa.table(
        {
            "id": pa.array(np.arange(len(first))),
            "time": pa.array(time[first] * 1000),
            "person": pa.array(person[first]),
            "content": pa.array(content[first]),
            "session": pa.array(ints(events, "session")[first]),
            "family": family.cast(pa.int64()),
            "device": device,
            "country": text(events, "country").take(pa.array(first)),
            "hour": pa.array(time[first] // 3600 % 24),
            "weekday": pa.array((time[first] // 86_400 + 3) % 7),
            "viewed": pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values)),
            **columns,
        }
    )


def _outcome(task: str, acts: np.ndarray, pair: np.ndarray, time: np.ndarray, first: np.ndarray) -> dict[str, pa.Array]:
    """The task's label and delay (s) for each first view."""
    pairs, at = np.unique(pair[acts], return_index=True)
    acted = np.append(time[acts][at], -1)
    place = np.searchsorted(pairs, pair[first])
    place = np.where(np.append(pairs, -1)[place] == pair[first], place, len(pairs))
    when = acted[place]
    was_known = (when >= 0) & (when < time[first])
    came = when >= time[first]
    return {
        task: pa.array(came.astype(np.int8), mask=was_known),
        f"{task}_delay": pa.array((when - time[first]).astype(np.float64), mask=~came),
    }


def _hours_since_first(ids: np.ndarray, time: np.ndarray) -> np.ndarray:
    """Hours since the id's first event in the log; ``time`` is sorted."""
    _, first, place = np.unique(ids, return_index=True, return_inverse=True)
    hours: np.ndarray = (time - time[first][place]) / 3600
    return hours


DESKDROP = RealSet(
    folder="deskdrop",
    title="the Deskdrop log",
    origin="Kaggle ('Articles sharing and reading from CI&T Deskdrop'), its interactions as events.parquet",
    files={"events.parquet": ("timestamp", "event", "person", "content", "session", "device", "country")},
    schema=DESKDROP_SCHEMA,
    build=build,
)
