"""Files that are whole or absent, and how a reader knows that they are what was written."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy.typing as npt


class NoSpaceError(OSError):
    """The disk is full, or a quota or a limit on files is reached: one line that names the file and what to do."""


@contextlib.contextmanager
def space_expected(path: Path) -> Iterator[None]:
    """Raises :class:`NoSpaceError` that names ``path`` where the disk takes no more of what is written inside."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            raise
        raise NoSpaceError(f"{path}: cannot be written ({os.strerror(error.errno)}); make room and try again") from None


def write_atomically(path: str | Path, text: str) -> None:
    """Write ``text`` to a temporary file beside ``path``, flush it, rename. Raises :class:`NoSpaceError`."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with space_expected(path), temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def temporary_directory(path: Path) -> Iterator[Path]:
    """An empty directory beside ``path``, to be filled and renamed to it; removed at the end when it was not.

    Its writer holds a lock on it while it lives: what killed writers of the same ``path`` left behind is removed.
    """
    for left in path.parent.glob(f".{glob.escape(path.name)}.tmp-*"):
        _remove_abandoned(left)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    temporary.mkdir()
    descriptor = os.open(temporary, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield temporary
    finally:
        os.close(descriptor)
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_abandoned(directory: Path) -> None:
    """Unless someone holds its lock."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(directory, ignore_errors=True)
    except BlockingIOError:
        pass
    finally:
        os.close(descriptor)


def write_array(path: Path, values: npt.NDArray[Any]) -> None:
    """Write ``values`` as a .npy file and flush it to the disk. Raises :class:`NoSpaceError`."""
    import numpy as np  # octavo.info() does without

    with space_expected(path), path.open("wb") as file:
        np.save(file, values)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Flush a directory's entries to the disk: a rename in it then survives a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_hash(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_hash(content: Mapping[str, Any]) -> str:
    """SHA-256 (hex) over everything in a JSON object but its own key ``sha256``."""
    rest = {key: value for key, value in content.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode("utf-8")).hexdigest()


def write_signed(path: Path, format_: int, content: Mapping[str, Any]) -> None:
    """Write a JSON object with its format and its hash, atomically, and its name in the directory with it."""
    whole = {"format": format_, **content}
    write_atomically(path, json.dumps({**whole, "sha256": content_hash(whole)}, indent=1))
    sync_directory(path.parent)


def read_signed(path: Path, format_: int, error: type[Exception]) -> dict[str, Any] | None:
    """What :func:`write_signed` wrote, None where there is no file. Raises ``error`` for a file that was damaged or
    changed, or is of another format."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        raise error(f"{path}: not JSON; restore it") from None
    if not isinstance(content, dict) or content.get("format") != format_:
        raise error(f"{path}: is of another format than {format_}; was another octavo at work here?")
    if content.get("sha256") != content_hash(content):
        raise error(f"{path}: was changed by hand: its sha256 is another; restore it")
    return content


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Alone among the processes that lock ``path``, one after the other; a lock ends with its process."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
