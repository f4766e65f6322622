"""Where a command reads and writes: what has to be a path on this machine."""

from __future__ import annotations

from pathlib import Path

import typer


def local_path(name: str | Path) -> Path:
    """``name`` as a path. Raises typer.BadParameter for a URI, which as a path would be a directory named ``file:``."""
    if "://" in str(name):
        raise typer.BadParameter(f"expected a path on this machine, found the URI {name}; copy to or from it")
    return Path(name)
