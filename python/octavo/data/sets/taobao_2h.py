"""Two hours of Taobao user behaviour: a dense stream of requests without an outcome."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from octavo.data.history import before
from octavo.data.schema import Dense, Schema, Sparse
from octavo.data.sets.real_set import RealSet, ints, text
from octavo.data.transforms import Log1p

TAOBAO_SCHEMA = Schema(
    dense=(Dense("user_events", (Log1p(),)), Dense("item_events", (Log1p(),)), Dense("category_events", (Log1p(),))),
    sparse=(
        Sparse("user", rows=1 << 16, encoding="hash"),
        Sparse("item", rows=1 << 17, encoding="hash"),
        Sparse("category", rows=1 << 13, encoding="hash"),
        Sparse("behavior", encoding="vocabulary", vocabulary=("pv", "cart", "fav", "buy")),
    ),
    user="user",
    item="item",
)


def build(events: pa.Table) -> pa.Table:
    """The events as they are, in time, with counts of what came strictly before."""
    events = events.take(np.argsort(ints(events, "timestamp"), kind="stable"))
    time = ints(events, "timestamp")
    ids = {name: ints(events, f"{name}_id") for name in ("user", "item", "category")}
    return pa.table(
        {
            "id": pa.array(np.arange(len(time))),
            "time": pa.array(time * 1000),
            **{name: pa.array(column) for name, column in ids.items()},
            **{
                f"{name}_events": pa.array(before(column, time, np.zeros(len(time)))[0]) for name, column in ids.items()
            },
            "behavior": text(events, "behavior"),
        }
    )


TAOBAO_2H = RealSet(
    folder="taobao_2h",
    title="the Taobao excerpt",
    origin="Alibaba Tianchi, data set 649, two hours of its events as events.parquet",
    files={"events.parquet": ("user_id", "item_id", "category_id", "behavior", "timestamp")},
    schema=TAOBAO_SCHEMA,
    build=build,
)
