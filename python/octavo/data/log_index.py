"""``log.json``: which files make up an event log, and what proves that they are whole."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from octavo.data.errors import DataError, one_line

FORMAT = 1


@dataclass(frozen=True)
class LogFile:
    """One parquet file of a log: its rows and where they lie in event time (ms)."""

    name: str
    rows: int
    bytes: int
    sha256: str
    first_time: int
    last_time: int


def read_index(path: Path) -> dict[str, Any]:
    """The content of ``log.json``, whole and of this format."""
    index = path / "log.json"
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{index}: not found; expected a directory written by EventLog.write") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{index}: damaged ({one_line(error)}); write the log again") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise DataError(f"{index}: log format {found!r}; this octavo reads format {FORMAT}")
    if content.get("sha256") != index_hash(content):
        raise DataError(f"{index}: damaged or edited (it does not match its own sha256); write the log again")
    return content


def index_hash(content: dict[str, Any]) -> str:
    """SHA-256 (hex) over everything in ``log.json`` but itself."""
    rest = {key: value for key, value in content.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode("utf-8")).hexdigest()


def check_sorted(time: pa.ChunkedArray, last: int | None, where: str) -> int | None:
    """The last of ``time`` (ms); :class:`DataError` where it falls below ``last`` or below its neighbour.

    Nulls are passed over: the encoder names them.
    """
    values = time.drop_null().to_numpy()
    if len(values) == 0:
        return last
    if last is not None and values[0] < last:
        raise DataError(f"{where}: time falls from {last} to {values[0]} ms; sort the events by time")
    falls = values[1:] < values[:-1]
    if falls.any():
        at = int(falls.argmax())
        raise DataError(f"{where}: time falls from {values[at]} to {values[at + 1]} ms; sort the events by time")
    return int(values[-1])
