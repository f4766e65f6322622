"""Raw files into an event log: order restored within a bounded window, duplicates found, every repair counted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from octavo.data.encoding import encode_table
from octavo.data.errors import DataError
from octavo.data.event_log import EventLog
from octavo.data.log_writer import write_log
from octavo.data.schema import Schema
from octavo.data.seen_ids import SeenIds
from octavo.data.source import Source, raw_tables

DUPLICATES = ("error", "drop", "keep")


@dataclass
class Conversion:
    """What a conversion did: events written, events put back into time order, events left out for a known id.

    ``nulls``: of the features, user, item, request and domain, by column: read as the declared ``missing``, as an empty
    list of ids, or as -1. A label's null means that its outcome is not known, and is not counted.
    """

    events: int = 0
    moved: int = 0
    dropped: int = 0
    nulls: dict[str, int] = field(default_factory=dict)


def convert(
    schema: Schema,
    inputs: Sequence[str | Path],
    path: str | Path,
    source: Source | None = None,
    max_lateness_ms: int = 0,
    duplicates: Literal["error", "drop", "keep"] = "error",
    rows_per_file: int = 1 << 20,
    rows_per_group: int = 1 << 14,
    observed_until: int | None = None,
    negatives: float = 1.0,
    seed: int = 0,
) -> tuple[EventLog, Conversion]:
    """Write raw files (parquet or CSV; paths or pyarrow filesystem URIs) as the log ``path``.

    An event may come up to ``max_lateness_ms`` of event time after a younger one: events are sorted again within that
    window, stably. Duplicate ids are found exactly: the first in the files stays; ``keep`` does not look. Memory is the
    window, a few row groups, one file of the log and, unless ``keep``, 8 bytes an event (twice that at times).
    ``observed_until``, ``negatives``, ``seed``: as for :meth:`EventLog.write`.

    Raises :class:`DataError` that names the file, the row group (or first CSV row), the column and the value, and for a
    ``path`` that exists or is a URI.
    """
    if max_lateness_ms < 0:
        raise ValueError(f"max_lateness_ms: expected at least 0, found {max_lateness_ms}")
    if duplicates not in DUPLICATES:
        raise ValueError(f"duplicates: expected one of {', '.join(DUPLICATES)}, found {duplicates!r}")
    done = Conversion()
    tables = _proved(schema, raw_tables(source or Source(), [str(name) for name in inputs], csv_types(schema)))
    if duplicates != "keep":
        tables = _distinct(schema.id, tables, duplicates == "drop", done)
    ordered = _ordered(schema.time, _nulls_counted(schema, tables, done), max_lateness_ms, done)
    write_log(
        path, schema, ordered, rows_per_file, rows_per_group, observed_until, True, negatives=negatives, seed=seed
    )
    log = EventLog(path)
    done.events = len(log)
    return log, done


def csv_types(schema: Schema) -> dict[str, pa.DataType]:
    """What the schema's columns are in a CSV: text is never taken for numbers because it looks like some."""
    integers = (schema.time, schema.id, schema.user, schema.item, schema.request, schema.domain)
    types = {name: pa.int64() for name in integers if name is not None}
    numbers = [feature.name for feature in schema.dense] + [label.task for label in schema.labels]
    numbers += [name for name in (schema.weight, *(label.delay for label in schema.labels)) if name is not None]
    types |= dict.fromkeys(numbers, pa.float64())
    types |= {
        feature.name: pa.string() if feature.of_text else pa.int64() for feature in schema.sparse if not feature.multi
    }
    return types


def _proved(schema: Schema, tables: Iterable[tuple[pa.Table, str]]) -> Iterator[tuple[pa.Table, str]]:
    """Each encoded once where its file is still known. What a column is must not change between files."""
    kinds: pa.Schema | None = None
    for table, where in tables:
        if len(table) == 0:
            continue
        encode_table(schema, table, where)
        found = pa.schema([_nullable(field) for field in table.schema])
        kinds = found if kinds is None else kinds
        _expect_same(found, kinds, where)
        yield table.select(kinds.names).cast(kinds), where


