"""Which machine a report or a plan was timed on."""

from __future__ import annotations

import torch

from octavo import _core
from octavo._qualification_cache import cpu_name


def machine() -> str:
    """This one, in words: CPU, instruction set, threads, torch, and the GPU where octavo can use one."""
    gpu = _core.cuda_info()
    words = f"{cpu_name()}, {_core.isa()}, {_core.threads()} threads, torch {torch.__version__}"
    return words if gpu is None else f"{words}, {gpu['name']}"
