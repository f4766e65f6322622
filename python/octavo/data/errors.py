"""The one error of the data room."""

from __future__ import annotations


class DataError(ValueError):
    """Data that cannot be used: one line that names the file or argument, what was found, what to do."""


def one_line(error: Exception) -> str:
    """Another library's message without its line breaks."""
    return " ".join(str(error).split())