def _nullable(field: pa.Field) -> pa.Field:
    """The field as one that may hold nulls, as may lists in it: whether a file says so is no difference."""
    kind = field.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        make = pa.list_ if pa.types.is_list(kind) else pa.large_list
        kind = make(_nullable(kind.value_field))
    return pa.field(field.name, kind)


def _expect_same(found: pa.Schema, kinds: pa.Schema, where: str) -> None:
    """DataError for another set of columns or types than ``kinds``; their order is free."""
    for name in (*found.names, *kinds.names):
        was, now = (kind.field(name).type if name in kind.names else None for kind in (kinds, found))
        if was is None or now is None:
            state = "is new" if was is None else "is missing"
            raise DataError(f"{where}: column {name!r} {state}; all inputs must have the first one's columns")
        if was != now:
            raise DataError(
                f"{where}: column {name!r} is {now}, was {was} before; declare its type under source: types"
            )


def _distinct(
    name: str, tables: Iterable[tuple[pa.Table, str]], drop: bool, done: Conversion
) -> Iterator[tuple[pa.Table, str]]:
    seen = SeenIds()
    for table, where in tables:
        ids = table.column(name).to_numpy().astype(np.int64, copy=False)
        known = seen.add(ids)
        if known.any():
            if not drop:
                at = int(known.argmax())
                raise DataError(f"{where}: column {name!r}: id {ids[at]} at row {at} came before; --duplicates drop?")
            done.dropped += int(known.sum())
            table = table.filter(pa.array(~known))
        if len(table):
            yield table, where


def _nulls_counted(
    schema: Schema, tables: Iterable[tuple[pa.Table, str]], done: Conversion
) -> Iterator[tuple[pa.Table, str]]:
    keys = [name for name in (schema.user, schema.item, schema.request, schema.domain) if name is not None]
    bags = (*schema.sparse, *schema.sequences)
    names = dict.fromkeys([*keys, *(dense.name for dense in schema.dense), *(bag.name for bag in bags)])
    for table, where in tables:
        for name in names:
            if count := pc.sum(pc.is_null(table.column(name), nan_is_null=True)).as_py():
                done.nulls[name] = done.nulls.get(name, 0) + count
        yield table, where


def _ordered(name: str, tables: Iterable[tuple[pa.Table, str]], lateness: int, done: Conversion) -> Iterator[pa.Table]:
    """Stable order by time. What is older than the newest event by more than the window can be overtaken no more."""
    waiting: list[pa.Table] = []
    oldest, newest = 0, None  # of what waits; of all
    for table, where in tables:
        times = table.column(name).to_numpy().astype(np.int64, copy=False)
        peak = np.maximum.accumulate(times)
        peak = peak if newest is None else np.maximum(peak, newest)
        late = peak.view(np.uint64) - times.view(np.uint64)  # of any two times: an int64 would overflow
        if late.max() > lateness:
            at = int((late > lateness).argmax())
            raise DataError(
                f"{where}: column {name!r}: time falls from {peak[at]} to {times[at]} ms at row {at}, by more than "
                f"the window of {lateness} ms; sort the events by time or raise --max-lateness"
            )
        done.moved += int((late > 0).sum())
        newest = int(peak[-1])
        oldest = int(times.min()) if not waiting else min(oldest, int(times.min()))
        waiting.append(table)
        if newest - oldest < 2 * lateness:  # sort when half of what waits is ready: each event is sorted a few times
            continue
        joined = _sorted(name, pa.concat_tables(waiting))
        times = joined.column(name).to_numpy()
        ready = int(np.searchsorted(times, max(newest - lateness, -(2**63)), side="right"))
        yield joined.slice(0, ready)
        waiting = [joined.slice(ready)] if ready < len(joined) else []
        oldest = int(times[ready]) if waiting else newest
    if waiting:
        yield _sorted(name, pa.concat_tables(waiting))


def _sorted(name: str, table: pa.Table) -> pa.Table:
    times = table.column(name).to_numpy()
    if (times[1:] >= times[:-1]).all():
        return table
    return table.take(pa.array(np.argsort(times, kind="stable")))
