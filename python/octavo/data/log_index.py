"""``log.json``: which files make up an event log, where they lie, and what proves that they are whole."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import FileSystem, LocalFileSystem

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


class LogFiles:
    """The files below a log's directory: a path on this machine, or a URI of any pyarrow file system."""

    def __init__(self, path: str | Path) -> None:
        self._name = str(path).rstrip("/")
        try:
            self._system, self._root = file_system(self._name)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be opened ({one_line(error)})") from None

    def where(self, name: str) -> str:
        """The file as errors name it."""
        return f"{self._name}/{name}"

    def size(self, name: str) -> int | None:
        """In bytes; None where there is no such file."""
        size: int | None = self._system.get_file_info(f"{self._root}/{name}").size
        return size

    def text(self, name: str) -> str:
        """The whole file."""
        with self._system.open_input_stream(f"{self._root}/{name}") as stream:
            return str(stream.read(), "utf-8")

    def sha256(self, name: str) -> str:
        """Hex."""
        digest = hashlib.sha256()
        with self._system.open_input_stream(f"{self._root}/{name}") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()

    def parquet(self, name: str) -> pq.ParquetFile:
        """The file, open."""
        return pq.ParquetFile(f"{self._root}/{name}", filesystem=self._system)


def file_system(name: str) -> tuple[FileSystem, str]:
    """The file system of a local path or a URI, and the path in it. Raises what pyarrow raises."""
    system: tuple[FileSystem, str] = FileSystem.from_uri(name) if "://" in name else (LocalFileSystem(), name)
    return system


def read_index(files: LogFiles) -> dict[str, Any]:
    """The content of ``log.json``: whole, unedited, of this format."""
    index = files.where("log.json")
    try:
        content = json.loads(files.text("log.json"))
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
