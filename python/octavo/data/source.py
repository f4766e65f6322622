"""Raw files of events, parquet or CSV, as tables in the order they lie in the files: the source of a conversion."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
import pyarrow.parquet as pq
from pyarrow.fs import FileSystem, FileType

from octavo.data.column_names import expect_distinct
from octavo.data.csv_fault import csv_fault
from octavo.data.errors import DataError, one_line
from octavo.data.log_index import file_system

_MS = {"s": (1000, 1), "ms": (1, 1), "us": (1, 1000), "ns": (1, 1_000_000)}
_NO_COLUMN, _WITH_VALUE = ("row",), ("at_least", "null_if")
_RAW = {
    "bits": pa.uint64(),
    "text_key": pa.string(),
    "yymmddhh": pa.int64(),
    "split": pa.string(),
}  # what they are made from
KINDS = (*_MS, "yymmddhh", "row", "bits", "text_key", "at_least", "null_if", "delay", "split")


_PER_SECOND = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}


@dataclass(frozen=True)
class Made:
    """A column made from the raw column ``column`` (none for ``row``), by ``kind``:

    * ``s``, ``ms``, ``us``, ``ns``: a number in that unit, or a timestamp, as ms; ``yymmddhh``: 14102100 as ms, UTC
    * ``row``: the number of the row in the inputs, from 0
    * ``bits``: an unsigned 64-bit integer as the signed one of the same bits; ``text_key``: text's 64-bit BLAKE2b key
    * ``at_least``: 1 where the number is ``value`` or more, else 0; null where it is null or nan
    * ``null_if``: the number, null where it is ``value``
    * ``delay``: seconds from ``since`` to the column, null where the column is ``value``; both are timestamps, or
      numbers in ``unit`` (``s``, the default, ``ms``, ``us``, ``ns``)
    * ``split``: integers joined by ``by``, as a list
    """

    kind: str
    column: str | None = None
    value: float | None = None
    since: str | None = None
    by: str | None = None
    unit: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise DataError(f"kind: unknown {self.kind!r}; expected one of {', '.join(KINDS)}")
        if (self.column is None) != (self.kind in _NO_COLUMN):
            raise DataError(f"column: kind {self.kind!r} {'takes none' if self.column else 'needs one'}")
        if self.kind in _WITH_VALUE and self.value is None:
            raise DataError(f"value: kind {self.kind!r} needs one")
        if (self.since is None) != (self.kind != "delay"):
            raise DataError("since: kind 'delay' needs it, no other takes it")
        if (not self.by) != (self.kind != "split"):
            raise DataError("by: kind 'split' needs it, no other takes it")
        if self.unit is not None and (self.kind != "delay" or self.unit not in _PER_SECOND):
            raise DataError(f"unit: for kind 'delay' alone, one of {', '.join(_PER_SECOND)}; found {self.unit!r}")


@dataclass(frozen=True)
class Source:
    """How raw files are read. ``names``: the columns of a CSV without a header line; ``types``: Arrow types by column;
    ``nulls``: what stands for no value in a CSV; ``make``: columns made from raw ones, which they may replace."""

    delimiter: str = ","
    names: tuple[str, ...] = ()
    nulls: tuple[str, ...] = ("",)
    types: Mapping[str, str] = field(default_factory=dict)
    make: Mapping[str, Made] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.delimiter) != 1:
            raise DataError(f"delimiter: expected one character, found {self.delimiter!r}")
        for name in self.types:
            self.type(name)

    def type(self, name: str) -> pa.DataType:
        """The Arrow type declared for a column."""
        try:
            return pa.type_for_alias(self.types[name])
        except ValueError:
            raise DataError(
                f"types: {name}: {self.types[name]!r} is not an Arrow type; such are int64, string"
            ) from None

    @classmethod
    def from_json(cls, value: Any, where: str) -> Source:
        """Raises :class:`DataError` that starts with ``where`` and names the key."""
        rest = dict(_keys(value, cls, where))
        make: dict[str, Made] = {}
        try:
            for name, entry in (rest.pop("make", None) or {}).items():
                place = f"{where}: make: {name}"
                try:
                    make[name] = Made(**_keys(entry, Made, place))
                except DataError as error:
                    raise DataError(str(error) if str(error).startswith(where) else f"{place}: {error}") from None
            for key in ("names", "nulls"):
                if key in rest:
                    rest[key] = tuple(rest[key])
            return cls(**rest, make=make)
        except DataError as error:
            raise DataError(str(error) if str(error).startswith(where) else f"{where}: {error}") from None
        except (TypeError, AttributeError) as error:
            raise DataError(f"{where}: not a source ({one_line(error)})") from None

    def to_json(self) -> dict[str, Any]:
        """What differs from the defaults."""
        plain: dict[str, Any] = {}
        for name in ("delimiter", "names", "nulls", "types"):
            value = getattr(self, name)
            if value != getattr(Source(), name):
                plain[name] = list(value) if isinstance(value, tuple) else value
        if self.make:
            plain["make"] = {
                name: {key: part for key, part in asdict(made).items() if part is not None}
                for name, made in self.make.items()
            }
        return plain


def _keys(value: Any, cls: type[Any], where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise DataError(f"{where}: expected keys and values, found {type(value).__name__}")
    known = [entry.name for entry in fields(cls)]
    unknown = next((key for key in value if key not in known), None)
    if unknown is not None:
        raise DataError(f"{where}: unknown key {unknown!r}; expected one of {', '.join(known)}")
    return value


def raw_tables(
    source: Source, inputs: Iterable[str], csv_types: Mapping[str, pa.DataType] | None = None
) -> Iterator[tuple[pa.Table, str]]:
    """Tables of the inputs (paths or pyarrow filesystem URIs; ``.parquet``, else CSV) with their made columns, and the
    place that errors are to name: a row group, or the CSV row that the table starts at (from 0). Memory is one row
    group, or one CSV block. ``csv_types``: of a CSV's columns for which the source declares none.

    Raises :class:`DataError` for what cannot be read, for two columns of one name, and for a value that a column cannot
    be made from.
    """
    rows = 0
    for name in inputs:
        for table, where in _file_tables(source, name, csv_types or {}):
            expect_distinct(table.column_names, where)
            yield _made(source, table, rows, where), where
            rows += len(table)


def open_file(name: str) -> tuple[FileSystem, str]:
    """The file system and the path in it of a local path or a URI."""
    if not is_file(name):
        raise DataError(f"{name}: no such file")
    return file_system(name)


def is_file(name: str) -> bool:
    """Whether a local path or a URI is that of a file. Raises :class:`DataError` for a URI that cannot be opened."""
    try:
        filesystem, path = file_system(name)
        return bool(filesystem.get_file_info(path).type == FileType.File)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{name}: cannot be opened ({one_line(error)})") from None


def is_parquet(name: str) -> bool:
    """By its name: everything else is taken for CSV."""
    return name.endswith((".parquet", ".pq"))


def _file_tables(source: Source, name: str, types: Mapping[str, pa.DataType]) -> Iterator[tuple[pa.Table, str]]:
    filesystem, path = open_file(name)
    place = name
    try:
        if is_parquet(name):
            with pq.ParquetFile(filesystem.open_input_file(path), page_checksum_verification=True) as parquet:
                for group in range(parquet.metadata.num_row_groups):
                    place = f"{name} row group {group}"
                    yield _typed(source, parquet.read_row_group(group), place), place
        else:
            place, row = f"{name} rows from 0", 0
            for batch in csv_reader(source, filesystem.open_input_stream(path), types):
                yield pa.Table.from_batches([batch]), place
                row += len(batch)
                place = f"{name} rows from {row}"
    except (pa.ArrowException, OSError) as error:
        if is_parquet(name):
            raise DataError(f"{place}: not readable as parquet ({one_line(error)}); export it again") from None
        found = csv_fault(lambda: filesystem.open_input_stream(path), str(error), source.names, source.delimiter)
        if found is not None:
            raise DataError(
                f"{name} {found}; mend the value, or declare the column's type or nulls in source"
            ) from None
        raise DataError(f"{place}: not readable as CSV ({one_line(error)}); export it again") from None


def csv_reader(source: Source, stream: pa.NativeFile, types: Mapping[str, pa.DataType]) -> csv.CSVStreamingReader:
    """Blocks of a CSV; a column without a type, here or in the source, has the type of its first block."""
    types = {name: kind for name, kind in types.items() if name not in source.make}
    types |= {made.column: _RAW[made.kind] for made in source.make.values() if made.column and made.kind in _RAW}
    types |= {name: source.type(name) for name in source.types}
    return csv.open_csv(
        stream,
        read_options=csv.ReadOptions(column_names=list(source.names) or None, block_size=1 << 24),
        parse_options=csv.ParseOptions(delimiter=source.delimiter),
        convert_options=csv.ConvertOptions(
            column_types=types,
            null_values=list(source.nulls),
            strings_can_be_null=True,
        ),
    )


def _typed(source: Source, table: pa.Table, where: str) -> pa.Table:
    for name in source.types:
        at = table.schema.get_field_index(name)
        if at >= 0 and table.schema.field(at).type != source.type(name):
            try:
                table = table.set_column(at, name, table.column(name).cast(source.type(name)))
            except pa.ArrowException as error:
                raise DataError(f"{where}: column {name!r}: {one_line(error)}") from None
    return table


def _made(source: Source, table: pa.Table, first_row: int, where: str) -> pa.Table:
    made: dict[str, pa.Array | pa.ChunkedArray] = {}
    for name, how in source.make.items():
        for column in (how.column, how.since):
            if column is not None and column not in table.column_names:
                raise DataError(f"{where}: column {column!r} is missing; it has {', '.join(table.column_names)}")
        place = f"{where}: column {how.column!r} (for {name!r}, kind {how.kind})"
        try:
            made[name] = _make(how, table, first_row, place)
        except (pa.ArrowException, TypeError) as error:
            raise DataError(f"{place}: {one_line(error)}") from None
    for name, column in made.items():  # together at the end: each is made from the raw columns
        at = table.schema.get_field_index(name)
        table = table.append_column(name, column) if at < 0 else table.set_column(at, name, column)
    return table


def _make(how: Made, table: pa.Table, first_row: int, where: str) -> pa.Array | pa.ChunkedArray:
    if how.kind == "row":
        return pa.array(np.arange(first_row, first_row + len(table), dtype=np.int64))
    column = table.column(how.column).combine_chunks()
    if how.kind in _MS:
        return _to_ms(column, how.kind)
    if how.kind == "at_least":
        known = pc.if_else(pc.is_nan(column), None, column) if pa.types.is_floating(column.type) else column
        return pc.greater_equal(known, pa.scalar(how.value)).cast(pa.int8())
    if how.kind == "null_if":
        return _without(column, how.value)
    if how.kind == "delay":
        return _delay(_without(column, how.value), table.column(how.since).combine_chunks(), how.unit or "s")
    if how.kind == "split":
        return pc.split_pattern(column, how.by).cast(pa.list_(pa.int64()))
    return _BY_VALUES[how.kind](column, where)


def _delay(column: pa.Array, since: pa.Array, unit: str) -> pa.Array:
    """Seconds [n] float64."""
    if pa.types.is_timestamp(column.type) or pa.types.is_timestamp(since.type):
        column, since = (moment.cast(pa.timestamp("us")).cast(pa.int64()) for moment in (column, since))
        unit = "us"
    return pc.divide(pc.subtract(column, since).cast(pa.float64()), _PER_SECOND[unit])


def _without(column: pa.Array, value: float | None) -> pa.Array:
    if value is None:
        return column
    return pc.if_else(pc.equal(column, pa.scalar(value)), pa.scalar(None, column.type), column)


def _to_ms(column: pa.Array, unit: str) -> pa.Array:
    if pa.types.is_timestamp(column.type):
        return column.cast(pa.timestamp("ms"), safe=False).cast(pa.int64())
    up, down = _MS[unit]
    if pa.types.is_floating(column.type):
        return pc.floor(pc.divide(pc.multiply(column, float(up)), float(down))).cast(pa.int64())
    return pc.divide(pc.multiply_checked(column.cast(pa.int64()), up), down)


def _yymmddhh(column: pa.Array, where: str) -> pa.Array:
    """Hours are digits: no parser takes them without minutes."""
    if column.null_count:
        raise DataError(f"{where}: null at row {column.is_null().index(True).as_py()}")
    raw = np.asarray(column.cast(pa.int64()).to_numpy(zero_copy_only=False))
    coded, place = np.unique(raw, return_inverse=True)
    hours = np.empty(len(coded), np.int64)
    for at, value in enumerate(coded.tolist()):  # distinct hours, not rows
        text = f"{value:08d}"
        try:
            moment = datetime(2000 + int(text[:2]), int(text[2:4]), int(text[4:6]), int(text[6:]), tzinfo=UTC)
        except ValueError:
            raise DataError(f"{where}: {value} is not YYMMDDHH") from None
        hours[at] = round(moment.timestamp()) * 1000
    return pa.array(hours[place])


def _bits(column: pa.Array, where: str) -> pa.Array:
    if column.null_count or not pa.types.is_integer(column.type):
        raise DataError(f"{where}: expected integers without nulls, found {column.type}, {column.null_count} nulls")
    return pa.array(column.cast(pa.uint64()).to_numpy(zero_copy_only=False).view(np.int64))


def _text_key(column: pa.Array, where: str) -> pa.Array:
    coded = column.cast(pa.string()).dictionary_encode()
    keys: npt.NDArray[np.int64] = np.array(
        [int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little", signed=True)
         for word in coded.dictionary.to_pylist()], np.int64)  # fmt: skip
    return pa.array(keys).take(coded.indices)


_BY_VALUES: dict[str, Callable[[pa.Array, str], pa.Array]] = {
    "yymmddhh": _yymmddhh,
    "bits": _bits,
    "text_key": _text_key,
}
