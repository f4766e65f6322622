"""Groups by their keys: columns of ids or words to rows of a table, with verticals above groups and all above both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from octavo.windows.grid import Ints, WindowsError
from octavo.windows.index import Index

_MOST = 1 << 62


class Keys:
    """The groups seen so far, in the order in which they came.

    ``columns``: key columns, the ``verticals`` first ones of which name a group's vertical (0: there are none).
    A group is a combination of values of all columns.
    """

    def __init__(self, columns: Sequence[str], verticals: int) -> None:
        self.columns, self.verticals = tuple(columns), verticals
        self.values: list[pa.Array | None] = [None] * len(self.columns)  # by column, distinct
        self.codes = np.empty((0, len(self.columns)), np.int64)  # [groups, columns] into values
        self._made: dict[str, tuple[tuple[int, ...], Any]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_made": {}}  # indices are made anew

    def __len__(self) -> int:
        return len(self.codes)

    def encode(self, given: Any, grow: bool = False, where: str = "groups") -> tuple[Ints, Ints]:
        """(group, vertical) [n]: rows of :meth:`__len__` and of :meth:`vertical_keys`; -1 where never seen.

        ``given``: {column: values}, or the values alone where there is one column. Raises :class:`WindowsError` for
        null keys, columns that are missing and values of another type than before.
        """
        columns = [self._column(given, name, where) for name in self.columns]
        if not columns:
            rows = len(given) if not isinstance(given, Mapping) else len(next(iter(given.values())))
            if grow and not len(self.codes):
                self.codes = np.zeros((1, 0), np.int64)
            return np.zeros(rows, np.int64), np.full(rows, -1)
        if len({len(column) for column in columns}) > 1:
            raise WindowsError(f"{where}: columns of {[len(column) for column in columns]} rows; expected them equal")
        codes = [self._code(column, number, grow, where) for number, column in enumerate(columns)]
        group = self._group(codes)
        if grow and (group < 0).any():
            new = np.flatnonzero(group < 0)
            combined = _combine([code[new] for code in codes], self._radices(len(self.columns)))
            _, first = np.unique(combined, return_index=True)
            added = new[np.sort(first)]
            self.codes = np.concatenate([self.codes, np.stack([code[added] for code in codes], 1)])
            group = self._group(codes)
        if not self.verticals:
            return group, np.broadcast_to(np.int64(-1), group.shape)
        return group, self._vertical(codes[: self.verticals])

    def vertical_codes(self) -> Ints:
        """[verticals, columns] the distinct leading codes, in order of the codes; none where there are no verticals."""
        return np.unique(self.codes[:, : self.verticals], axis=0) if self.verticals else np.empty((0, 0), np.int64)

    def vertical_of_group(self) -> Ints:
        """[groups]: each group's vertical; -1 where there are none."""
        if not self.verticals:
            return np.full(len(self.codes), -1)
        return self._vertical(list(self.codes[:, : self.verticals].T))

    def column_values(self, number: int) -> pa.Array:
        """Each group's key in a column."""
        values = self.values[number]
        assert values is not None
        return values.take(pa.array(self.codes[:, number]))

    def absorb(self, other: Keys) -> Ints:
        """Add another's groups; returns where each of them is here."""
        if self.columns != other.columns or self.verticals != other.verticals:
            raise WindowsError(f"merge: groups are by {other.columns}, expected {self.columns}")
        if not len(other.codes):
            return np.empty(0, np.int64)
        if not self.columns:
            self.codes = np.zeros((1, 0), np.int64)
            return np.zeros(1, np.int64)
        return self.encode({name: other.column_values(i) for i, name in enumerate(self.columns)}, grow=True)[0]

    def _column(self, given: Any, name: str, where: str) -> pa.Array:
        if isinstance(given, Mapping):
            if name not in given:
                raise WindowsError(f"{where}: has no column {name!r}; it has {', '.join(map(str, given)) or 'none'}")
            given = given[name]
        elif isinstance(given, pa.Table):
            if name not in given.column_names:
                raise WindowsError(f"{where}: has no column {name!r}; it has {', '.join(given.column_names)}")
            given = given.column(name)
        elif len(self.columns) > 1:
            raise WindowsError(f"{where}: expected a column each for {', '.join(self.columns)}, as {{name: values}}")
        column = given.combine_chunks() if isinstance(given, pa.ChunkedArray) else given
        if not isinstance(column, pa.Array):
            column = pa.array(np.asarray(column))
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if column.null_count:
            at = int(np.asarray(column.is_null()).argmax())
            raise WindowsError(f"{where}: {name!r} is null at row {at}; give such rows a key of their own")
        if pa.types.is_integer(column.type) or pa.types.is_boolean(column.type):
            return column.cast(pa.int64())
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            return column.cast(pa.string())
        raise WindowsError(f"{where}: {name!r} is {column.type}; expected integers or text")

    def _code(self, column: pa.Array, number: int, grow: bool, where: str) -> Ints:
        values = self.values[number]
        if values is None:
            values = pa.array([], column.type)
        if values.type != column.type:
            raise WindowsError(
                f"{where}: {self.columns[number]!r} is {column.type}, was {values.type} before; give one type"
            )
        self.values[number] = values
        codes = self._among(column, number)
        if grow and (codes < 0).any():
            self.values[number] = pa.concat_arrays([values, column.filter(pa.array(codes < 0)).unique()])
            codes = self._among(column, number)
        return codes

    def _among(self, column: pa.Array, number: int) -> Ints:
        """[n]: the place of each of ``column`` in a column's values; -1 where it is not."""
        values = self.values[number]
        assert values is not None
        if not len(values):
            return np.full(len(column), -1)
        if pa.types.is_integer(values.type):
            return self._kept(f"column {number}", lambda: Index(values.to_numpy())).find(column.to_numpy())
        found = pc.index_in(column, value_set=values)  # arrow hashes text best, and the requests' own is most of it
        codes: Ints = np.asarray(found.fill_null(-1)).astype(np.int64)
        return codes

    def _kept(self, name: str, make: Callable[[], Any]) -> Any:
        """What ``make`` made of the keys; again once there are more of them."""
        state = (len(self.codes), *(0 if values is None else len(values) for values in self.values))
        held = self._made.get(name)
        if held is None or held[0] != state:
            held = self._made[name] = state, make()
        return held[1]

    def _radices(self, columns: int) -> list[int]:
        sizes = [len(values) + 1 for values in self.values[:columns] if values is not None]
        if np.prod([float(size) for size in sizes]) > _MOST:
            raise WindowsError("group: more combinations of keys than 2^62; use fewer key columns")
        return sizes

    def _group(self, codes: Sequence[Ints]) -> Ints:
        """[n]: the group of each combination of codes; -1 where it was not seen."""
        if len(self.columns) == 1 and self._kept("plain", self._is_plain):
            return codes[0]
        return self._combination("groups", lambda: self.codes, codes)

    def _vertical(self, codes: Sequence[Ints]) -> Ints:
        return self._combination("verticals", self.vertical_codes, codes)

    def _is_plain(self) -> bool:
        """Whether a group is its only column's value."""
        values = self.values[0]
        count = 0 if values is None else len(values)
        return len(self.codes) == count and np.array_equal(self.codes[:, 0], np.arange(count))

    def _combination(self, name: str, known: Callable[[], Ints], codes: Sequence[Ints]) -> Ints:
        """[n]: where each combination of codes is among ``known()`` [g, columns]; -1 where it is not."""
        radices = self._radices(len(codes))

        def index() -> Index | None:
            have = known()
            return Index(_combine(list(have.T), radices)) if len(have) else None

        kept: Index | None = self._kept(name, index)
        return np.full(len(codes[0]), -1) if kept is None else kept.find(_combine(codes, radices))


def _combine(codes: Sequence[Ints], radices: Sequence[int]) -> Ints:
    """One number for each combination; -1 among the codes is one of its own."""
    total = np.zeros(len(codes[0]), np.int64)
    for code, radix in zip(codes, radices, strict=True):
        total = total * radix + (code + 1)
    return total
