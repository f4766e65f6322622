"""A log as it was known at some time: outcomes that had not come yet are hidden."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from octavo.data.adsworld.config import AdsWorldConfig


def observed(table: pa.Table, config: AdsWorldConfig, until: int) -> pa.Table:
    """``table`` with ``click``, ``conversion`` and their delays as known at ``until`` (ms since 1970).

    1: it had happened. 0: it can no longer happen (its window is over; there was surely no click). null: still open.
    Truth columns stay.
    """
    age = (until - np.array(table.column("time"))) / 1000
    click = np.array(table.column("click"), bool)
    conversion = np.array(table.column("conversion"), bool)
    click_delay = _floats(table, "click_delay")
    conversion_delay = _floats(table, "conversion_delay")
    clicked = click & (click_delay <= age)
    no_click = ~clicked & (age >= config.clicks.window_hours * 3600)
    converted = conversion & (conversion_delay <= age)
    over = np.where(click, click_delay, 0.0) + config.conversions.window_days * 86_400
    no_conversion = ~converted & (no_click | (clicked & (age >= over)))
    columns = {
        "click": pa.array(clicked.astype(np.int8), mask=~(clicked | no_click)),
        "click_delay": pa.array(click_delay.astype(np.float32), mask=~clicked),
        "conversion": pa.array(converted.astype(np.int8), mask=~(converted | no_conversion)),
        "conversion_delay": pa.array(conversion_delay.astype(np.float32), mask=~converted),
    }
    for name, column in columns.items():
        table = table.set_column(table.column_names.index(name), name, column)
    return table


def _floats(table: pa.Table, name: str) -> np.ndarray:
    return table.column(name).to_numpy().astype(np.float64)
