"""MovieLens-100K as an event log: did the user like the film, given only what was known before?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from octavo.data.errors import DataError
from octavo.data.event_log import EventLog
from octavo.data.history import before
from octavo.data.schema import Dense, Label, Schema, Sparse
from octavo.data.sets.real_set import RealSet, ints
from octavo.data.transforms import Clip, Log1p, Standardise

_FILES = {
    "ml100k_ratings.parquet": ("user_id", "item_id", "rating", "timestamp"),
    "ml100k_users.parquet": ("user_id", "age", "gender", "occupation", "zip_code"),
    "ml100k_items.parquet": ("item_id", "release_year", "genres"),
}
_PRIOR, _PRIOR_RATE = 5.0, 0.55  # a rate over n events is (likes + PRIOR * PRIOR_RATE) / (n + PRIOR)
_GENRES = (
    "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
_OCCUPATIONS = (
    "administrator", "artist", "doctor", "educator", "engineer", "entertainment", "executive", "healthcare",
    "homemaker", "lawyer", "librarian", "marketing", "none", "other", "programmer", "retired", "salesman", "scientist",
    "student", "technician", "writer",
)  # fmt: skip

MOVIELENS_SCHEMA = Schema(
    dense=(
        Dense("age", (Standardise(33.0, 11.5),)),
        Dense("film_age_years", (Clip(0.0, 80.0), Log1p(), Standardise(1.5, 1.2)), missing=3.0),
        Dense("user_events", (Log1p(), Standardise(4.0, 1.5))),
        Dense("user_like_rate", (Standardise(_PRIOR_RATE, 0.15),)),
        Dense("user_hours", (Clip(0.0, 10_000.0), Log1p(), Standardise(1.5, 2.0))),
        Dense("item_events", (Log1p(), Standardise(3.5, 1.5))),
        Dense("item_like_rate", (Standardise(_PRIOR_RATE, 0.18),)),
        Dense("genre_like_rate", (Standardise(_PRIOR_RATE, 0.15),)),
    ),
    sparse=(
        Sparse("user", rows=944),
        Sparse("item", rows=1683),
        Sparse("gender", encoding="vocabulary", vocabulary=("F", "M")),
        Sparse("occupation", encoding="vocabulary", vocabulary=_OCCUPATIONS),
        Sparse("zip_region", encoding="vocabulary", vocabulary=tuple("0123456789")),
        Sparse("genres", encoding="vocabulary", vocabulary=_GENRES, multi=True),
    ),
    labels=(Label("like"),),
    user="user",
    item="item",
)


def build(ratings: pa.Table, users: pa.Table, items: pa.Table) -> pa.Table:
    """The log's raw columns from MovieLens-100K's three tables, sorted by time (ties keep the ratings' order)."""
    ratings = ratings.take(np.argsort(ints(ratings, "timestamp"), kind="stable"))
    user, item, time = (ints(ratings, name) for name in ("user_id", "item_id", "timestamp"))
    like = (ints(ratings, "rating") >= 4).astype(np.float64)
    user_row = _rows_of(users, "user_id", user)
    item_row = _rows_of(items, "item_id", item)
    genres = pc.split_pattern(pc.fill_null(items.column("genres"), "").combine_chunks().cast(pa.string()), " ")
    years = np.array(items.column("release_year").cast(pa.float64()), np.float64)[item_row]
    user_count, user_likes = before(user, time, like)
    item_count, item_likes = before(item, time, like)
    _, first = np.unique(user, return_index=True)
    started = dict(zip(user[first].tolist(), time[first].tolist(), strict=True))
    return pa.table(
        {
            "id": pa.array(np.arange(len(user))),
            "time": pa.array(time * 1000),
            "user": pa.array(user),
            "item": pa.array(item),
            "age": users.column("age").take(user_row).combine_chunks(),
            "gender": users.column("gender").take(user_row).combine_chunks().cast(pa.string()),
            "occupation": users.column("occupation").take(user_row).combine_chunks().cast(pa.string()),
            "zip_region": pc.utf8_slice_codeunits(users.column("zip_code"), 0, 1).take(user_row).cast(pa.string()),
            "genres": genres.take(pa.array(item_row)),
            "film_age_years": pa.array(1970 + time / (365.25 * 86_400) - years, from_pandas=True),
            "user_events": pa.array(user_count),
            "user_like_rate": pa.array(_rate(user_likes, user_count)),
            "user_hours": pa.array((time - np.array([started[u] for u in user.tolist()])) / 3600),
            "item_events": pa.array(item_count),
            "item_like_rate": pa.array(_rate(item_likes, item_count)),
            "genre_like_rate": pa.array(_genre_rate(user, time, like, genres, item_row)),
            "like": pa.array(like.astype(np.int8)),
        }
    )


def build_by_user(ratings: pa.Table, users: pa.Table, items: pa.Table) -> pa.Table:
    """As :func:`build`, with the last 20% of each user's ratings (rounded down; ties: the ratings' order) later than
    all others by the set's span, so that a log's holdout of the same size is exactly they."""
    ratings = ratings.take(np.argsort(ints(ratings, "timestamp"), kind="stable"))
    user, time = ints(ratings, "user_id"), ints(ratings, "timestamp")
    order = np.argsort(user, kind="stable")
    _, first, count = np.unique(user[order], return_index=True, return_counts=True)
    rank = np.empty(len(user), np.int64)
    rank[order] = np.arange(len(user)) - np.repeat(first, count)
    is_last = rank >= np.repeat(count, count)[np.argsort(order)] - np.repeat(count // 5, count)[np.argsort(order)]
    shifted = time + np.where(is_last, time.max() - time.min() + 1, 0)
    place = ratings.column_names.index("timestamp")
    return build(ratings.set_column(place, "timestamp", pa.array(shifted)), users, items)


def _genre_rate(
    user: npt.NDArray[np.int64],
    time: npt.NDArray[np.int64],
    like: npt.NDArray[np.float64],
    genres: pa.Array,
    item_row: npt.NDArray[np.int64],
) -> npt.NDArray[np.float64]:
    """The user's like rate in each of the film's genres, averaged over the genres."""
    taken = genres.take(pa.array(item_row))
    lengths = pc.list_value_length(taken).to_numpy(zero_copy_only=False).astype(np.int64)
    words = taken.flatten().dictionary_encode()
    genre = words.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    event = np.repeat(np.arange(len(user)), lengths)
    key = user[event] * len(words.dictionary) + genre
    count, likes = before(key, time[event], like[event])
    total = np.bincount(event, _rate(likes, count), minlength=len(user))
    return np.where(lengths > 0, total / np.maximum(lengths, 1), _PRIOR_RATE)


def _rate(likes: npt.NDArray[np.float64], count: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    return (likes + _PRIOR * _PRIOR_RATE) / (count + _PRIOR)


def _rows_of(table: pa.Table, column: str, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The table's row of each id."""
    known = ints(table, column)
    order = np.argsort(known)
    at = np.minimum(np.searchsorted(known[order], ids), len(known) - 1)
    rows: npt.NDArray[np.int64] = order[at]
    absent = known[rows] != ids
    if absent.any():
        raise DataError(f"movielens: {column} {ids[absent][0]} was rated but is not in its table; fetch the set again")
    return rows


MOVIELENS = RealSet(
    folder="movielens",
    title="MovieLens-100K",
    origin="GroupLens, or RecBole's repository under dataset/ml-100k",
    files=_FILES,
    schema=MOVIELENS_SCHEMA,
    build=build,
    version=2,
)
MOVIELENS_BY_USER = replace(MOVIELENS, build=build_by_user, version=1002)


def movielens(
    root: str | Path | None = None, cache: str | Path | None = None, split: Literal["time", "user"] = "time"
) -> EventLog:
    """MovieLens-100K from ``root/movielens``, in event time; task ``like`` = rating >= 4.

    Counts and rates are over events strictly before this one's time. ``split``: what the log's last fifth is: ``time``:
    the last in time, most of it by new users; ``user``: each user's last 20%, shifted in time behind everything else.
    """
    return (MOVIELENS_BY_USER if split == "user" else MOVIELENS).open(root, cache)
