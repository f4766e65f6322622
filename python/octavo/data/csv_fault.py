"""Where a CSV is wrong: looked for in a second pass over a file that could not be read."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv

_UNCONVERTIBLE = re.compile(r"column #(\d+): .*conversion error to (.+?): invalid value '(.*)'", re.DOTALL)
_LONGEST = 80  # characters of a row that an error quotes


def csv_fault(open_stream: Callable[[], pa.NativeFile], error: str, names: Sequence[str], delimiter: str) -> str | None:
    """The row (from 0, below the header), the column and the value behind pyarrow's ``error``, in words.

    ``names``: of the columns where the file has no header, else empty. None where the error is of the whole file, or
    where the second pass fails in another way.
    """
    torn: list[csv.InvalidRow] = []

    def note(row: csv.InvalidRow) -> str:
        torn.append(row)
        return "skip"

    def blocks(types: dict[str, pa.DataType]) -> csv.CSVStreamingReader:
        return csv.open_csv(
            open_stream(),
            read_options=csv.ReadOptions(column_names=list(names) or None, use_threads=False),  # threads number no rows
            parse_options=csv.ParseOptions(delimiter=delimiter, invalid_row_handler=note),
            convert_options=csv.ConvertOptions(column_types=types),
        )

    wrong = _UNCONVERTIBLE.search(error)
    try:
        columns = blocks({}).schema.names
        torn.clear()
        rows = 0
        for block in blocks(dict.fromkeys(columns, pa.string())):
            if torn:
                return _of_torn(torn[0], 1 if names else 2)
            if wrong is not None:
                column, kind, value = int(wrong[1]), wrong[2], wrong[3]
                at = pc.index(pc.utf8_trim_whitespace(block.column(column)), value.strip()).as_py()
                if at >= 0:
                    return f"row {rows + at}: column {columns[column]!r}: found {value!r}, expected {kind}"
            rows += len(block)
    except (pa.ArrowException, OSError):
        return None
    return _of_torn(torn[0], 1 if names else 2) if torn else None


def _of_torn(row: csv.InvalidRow, first: int) -> str:
    """``first``: the file's number of its first row of data; the header has 1."""
    text = row.text if len(row.text) <= _LONGEST else row.text[:_LONGEST] + "..."
    where = "" if row.number is None else f"row {row.number - first}: "
    return f"{where}expected {row.expected_columns} columns, found {row.actual_columns}: {text!r}"
