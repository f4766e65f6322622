"""A first schema from a file's columns, with the reason for each guess: for a person to review."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from octavo.data.column_names import expect_distinct
from octavo.data.errors import DataError
from octavo.data.schema import Dense, Label, Schema, Sparse
from octavo.data.source import Made, Source, raw_tables
from octavo.data.transforms import Clip, Log1p

SAMPLE = 100_000  # rows looked at
_TIMES = ("time", "timestamp", "time_ms", "time_stamp", "ts", "hour", "unixreviewtime", "click_timestamp", "event_time")
_IDS = ("id", "event_id", "impression_id")
_LABELS = ("label", "click", "clk", "clicked", "conversion", "sale", "purchase", "like", "y", "target")
_ROLES = {
    "user": ("user", "user_id", "userid", "uid", "reviewerid"),
    "item": ("item", "item_id", "itemid", "video_id", "adgroup_id", "product_id", "asin"),
    "request": ("request", "request_id", "session", "session_id"),
    "domain": ("domain", "domain_id", "tab", "scenario"),
}
_UNITS = ((1e17, "ns"), (1e14, "us"), (1e11, "ms"), (0.0, "s"))


class Inferred(NamedTuple):
    """A schema, how the file is read, and by column why it became what it is and what is left to decide."""

    schema: Schema
    source: Source
    notes: dict[str, str]


def infer_schema(data: str | pa.Table, source: Source | None = None) -> Inferred:
    """Look at the first 100,000 rows of a parquet or CSV file (path or URI), or of a table.

    Raises :class:`DataError` for a file that cannot be read, holds no rows, or has two columns of one name.
    """
    source = source or Source()
    table = data.slice(0, SAMPLE) if isinstance(data, pa.Table) else _head(str(data), source)
    if len(table) == 0:
        raise DataError(f"{data if isinstance(data, str) else 'table'}: no rows to infer a schema from")
    expect_distinct(table.column_names, data if isinstance(data, str) else "table")
    notes: dict[str, str] = {}
    make, parts = dict(source.make), dict[str, str]()
    left = {name: table.column(name).combine_chunks() for name in table.column_names}
    parts["time"] = _time(left, make, notes)
    parts["id"] = _id(left, make, notes)
    roles = _roles(left, make, notes)
    dense: list[Dense] = []
    sparse: list[Sparse] = []
    sequences: list[Sparse] = []
    labels = _outcomes(left, notes)
    for name, column in left.items():
        kind = column.type
        if pa.types.is_null(kind):
            notes[name] = "left out: nothing but nulls"
        elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
            text = _is_text(kind.value_type)
            if text or pa.types.is_integer(kind.value_type):
                distinct = pc.count_distinct(column.flatten()).as_py()
                sequences.append(Sparse(name, _rows(distinct), "hash_text" if text else "hash", multi=True))
                notes[name] = f"lists of {distinct} values; DECIDE: does order matter (sequences) or not (sparse)?"
            else:
                notes[name] = f"left out: lists of {kind.value_type}"
        elif _is_text(kind) or pa.types.is_dictionary(kind):
            distinct = pc.count_distinct(column).as_py()
            sparse.append(Sparse(name, _rows(distinct), "hash_text"))
            notes[name] = f"text, {distinct} distinct words in {len(column)} rows; rows leave room for 4 times as many"
        elif pa.types.is_integer(kind):
            _integer(name, column, dense, sparse, notes)
        elif pa.types.is_floating(kind):
            dense.append(_number(name, column))
            notes[name] = f"numbers, {column.null_count} nulls"
        else:
            notes[name] = f"left out: {kind} is neither number, text nor list"
    if not labels:
        notes["labels"] = "none found; DECIDE: which column is the outcome?"
    schema = Schema(tuple(dense), tuple(sparse), tuple(sequences), tuple(labels), **parts, **roles)
    how = Source(source.delimiter, source.names, source.nulls, source.types, make)
    return Inferred(schema, how, notes)


def _head(path: str, source: Source) -> pa.Table:
    tables, rows = [], 0
    for table, _ in raw_tables(source, [path]):
        tables.append(table)
        rows += len(table)
        if rows >= SAMPLE:
            break
    if not tables:
        raise DataError(f"{path}: no rows to infer a schema from")
    return pa.concat_tables(tables).slice(0, SAMPLE)


def _time(left: dict[str, pa.Array], make: dict[str, Made], notes: dict[str, str]) -> str:
    named = [name for name, column in left.items() if pa.types.is_timestamp(column.type)]
    named += [name for name in left if name.lower() in _TIMES and pa.types.is_integer(left[name].type)]
    if "time" in make:
        notes["time"] = "made as the source says"
        left.pop("time", None)
    elif named:
        raw = left.pop(named[0])
        ends = {} if pa.types.is_timestamp(raw.type) else pc.min_max(raw).as_py()
        largest = max((abs(end) for end in ends.values() if end is not None), default=0)  # before 1970: negative
        unit = "ms" if pa.types.is_timestamp(raw.type) else next(unit for low, unit in _UNITS if largest >= low)
        if raw.type == pa.int64() and unit == "ms":
            notes[named[0]] = f"ms since 1970 by its size (up to {largest}); DECIDE: is it?"
            return named[0]
        make["time"] = Made(unit, named[0])
        notes["time"] = f"from {named[0]!r}, {raw.type}, taken for {unit}; DECIDE: is that its unit?"
    else:
        make["time"] = Made("row")
        notes["time"] = "no column looks like time: the row's number; DECIDE: are the rows in event order?"
    return "time"


def _id(left: dict[str, pa.Array], make: dict[str, Made], notes: dict[str, str]) -> str:
    for name in [name for name in left if name.lower() in _IDS]:
        column = left[name]
        if column.null_count == 0 and pc.count_distinct(column).as_py() == len(column):
            del left[name]
            if pa.types.is_uint64(column.type):
                make["id"], notes["id"] = Made("bits", name), f"from {name!r}: unsigned, its bits as a signed integer"
            elif pa.types.is_integer(column.type):
                notes[name] = "distinct integers"
                return name
            else:
                make["id"], notes["id"] = Made("text_key", name), f"from {name!r}: distinct, by its 64-bit key"
            return "id"
    make["id"] = Made("row")
    notes["id"] = "no column of distinct ids: the row's number"
    return "id"


def _roles(left: dict[str, pa.Array], make: dict[str, Made], notes: dict[str, str]) -> dict[str, str]:
    """Columns stay features as well: a model may read who the user is."""
    found: dict[str, str] = {}
    for role, names in _ROLES.items():
        name = next((name for name in left if name.lower() in names), None)
        if name is None:
            continue
        if pa.types.is_integer(left[name].type):
            found[role] = name
        elif _is_text(left[name].type):
            found[role] = f"{name}_key"
            make[found[role]] = Made("text_key", name)
            notes[found[role]] = f"64-bit key of {name!r}, taken for the {role} by its name"
    return found


def _integer(name: str, column: pa.Array, dense: list[Dense], sparse: list[Sparse], notes: dict[str, str]) -> None:
    distinct = pc.count_distinct(column).as_py()
    if name.lower().endswith("id") or distinct <= 1000:
        sparse.append(Sparse(name, _rows(distinct), "hash"))
        why = "named like an id" if name.lower().endswith("id") else "few values"
        notes[name] = f"integers, {distinct} distinct: {why}; DECIDE: ids (sparse) or an amount (dense)?"
    else:
        dense.append(_number(name, column))
        notes[name] = f"integers, {distinct} distinct; DECIDE: an amount (dense) or ids (sparse)?"


def _number(name: str, column: pa.Array) -> Dense:
    """Long-tailed amounts by their logarithm, from what is seen; what is below 0 there is cut off."""
    values = column.drop_null().to_numpy(zero_copy_only=False).astype(np.float64)
    values = values[np.isfinite(values)]
    missing = 0.0 if len(values) < len(column) else None
    if len(values) and values.max() > 100 and np.quantile(values, 0.01) >= 0:
        return Dense(name, (Clip(0.0, 3.0e38), Log1p()), missing)
    return Dense(name, (), missing)


def _outcomes(left: dict[str, pa.Array], notes: dict[str, str]) -> list[Label]:
    """Takes outcomes out of ``left``, and what came with them: a column that is null wherever the outcome is 0 is its
    delay (numbers), or nothing that was known at the time of the event."""
    found: list[Label] = []
    for task in [name for name, column in left.items() if _is_outcome(name, column)]:
        outcome, delay = left.pop(task), None
        came = pc.fill_null(pc.cast(outcome, pa.int8()), 0).to_numpy(zero_copy_only=False) == 1
        for name, column in [*left.items()]:
            known = column.is_valid().to_numpy(zero_copy_only=False)
            if pa.types.is_floating(column.type):
                known &= ~np.isnan(column.to_numpy(zero_copy_only=False).astype(np.float64))
            named = name.lower() == f"{task.lower()}_delay"
            if not named and (known.all() or not came.any() or known[~came].any() or not known[came].any()):
                continue
            del left[name]
            if delay is None and (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
                delay = name
                notes[name] = f"null wherever {task!r} is 0: taken for its delay; DECIDE: in seconds after the event?"
            else:
                notes[name] = f"left out: null wherever {task!r} is 0, so it came with the outcome"
        found.append(Label(task, delay))
        notes[task] = f"0/1 and named like an outcome{'' if delay else '; DECIDE: is it known later (delay)?'}"
    return found


def _is_outcome(name: str, column: pa.Array) -> bool:
    if pa.types.is_boolean(column.type):
        return True
    named = name.lower() in _LABELS or name.lower().startswith("is_")
    return named and pa.types.is_integer(column.type) and set(pc.unique(column.drop_null()).to_pylist()) <= {0, 1}


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _rows(distinct: int) -> int:
    """A power of two with room for four times what was seen, 64 at least."""
    return max(64, 1 << (4 * max(distinct, 1) - 1).bit_length())
