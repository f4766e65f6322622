"""Online Retail [Chen 2015]: an order of a known customer; will the next one come within a week, within a month?"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from octavo.data.history import Floats, Ints, before, previous
from octavo.data.schema import Dense, Label, Schema, Sparse
from octavo.data.sets.real_set import RealSet, ints, text
from octavo.data.transforms import Clip, Log1p, Standardise

WINDOWS = (7, 30)  # days
_DAY = 86_400
_COUNTRIES = (
    "Australia", "Austria", "Bahrain", "Belgium", "Brazil", "Canada", "Channel Islands", "Cyprus", "Czech Republic",
    "Denmark", "EIRE", "European Community", "Finland", "France", "Germany", "Greece", "Hong Kong", "Iceland", "Israel",
    "Italy", "Japan", "Lebanon", "Lithuania", "Malta", "Netherlands", "Norway", "Poland", "Portugal", "RSA",
    "Saudi Arabia", "Singapore", "Spain", "Sweden", "Switzerland", "USA", "United Arab Emirates", "United Kingdom",
    "Unspecified",
)  # fmt: skip
_FIRST_CUSTOMER = 12_346

RETAIL_SCHEMA = Schema(
    dense=(
        Dense("value", (Clip(0.0, 1e6), Log1p(), Standardise(5.6, 1.1))),
        Dense("lines", (Log1p(), Standardise(2.7, 1.0))),
        Dense("units", (Log1p(), Standardise(4.9, 1.2))),
        Dense("orders_before", (Log1p(), Standardise(1.5, 1.2))),
        Dense("value_before", (Clip(0.0, 1e7), Log1p(), Standardise(5.5, 3.0))),
        Dense("returns_before", (Log1p(), Standardise(0.5, 0.7))),
        Dense("returned_share", (Clip(0.0, 1.0),)),
        Dense("days_since_order", (Clip(0.0, 400.0), Log1p(), Standardise(3.5, 1.5)), missing=400.0),
        Dense("days_since_first", (Clip(0.0, 400.0), Log1p(), Standardise(3.2, 2.2))),
        Dense("mean_gap_days", (Clip(0.0, 400.0), Log1p(), Standardise(3.5, 1.2)), missing=90.0),
    ),
    sparse=(
        Sparse("customer", rows=18_287 - _FIRST_CUSTOMER + 1),
        Sparse("country", encoding="vocabulary", vocabulary=_COUNTRIES),
        Sparse("hour", rows=24),
        Sparse("weekday", rows=7),
        Sparse("month", rows=12),
        Sparse("basket", rows=1 << 13, encoding="hash_text", multi=True),
    ),
    labels=tuple(Label(f"repurchase_{days}d", delay=f"repurchase_{days}d_delay") for days in WINDOWS),
    user="customer",
    domain="land",
)


def build(lines: pa.Table) -> pa.Table:
    """One event per order: an invoice of a known customer with goods bought. Orders of the log's last 30 days are left
    out, their outcome is not known.

    A cancellation (invoice ``C...``) is no order; it is part of the history from its own moment on. Postage, fees and
    adjustments (stock codes that are no five digits) are not goods. The outcome is the customer's next order.
    """
    lines = lines.filter(pc.is_valid(lines.column("customer_id")))
    code = text(lines, "stock_code")
    lines = lines.filter(pc.match_substring_regex(code, "^[0-9]{5}"))
    units, price = ints(lines, "quantity"), np.array(lines.column("unit_price"), np.float64)
    is_return = np.array(pc.starts_with(text(lines, "invoice"), "C"))
    is_good = np.where(is_return, units < 0, (units > 0) & (price > 0))
    lines, units, price = lines.filter(pa.array(is_good)), units[is_good], price[is_good]
    is_return = is_return[is_good]
    # One row per invoice, in event time; an invoice's time is its first line's.
    invoice = np.array(text(lines, "invoice").dictionary_encode().indices, np.int64)
    order, first, size = _groups(invoice, ints(lines, "invoice_date") // 1_000_000)
    time = (ints(lines, "invoice_date") // 1_000_000)[order][first]
    customer = ints(lines, "customer_id")[order][first] - _FIRST_CUSTOMER
    returned = is_return[order][first]
    # In tenths of pence: sums are exact, so that no history depends, in its last bits, on what came later.
    value = np.abs(np.add.reduceat(np.rint(units * price * 1000)[order], first))
    columns, ordered = _histories(customer, time, value, returned), np.flatnonzero(~returned)
    columns |= {"value": value / 1000, "lines": size, "units": np.add.reduceat(np.abs(units)[order], first)}
    columns |= _outcomes(customer, time, returned)
    end = int(ints(lines, "invoice_date").max()) // 1_000_000
    kept = ordered[time[ordered] < end - max(WINDOWS) * _DAY]
    kept = kept[np.argsort(time[kept], kind="stable")]
    moment = pa.array(time[kept] * 1000).cast(pa.timestamp("ms"))
    country = text(lines, "country").take(pa.array(order[first][kept]))
    return pa.table(
        {
            "id": pa.array(np.arange(len(kept))),
            "time": pa.array(time[kept] * 1000),
            "customer": pa.array(customer[kept]),
            "country": country,
            "land": pc.fill_null(pc.index_in(country, pa.array(_COUNTRIES)), -1).cast(pa.int64()),
            "hour": pc.hour(moment),
            "weekday": pc.day_of_week(moment),
            "month": pc.subtract(pc.month(moment), 1),
            "basket": _baskets(text(lines, "stock_code"), order, first[kept], size[kept]),
            **{name: pa.array(column[kept], from_pandas=True) for name, column in columns.items()},
        }
    )


def _groups(group: Ints, time: Ints) -> tuple[Ints, Ints, Ints]:
    """Lines ordered by group and time; where each group begins there, and its size."""
    order = np.lexsort((time, group))
    _, first, size = np.unique(group[order], return_index=True, return_counts=True)
    return order, first.astype(np.int64), size.astype(np.int64)


def _histories(customer: Ints, time: Ints, value: Floats, returned: np.ndarray) -> dict[str, np.ndarray]:
    """What is known of the customer strictly before each invoice."""
    bought = (~returned).astype(float)
    _, orders = before(customer, time, bought)
    _, spent = before(customer, time, value * bought)
    _, returns = before(customer, time, 1 - bought)
    _, back = before(customer, time, value * (1 - bought))
    since, age = np.full(len(time), np.nan), np.zeros(len(time))
    buys = np.flatnonzero(~returned)
    since[buys] = (time[buys] - previous(customer[buys], time[buys], time[buys].astype(float))) / _DAY
    _, place = np.unique(customer, return_inverse=True)
    started = np.full(place.max() + 1, np.iinfo(np.int64).max)
    np.minimum.at(started, place[buys], time[buys])
    age[buys] = (time - started[place])[buys] / _DAY
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = np.where(orders > 1, (age - since) / (orders - 1), np.nan)
        share = np.where(spent > 0, back / spent, 0.0)
    return {
        "orders_before": orders,
        "value_before": spent / 1000,
        "returns_before": returns,
        "returned_share": share,
        "days_since_order": since,
        "days_since_first": age,
        "mean_gap_days": gap,
    }


def _outcomes(customer: Ints, time: Ints, returned: np.ndarray) -> dict[str, np.ndarray]:
    """Label and delay (s, nan = not within the window) of the next order for each window: the last one before, with
    time running backwards."""
    wait = np.full(len(time), np.nan)
    buys = np.flatnonzero(~returned)
    wait[buys] = -time[buys] - previous(customer[buys], -time[buys], -time[buys].astype(float))
    columns: dict[str, np.ndarray] = {}
    for days in WINDOWS:
        came = wait <= days * _DAY
        columns[f"repurchase_{days}d"] = came.astype(np.float32)
        columns[f"repurchase_{days}d_delay"] = np.where(came, wait, np.nan)
    return columns


def _baskets(code: pa.Array, order: Ints, first: Ints, size: Ints) -> pa.Array:
    """The stock codes of each invoice."""
    offsets = np.concatenate(([0], np.cumsum(size)))
    picks = np.arange(offsets[-1]) + np.repeat(first - offsets[:-1], size)
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), code.take(pa.array(order[picks])))


ONLINE_RETAIL = RealSet(
    folder="online_retail",
    title="the Online Retail log",
    origin="the UCI Machine Learning Repository, its lines as lines.parquet",
    files={
        "lines.parquet": (
            "invoice", "stock_code", "quantity", "invoice_date", "unit_price", "customer_id", "country",
        )
    },
    schema=RETAIL_SCHEMA,
    build=build,
)  # fmt: skip
