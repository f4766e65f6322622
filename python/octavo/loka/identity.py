"""Which machine a report or a plan was timed on."""

from __future__ import annotations

import torch

from octavo import _core
from octavo._qualification_cache import cpu_name


def machine() -> str:
    """This one, in words: CPU, instruction set, threads, torch."""
    return f"{cpu_name()}, {_core.isa()}, {_core.threads()} threads, torch {torch.__version__}"
