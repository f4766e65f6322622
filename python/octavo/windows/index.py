"""Where each of many distinct numbers is: what looking up requests' keys needs, made once for all calls."""

from __future__ import annotations

import numpy as np

from octavo import _core
from octavo.windows.grid import CHUNK, Ints

_SPARSE = 8  # a table by value may have so many times as many places as there are values


class Index:
    """The places of ``known`` [n] distinct int64, n > 0: a table by value where they lie close together, else octavo's
    hash (one cache miss a look-up)."""

    def __init__(self, known: Ints) -> None:
        known = np.ascontiguousarray(known, np.int64)
        self._low = known.min()
        span = int(known.max()) - int(self._low) + 1
        self._table: Ints | None = None
        if span <= max(_SPARSE * len(known), 1024):
            self._table = np.full(span + 1, -1, np.int64)  # the last place is that of all values outside
            self._table[known - self._low] = np.arange(len(known))
            return
        self._map = _core.IdMap(len(known))
        rows = np.empty(len(known), np.int64)
        self._map.lookup_or_insert(known.ctypes.data, len(known), 0, rows.ctypes.data)
        assert rows[-1] == len(known) - 1, "keys are distinct, so rows are in their order"

    def find(self, wanted: Ints) -> Ints:
        """[m]: the place in ``known`` of each; -1 where it is not among them."""
        wanted = np.ascontiguousarray(wanted, np.int64)
        found = np.empty(len(wanted), np.int64)
        if self._table is None:
            self._map.lookup(wanted.ctypes.data, len(wanted), found.ctypes.data)
            return found
        buffer, last = np.empty(CHUNK, np.int64), np.uint64(len(self._table) - 1)
        for begin in range(0, len(wanted), CHUNK):
            part = wanted[begin : begin + CHUNK]
            place = np.subtract(part, self._low, out=buffer[: len(part)])
            unsigned = place.view(np.uint64)  # what is below the lowest is huge
            np.minimum(unsigned, last, out=unsigned)
            np.take(self._table, place, out=found[begin : begin + len(part)], mode="clip")  # "raise" would buffer
        return found
