"""The command line: ``octavo train | demo | evaluate | probe | data | doctor``."""

from __future__ import annotations

from octavo.cli.main import app, main

__all__ = ["app", "main"]
