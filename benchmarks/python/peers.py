"""Peers: admitted when they run and agree with the reference, else listed with the reason."""

from __future__ import annotations

import contextlib
import importlib
import io
import warnings
from collections.abc import Callable
from types import ModuleType

import harness
import torch

from octavo.ops import errors

# Relative L1 error against FP32 that a class may show here: a check that everyone did the same work, not a test.
LOOSE = {"exact": 1e-6, "codes": 1e-3, "fp32": 1e-4, "bf16": 0.03, "int8_dynamic": 0.06, "e4m3": 0.1, "e4m3_row": 0.1,
         "e4m3_weight_only": 0.1, "e4m3_chain": 0.2, "int4": 0.3, "gradients": 0.06}  # fmt: skip


class Wrong(Exception):
    """A candidate did other work than asked."""


def agrees(y: torch.Tensor, reference: torch.Tensor, numerics: str) -> None:
    """Raise Wrong unless y is the reference within what its class may show."""
    found = errors.relative_l1(y.float(), reference)
    if not found <= LOOSE[numerics]:
        raise Wrong(f"relative L1 error {found:.3g} against FP32, expected <= {LOOSE[numerics]}")


def admit(rivals: list[harness.Entry], absent: dict[str, str], name: str, build: Callable[[], harness.Entry]) -> None:
    """Add what ``build`` returns to ``rivals``; when it cannot be had, say why in ``absent``."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rivals.append(build())
    except Exception as error:
        lines = str(error).strip().splitlines()
        absent[name] = f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]


def fbgemm() -> None:
    """Load FBGEMM's operators. Raises ImportError where the ``bench`` extra is not installed."""
    quietly("fbgemm_gpu")


def quietly(module: str) -> ModuleType:
    """Import a peer without its chatter on stderr and its warnings."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        return importlib.import_module(module)
