"""``log.json``: which files make up an event log, and what proves that they are whole."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo._files import content_hash
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
    """The content of ``log.json`` below ``path``: whole, unedited, of this format."""
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
    if content.get("sha256") != content_hash(content):
        raise DataError(f"{index}: damaged or edited (its own sha256 does not match); write the log again")
    return content
