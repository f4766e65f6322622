"""Compiled code runs eagerly while a Probe watches: compiled graphs call no hooks."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import Any

import torch

_watching = 0
_stance: Any = None


def run_eagerly(watch: ExitStack) -> None:
    """Until ``watch`` is closed. Of several at once the last one to be closed gives compiled code back; nothing happens
    in a process that compiles nothing."""
    global _watching, _stance
    if "torch._dynamo" not in sys.modules:
        return
    if _watching == 0:
        _stance = torch.compiler.set_stance("force_eager")
        _stance.__enter__()
    _watching += 1
    watch.callback(_release)


def _release() -> None:
    global _watching, _stance
    _watching -= 1
    if _watching == 0:
        _stance.__exit__(None, None, None)
        _stance = None
