"""From raw columns to a Batch: one code path for a log's columns and for the events of a serving request."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from octavo.data.batch import Batch
from octavo.data.column_names import expect_distinct
from octavo.data.errors import DataError, one_line
from octavo.data.hashing import mix_bits
from octavo.data.labels import labels_as_of
from octavo.data.schema import Dense, Schema, Sparse
from octavo.ops.jagged import Jagged

Ids = npt.NDArray[np.int64]


def encode_table(
    schema: Schema, table: pa.Table, where: str = "table", as_of: int | None = None, observed_until: int | None = None
) -> Batch:
    """A batch of the table's rows. ``where`` names the file in errors. ``as_of`` (ms): labels and delays as they were
    known then (:func:`octavo.data.labels.labels_as_of`); None = as they were collected at ``observed_until`` (ms), or
    after the last window had closed.

    Raises :class:`DataError` for a column that is missing or there twice, a column of the wrong type, a null in time,
    id or a dense column without ``missing``, an id out of range, a value that a transform cannot take, an event after
    ``as_of``.
    """
    expect_distinct(table.column_names, where)
    absent = [name for name in schema.columns() if name not in table.column_names]
    if absent:
        raise DataError(f"{where}: column {absent[0]!r} is missing; it has {', '.join(table.column_names)}")
    columns = {name: table.column(name).combine_chunks() for name in schema.columns()}
    return _encode(schema, columns, len(table), where, as_of, observed_until)


def encode_events(schema: Schema, events: Sequence[Mapping[str, Any]], where: str = "events") -> Batch:
    """A batch of raw events, one dict per event (column name -> Python value): the serving path.

    The features come out bit-equal to :func:`encode_table` over the same values. A key that is absent is a null; labels
    may be absent (nan), ``time`` and ``id`` too (-1). Raises :class:`DataError` as encode_table does.
    """
    columns: dict[str, pa.Array] = {}
    for name in schema.columns():
        values = [event.get(name) for event in events]
        if name in (schema.time, schema.id):
            values = [-1 if value is None else value for value in values]
        try:
            columns[name] = pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
            raise DataError(f"{where}: column {name!r}: {one_line(error)}") from None
    return _encode(schema, columns, len(events), where)


def _null_type(schema: Schema, name: str) -> pa.DataType:
    """The type of a column that holds nothing but nulls."""
    for feature in (*schema.sparse, *schema.sequences):
        if feature.name == name:
            item = pa.string() if feature.of_text else pa.int64()
            return pa.list_(item) if feature.multi else item
    integers = (schema.time, schema.id, schema.user, schema.item, schema.request, schema.domain)
    return pa.int64() if name in integers else pa.float64()


def _encode(
    schema: Schema,
    columns: dict[str, pa.Array],
    events: int,
    where: str,
    as_of: int | None = None,
    observed_until: int | None = None,
) -> Batch:
    for name, column in columns.items():
        if pa.types.is_null(column.type):
            columns[name] = column.cast(_null_type(schema, name))
    dense = np.empty((events, len(schema.dense)), np.float32)
    for position, feature in enumerate(schema.dense):
        dense[:, position] = _dense(feature, columns[feature.name], where)
    time = _required(columns, schema.time, events, where)
    labels, delay = _labels(schema, columns, time, where, as_of, observed_until)
    return Batch(
        dense=torch.from_numpy(dense),
        sparse=_jagged([_bags(feature, columns[feature.name], where) for feature in schema.sparse], events),
        sequences={
            feature.name: _jagged([_bags(feature, columns[feature.name], where)], events)
            for feature in schema.sequences
        },
        labels=labels,
        delay=delay,
        user=_ids(columns, schema.user, events, where),
        item=_ids(columns, schema.item, events, where),
        request=_ids(columns, schema.request, events, where),
        domain=_ids(columns, schema.domain, events, where),
        weight=torch.ones(events) if schema.weight is None else _weight(columns[schema.weight], schema.weight, where),
        time=time,
        id=_required(columns, schema.id, events, where),
    )


def _dense(feature: Dense, column: pa.Array, where: str) -> npt.NDArray[np.float32]:
    where = f"{where}: dense column {feature.name!r}"
    raw = _single(_numbers(column, where)).astype(np.float64)
    absent = np.isnan(raw)
    if absent.any():
        if feature.missing is None:
            raise DataError(f"{where}: null or nan at row {int(absent.argmax())}; declare missing=... or fill it")
        raw[absent] = np.float32(feature.missing)
    if np.isinf(raw).any():  # a clip would hide it
        at = int(np.isinf(raw).argmax())
        raise DataError(f"{where}: {raw[at]} at row {at} is no number to learn from; correct it or make it null")
    value = raw
    for transform in feature.transforms:
        value = transform.apply(value)
    result = _single(value)
    wrong = ~np.isfinite(result)
    if wrong.any():
        at = int(wrong.argmax())
        raise DataError(f"{where}: {raw[at]} at row {at} becomes {result[at]}; clip it before the other transforms")
    return result


def _bags(feature: Sparse, column: pa.Array, where: str) -> tuple[Ids, Ids]:
    """Ids [V] and bag lengths [B]."""
    where = f"{where}: sparse column {feature.name!r}"
    if feature.multi:
        if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
            raise DataError(f"{where}: expected lists, found {column.type}; declare multi=False or store lists")
        lengths = _integers(pc.list_value_length(column), where).clip(min=0)
        values = column.flatten()
        if values.null_count:
            raise DataError(f"{where}: a list holds a null; remove it from the list")
    else:
        lengths = _plain(column.is_valid())
        values = column.drop_null()
    return _row_ids(feature, values, where), lengths


def _row_ids(feature: Sparse, values: pa.Array, where: str) -> Ids:
    if len(values) == 0:
        return np.empty(0, np.int64)
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    text = feature.of_text
    if not (_is_text(values.type) if text else pa.types.is_integer(values.type)):
        wanted = "text" if text else "integers"
        raise DataError(f"{where}: encoding {feature.encoding} takes {wanted}, found {values.type}; convert the column")
    if feature.encoding == "vocabulary":
        known = pa.array(feature.vocabulary, values.type)
        return _plain(pc.fill_null(pc.index_in(values, known), -1)) + 1
    if feature.encoding in ("hash_text", "dynamic_text"):
        coded = values.dictionary_encode()
        keys = np.array([_text_key(word) for word in coded.dictionary.to_pylist()], np.uint64)
        known_as = keys.view(np.int64) if feature.dynamic else _hash(keys, feature.rows)
        return known_as[_plain(coded.indices)]
    numbers = _integers(values, where)
    if feature.encoding == "hash":
        return _hash(numbers.view(np.uint64), feature.rows)
    if feature.dynamic:
        return numbers
    wrong = (numbers < 0) | (numbers >= feature.rows)
    if wrong.any():
        raise DataError(f"{where}: id {numbers[wrong][0]} is outside 0..{feature.rows - 1}; raise rows or hash it")
    return numbers


def _text_key(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8"), digest_size=8).digest(), "little")


def _hash(keys: npt.NDArray[np.uint64], rows: int) -> Ids:
    ids: Ids = (mix_bits(keys) % np.uint64(rows)).astype(np.int64)
    return ids


def _jagged(features: list[tuple[Ids, Ids]], events: int) -> Jagged:
    """Feature-major bags: offsets [F*B+1]."""
    offsets = np.zeros(len(features) * events + 1, np.int64)
    if features:
        np.cumsum(np.concatenate([lengths for _, lengths in features]), out=offsets[1:])
    values = np.concatenate([ids for ids, _ in features]) if features else np.empty(0, np.int64)
    return Jagged(torch.from_numpy(values), torch.from_numpy(offsets))


def _labels(
    schema: Schema,
    columns: Mapping[str, pa.Array],
    time: torch.Tensor,
    where: str,
    as_of: int | None,
    observed_until: int | None,
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    age = None
    name, moment = ("observed_until", observed_until) if as_of is None else ("as_of", as_of)
    if moment is not None:
        age = (moment - time.numpy()) / 1000
        if (age < 0).any():
            at = int((age < 0).argmax())
            raise DataError(
                f"{where}: event at row {at} is of {int(time[at])} ms, after {name}={moment}; stop before it"
            )
    outcomes = {label.task: _outcome(columns[label.task], label.task, where, limit=1.0) for label in schema.labels}
    delays = {
        label.task: _outcome(columns[label.delay], label.delay, where)
        for label in schema.labels
        if label.delay is not None
    }
    labels, delays = labels_as_of(schema, outcomes, delays, age, where, is_collection=as_of is None)
    return _tensors(labels), _tensors(delays)


def _tensors(columns: Mapping[str, npt.NDArray[np.float64]]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(_single(column)) for name, column in columns.items()}


def _outcome(column: pa.Array, name: str, where: str, limit: float = np.inf) -> npt.NDArray[np.float64]:
    values = _numbers(column, f"{where}: column {name!r}")
    wrong = (values < 0) | (values > limit) | np.isinf(values)
    if wrong.any():
        span = f"0..{limit:g}" if np.isfinite(limit) else "0 or more seconds"
        at = int(wrong.argmax())
        raise DataError(f"{where}: column {name!r}: {values[at]} at row {at} is outside {span} (null = not known)")
    return values


def _weight(column: pa.Array, name: str, where: str) -> torch.Tensor:
    values = _single(_numbers(column, f"{where}: weight column {name!r}"))
    wrong = ~(np.isfinite(values) & (values >= 0))
    if wrong.any():
        at = int(wrong.argmax())
        raise DataError(f"{where}: weight column {name!r}: found {values[at]} at row {at}; expected finite and >= 0")
    return torch.from_numpy(values)


def _required(columns: Mapping[str, pa.Array], name: str, events: int, where: str) -> torch.Tensor:
    if columns[name].null_count:
        at = int(columns[name].is_null().to_numpy(zero_copy_only=False).argmax())
        raise DataError(f"{where}: column {name!r}: null at row {at}; every event needs one")
    return _ids(columns, name, events, where)


def _ids(columns: Mapping[str, pa.Array], name: str | None, events: int, where: str) -> torch.Tensor:
    if name is None:
        return torch.full((events,), -1, dtype=torch.int64)
    column = columns[name]
    if not pa.types.is_integer(column.type):
        raise DataError(f"{where}: column {name!r}: expected integers, found {column.type}; number the ids")
    return torch.from_numpy(_integers(column, f"{where}: column {name!r}"))


def _integers(column: pa.Array, where: str) -> Ids:
    """int64, -1 for null."""
    try:
        column = column if column.type == pa.int64() else column.cast(pa.int64())
        return _plain(pc.fill_null(column, -1) if column.null_count else column)
    except pa.ArrowInvalid as error:
        raise DataError(f"{where}: {one_line(error)}; ids are signed 64-bit") from None


def _plain(column: pa.Array) -> Ids:
    """A writable copy of a column without nulls."""
    return np.array(column.to_numpy(zero_copy_only=False), np.int64)


def _numbers(column: pa.Array, where: str) -> npt.NDArray[np.float64]:
    """float64, nan for null."""
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise DataError(f"{where}: expected numbers, found {column.type}; convert the column")
    return np.array(column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False), np.float64)


def _single(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Rounded to float32; what is too large becomes infinite, for the caller to refuse."""
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
