"""Conversions as a fit takes them: checked columns of anchors and outcomes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from octavo.windows.grid import Ints, WindowsError


def column(conversions: Any, name: str) -> Any:
    """A column of a table, a mapping or a data frame."""
    try:
        return conversions[name]
    except (KeyError, IndexError, TypeError):
        pass
    names = list(getattr(conversions, "column_names", None) or getattr(conversions, "columns", conversions))
    raise WindowsError(f"conversions: has no column {name!r}; it has {', '.join(map(str, names))}")


def times_ms(values: Any, where: str) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """(ms since 1970, whether there is one) [n] of integers (ms), floats (ms, nan = none), time stamps, or arrow
    columns of these (null = none)."""
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if isinstance(values, pa.Array):
        if pa.types.is_timestamp(values.type):
            values = values.cast(pa.timestamp("ms"), safe=False).cast(pa.int64())
        there = ~np.asarray(values.is_null())
        if pa.types.is_integer(values.type):
            return np.asarray(values.fill_null(0)).astype(np.int64), there
        values = values.to_numpy(zero_copy_only=False)
    array = np.asarray(values)
    if array.ndim != 1:
        raise WindowsError(f"{where}: found shape {list(array.shape)}; expected one value per row")
    if np.issubdtype(array.dtype, np.datetime64):
        there = ~np.isnat(array)
        return np.where(there, array.astype("datetime64[ms]").astype(np.int64), 0), there
    if array.dtype == object:
        array = np.array([np.nan if value is None else value for value in array], np.float64)
    if np.issubdtype(array.dtype, np.integer):
        return array.astype(np.int64), np.ones(len(array), bool)
    if not np.issubdtype(array.dtype, np.floating):
        raise WindowsError(f"{where}: found {array.dtype}; expected ms since 1970 or time stamps")
    there = ~np.isnan(array)
    if np.isinf(array).any():
        raise WindowsError(f"{where}: inf at row {int(np.isinf(array).argmax())}; expected ms since 1970, nan = none")
    return np.where(there, np.round(np.where(there, array, 0.0)), 0).astype(np.int64), there


def delays(conversions: Any, anchor: str, converted: str, until: int) -> tuple[Ints, Ints, npt.NDArray[np.bool_]]:
    """(anchor's time ms, delay ms, whether it converted) [n].

    Raises :class:`WindowsError` that names the row: no anchor, a conversion before its anchor, anything after
    ``until`` (ms).
    """
    start, is_there = times_ms(column(conversions, anchor), f"conversions: {anchor!r}")
    end, came = times_ms(column(conversions, converted), f"conversions: {converted!r}")
    if len(start) != len(end):
        raise WindowsError(f"conversions: {len(start)} values of {anchor!r} and {len(end)} of {converted!r}")
    if not is_there.all():
        raise WindowsError(f"conversions: {anchor!r} is null at row {int((~is_there).argmax())}; leave such rows out")
    delay = np.where(came, end - start, 0)
    _refuse(delay < 0, lambda at: f"{converted!r} is {-delay[at]} ms before {anchor!r} at row {at}; "
            "leave out outcomes that came before their anchor", "conversions")  # fmt: skip
    _refuse(start > until, lambda at: f"{anchor!r} is {start[at] - until} ms after observed_until at row {at}; "
            "leave such rows out or move observed_until", "conversions")  # fmt: skip
    late = came & (end > until)
    _refuse(late, lambda at: f"{converted!r} is {end[at] - until} ms after observed_until at row {at}, so nobody could "
            "know it: make it null or move observed_until", "conversions")  # fmt: skip
    return start, delay, came


def _refuse(wrong: npt.NDArray[np.bool_], say: Any, where: str) -> None:
    if wrong.any():
        raise WindowsError(f"{where}: {say(int(wrong.argmax()))} ({int(wrong.sum())} such rows)")


def numbers(values: Any, name: str) -> npt.NDArray[Any]:
    """[n] float32 or float64."""
    array = np.asarray(values)
    if array.ndim != 1:
        raise WindowsError(f"{name}: found shape {list(array.shape)}; expected one probability per row")
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float64)


def probabilities(values: Any, name: str) -> npt.NDArray[Any]:
    """[n] float32 or float64. Raises :class:`WindowsError` for nan and for values outside 0..1, naming the row."""
    array = numbers(values, name)
    # min and max are nan where any value is: two passes without temporaries.
    if len(array) and not (array.min() >= 0 and array.max() <= 1):
        wrong = ~((array >= 0) & (array <= 1))
        at = int(wrong.argmax())
        raise WindowsError(
            f"{name}: {array[at]} at row {at} ({int(wrong.sum())} such rows); expected probabilities in 0..1"
        )
    return array


def is_columns(given: Any) -> bool:
    """Whether ``given`` has named columns."""
    return isinstance(given, (Mapping, pa.Table)) or hasattr(given, "columns")
