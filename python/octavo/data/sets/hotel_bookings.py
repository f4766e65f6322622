"""Bookings of two Portuguese hotels [Antonio et al. 2019]: will this one be cancelled, and how soon?"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from octavo.data.history import outcomes_before
from octavo.data.schema import Dense, Label, Schema, Sparse
from octavo.data.sets.real_set import RealSet, ints, text
from octavo.data.transforms import Clip, Log1p, Standardise

WINDOWS = (1, 7, 30)  # days
_FIRST, _LAST = 16_617, 17_317  # booking days 2015-07-01 .. 2017-05-31: selection by arrival spoils those outside
_PRIOR, _RATE = 20.0, 0.2
_HISTORIES = ("market_segment", "agent", "hotel")
_COUNTS = (
    "lead_time", "stays_in_weekend_nights", "stays_in_week_nights", "adults", "children", "babies",
    "previous_cancellations", "previous_bookings_not_canceled",
)  # fmt: skip
_WORDS = {
    "hotel": ("Resort Hotel", "City Hotel"),
    "meal": ("BB", "FB", "HB", "SC", "Undefined"),
    "market_segment": (
        "Aviation", "Complementary", "Corporate", "Direct", "Groups", "Offline TA/TO", "Online TA", "Undefined",
    ),
    "distribution_channel": ("Corporate", "Direct", "GDS", "TA/TO", "Undefined"),
    "reserved_room_type": tuple("ABCDEFGHLP"),
    "customer_type": ("Contract", "Group", "Transient", "Transient-Party"),
}  # fmt: skip

HOTEL_SCHEMA = Schema(
    dense=(
        Dense("lead_time", (Log1p(), Standardise(3.4, 1.7))),
        *(Dense(name, (Clip(0.0, 50.0), Log1p(), Standardise(0.5, 0.5))) for name in _COUNTS[1:4]),
        *(Dense(name, (Clip(0.0, 50.0), Log1p()), missing=0.0) for name in _COUNTS[4:]),
        Dense("is_repeated_guest"),
        *(Dense(f"{name}_bookings", (Log1p(), Standardise(6.0, 3.0))) for name in _HISTORIES),
        *(Dense(f"{name}_cancelled_rate", (Standardise(_RATE, 0.1),)) for name in _HISTORIES),
    ),
    sparse=(
        *(Sparse(name, encoding="vocabulary", vocabulary=words) for name, words in _WORDS.items()),
        Sparse("agent", rows=1024),
        Sparse("company", rows=1024),
        Sparse("arrival_month", rows=12),
        Sparse("arrival_weekday", rows=7),
        Sparse("booking_weekday", rows=7),
        Sparse("lead_bucket", rows=12),
    ),
    labels=(
        Label("cancel", delay="cancel_delay"),
        *(Label(f"cancel_{days}d", delay=f"cancel_{days}d_delay") for days in WINDOWS),
    ),
    domain="house",
)


def build(bookings: pa.Table) -> pa.Table:
    """One event per distinct booking, at its day; bookings of one day are in an order that says nothing of them.

    Only what is known when booking is a feature; identical rows stay folded. A house's, agent's or segment's rate of
    cancellations counts those that had come before the day.
    """
    day = ints(bookings, "booking_date")
    kept = np.flatnonzero((day >= _FIRST) & (day <= _LAST))
    kept = np.random.default_rng(0).permutation(kept)
    kept = kept[np.argsort(day[kept], kind="stable")]
    bookings, day = bookings.take(pa.array(kept)), day[kept]
    cancelled = ints(bookings, "is_canceled") == 1
    delay = np.array(pc.fill_null(bookings.column("cancel_delay_days"), -1), np.int64)
    columns: dict[str, pa.Array] = {name: bookings.column(name).combine_chunks() for name in _COUNTS}
    columns |= {name: text(bookings, name) for name in _WORDS}
    for name in ("agent", "company"):  # 0: none
        columns[name] = pc.fill_null(bookings.column(name), 0).combine_chunks()
    outcome_day = np.where(cancelled, day + delay, -1)
    for name in _HISTORIES:
        count, known = outcomes_before(np.array(columns[name].dictionary_encode().indices, np.int64), day, outcome_day)
        columns[f"{name}_bookings"] = pa.array(count)
        columns[f"{name}_cancelled_rate"] = pa.array((known + _PRIOR * _RATE) / (count + _PRIOR))
    for task, came in (("cancel", cancelled), *((f"cancel_{w}d", cancelled & (delay <= w)) for w in WINDOWS)):
        columns[task] = pa.array(came.astype(np.int8))
        columns[f"{task}_delay"] = pa.array(delay * 86_400.0, mask=~came)
    arrival = bookings.column("arrival_date").combine_chunks()
    lead = ints(bookings, "lead_time")
    return pa.table(
        {
            "id": pa.array(np.arange(len(day))),
            "time": pa.array(day * 86_400_000),
            "house": pa.array(np.array(pc.equal(columns["hotel"], "City Hotel"), np.int64)),
            "is_repeated_guest": bookings.column("is_repeated_guest").combine_chunks(),
            "arrival_month": pc.subtract(pc.month(arrival), 1),
            "arrival_weekday": pc.day_of_week(arrival),
            "booking_weekday": pa.array((day + 3) % 7),
            "lead_bucket": pa.array(np.ceil(np.log2(1.0 + lead)).astype(np.int64)),
            **columns,
        }
    )


HOTEL_BOOKINGS = RealSet(
    folder="hotel_bookings",
    title="the hotel booking demand data",
    origin="Data in Brief 22 (2019) 41-49, identical rows folded (bookings.parquet)",
    files={
        "bookings.parquet": (
            "booking_date", "arrival_date", "is_canceled", "cancel_delay_days", "is_repeated_guest", "agent", "company",
            *_COUNTS, *_WORDS,
        )
    },
    schema=HOTEL_SCHEMA,
    build=build,
)  # fmt: skip
