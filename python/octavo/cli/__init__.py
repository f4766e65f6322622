"""The command line: ``octavo train | demo | doctor``."""

from __future__ import annotations

from octavo.cli.main import app, main

__all__ = ["app", "main"]
