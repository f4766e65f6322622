"""The logs of several students as one: in event time, every example once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from octavo.data import DataError, EventLog

Ids = npt.NDArray[np.int64]
_ROWS = 1 << 16  # of each log in memory


@dataclass
class Merged:
    """What merging met: ``duplicates``, copies of an example after its first; ``skewed``, those of them with another
    time; ``conflicts``, other values of copies that differ from the one that was kept."""

    duplicates: int = 0
    skewed: int = 0
    conflicts: int = 0


def merged(
    logs: Mapping[str, EventLog], names: Sequence[str], id_name: str, time_name: str, skew_ms: int, found: Merged
) -> Iterator[pa.Table]:
    """Tables of ``names``' columns over the logs' events, in event time; counts go to ``found``.

    Copies of an example (same id) may be up to ``skew_ms`` apart: clocks differ. The earliest is kept, of equal ones
    the first log's; where it has nulls the next copies' values take their place. Copies further apart are an error. A
    column that a log does not have is null there. Memory is some row groups of each log. Raises :class:`DataError` for
    a column that no log has, or that has another type in another log.
    """
    kinds = _types(logs, names)
    sources = [_Source(log, names, kinds) for log in logs.values()]
    while True:
        for source in sources:
            source.fill()
        if not any(len(source.held) for source in sources):
            return
        open_ends = [source.last(time_name) for source in sources if not source.is_read]
        bound = min(open_ends) - skew_ms if open_ends else None
        whole = pa.concat_tables([source.held for source in sources]).combine_chunks()
        origin = np.repeat(np.arange(len(sources)), [len(source.held) for source in sources])
        ids, times = _numbers(whole, id_name), _numbers(whole, time_name)
        order = np.lexsort((origin, times))
        _, first = np.unique(ids[order], return_index=True)
        kept = order[np.sort(first)]  # each example's earliest copy, in event time
        ready = kept if bound is None else kept[times[kept] < bound]
        if len(ready):
            taken = np.isin(ids, ids[ready])
            yield _coalesced(whole, ids, order[taken[order]], ready, time_name, skew_ms, found)
            rest = whole.filter(pa.array(~taken))
            counts = np.bincount(origin[~taken], minlength=len(sources))
            for source, begin, count in zip(sources, np.cumsum(counts) - counts, counts, strict=True):
                source.held = rest.slice(begin, count)
        else:  # the log that ends first is what holds the others up
            min(
                (source for source in sources if not source.is_read), key=lambda source: source.last(time_name)
            ).read_on()


class _Source:
    """A log's events that have been read and not yet been passed on."""

    def __init__(self, log: EventLog, names: Sequence[str], kinds: Mapping[str, pa.DataType]) -> None:
        self._log, self._names, self._kinds = log, names, kinds
        self._position = 0
        self.held = pa.table({name: pa.array([], kinds[name]) for name in names})

    @property
    def is_read(self) -> bool:
        """Whether nothing is left to read."""
        return self._position == len(self._log)

    def last(self, time_name: str) -> int:
        """The time of the last event read: no event to come is before it."""
        return int(self.held[time_name][-1].as_py()) if len(self.held) else self._time_before(time_name)

    def fill(self) -> None:
        if not self.is_read and len(self.held) < _ROWS // 2:
            self.read_on()

    def read_on(self) -> None:
        end = min(self._position + _ROWS, len(self._log))
        present = [name for name in self._names if name in self._log.column_names]
        table = self._log.columns(present, self._position, end)
        columns = {
            name: table[name].cast(self._kinds[name]) if name in present else pa.nulls(len(table), self._kinds[name])
            for name in self._names
        }
        self.held = pa.concat_tables([self.held, pa.table(columns)])
        self._position = end

    def _time_before(self, time_name: str) -> int:
        return int(self._log.columns([time_name], self._position - 1, self._position)[time_name][0].as_py())


def _types(logs: Mapping[str, EventLog], names: Sequence[str]) -> dict[str, pa.DataType]:
    """Of each column the type that holds all logs' values."""
    kinds: dict[str, pa.DataType] = {}
    whose: dict[str, str] = {}
    for student, log in logs.items():
        for field in log.columns([name for name in names if name in log.column_names], 0, 0).schema:
            known = kinds.get(field.name, pa.null())
            both = [pa.schema([pa.field("value", kind)]) for kind in (known, field.type)]
            try:
                kinds[field.name] = pa.unify_schemas(both, promote_options="permissive").field(0).type
            except pa.ArrowTypeError:
                raise DataError(
                    f"{log.path}: column {field.name!r} is {field.type} in {student}'s log and {known} in "
                    f"{whose[field.name]}'s; write both with one type"
                ) from None
            whose[field.name] = student
    absent = [name for name in names if name not in kinds]
    if absent:
        raise DataError(f"column {absent[0]!r}, which the teacher reads, is in no log of {', '.join(logs)}")
    return kinds


def _numbers(table: pa.Table, name: str) -> Ids:
    column: Ids = table[name].to_numpy().astype(np.int64)
    return column


def _coalesced(
    table: pa.Table, ids: Ids, copies: Ids, kept: Ids, time_name: str, skew_ms: int, found: Merged
) -> pa.Table:
    """The rows ``kept``, with what other copies know where they have nulls. ``copies``: all rows of their ids, the
    earliest first."""
    result = table.take(pa.array(kept))
    found.duplicates += len(copies) - len(kept)
    if len(copies) == len(kept):
        return result
    by_id = copies[np.argsort(ids[copies], kind="stable")]
    starts = np.flatnonzero(np.r_[True, ids[by_id][1:] != ids[by_id][:-1]])
    group = np.repeat(np.arange(len(starts)), np.diff(np.r_[starts, len(by_id)]))
    place = np.searchsorted(ids[by_id][starts], ids[kept])
    times = _numbers(table, time_name)[by_id]
    check_skew(ids[by_id][starts], np.minimum.reduceat(times, starts), np.maximum.reduceat(times, starts), skew_ms)
    for at, name in enumerate(table.column_names):
        column = table[name].combine_chunks()
        known = np.asarray(column.is_valid())[by_id]
        order = np.lexsort((~known, group))  # stable: the earliest copy that knows comes first
        chosen = by_id[order][np.flatnonzero(np.r_[True, group[order][1:] != group[order][:-1]])]
        result = result.set_column(at, table.field(name), column.take(pa.array(chosen[place])))
        differing = _differing(column, by_id[known], chosen[group[known]])
        if name == time_name:
            found.skewed += differing
        else:
            found.conflicts += differing
    return result


def check_skew(ids: Ids, first: Ids, last: Ids, skew_ms: int) -> None:
    """Raises :class:`DataError` for an example whose copies' times are further apart than clocks may be."""
    wrong = np.abs(last - first) > skew_ms
    if wrong.any():
        at = int(wrong.argmax())
        raise DataError(
            f"example {ids[at]} is at {first[at]} ms and at {last[at]} ms, more than skew_ms={skew_ms} apart: do the "
            "logs number different examples alike, or do their clocks differ? give them ids of one kind"
        )


def _differing(column: pa.Array, rows: Ids, kept: Ids) -> int:
    """How many of ``rows``, none null, differ from ``kept``; of lists nothing is counted."""
    if pa.types.is_nested(column.type):
        return 0
    equal = pc.equal(column.take(pa.array(rows)), column.take(pa.array(kept)))
    return int(pc.sum(pc.invert(equal)).as_py() or 0)
