"""octavo: large recommendation models in eight bits.

Importing this package loads neither torch nor the compiled core; rooms are loaded when first named
(``octavo.ops``, ``octavo.nn``, ``octavo.data``, ...).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from octavo import config, data, evaluation, exfm, loka, models, nn, ops, report, store, training, windows

__version__ = "0.1.0"
_ROOMS = (
    "ops", "nn", "loka", "config", "data", "evaluation", "report", "models", "store", "training", "exfm", "windows"
)  # fmt: skip
__all__ = [
    "__version__",
    "config",
    "data",
    "evaluation",
    "exfm",
    "info",
    "loka",
    "models",
    "nn",
    "ops",
    "report",
    "store",
    "training",
    "windows",
]


def info() -> dict[str, Any]:
    """What this build and this machine have. Works without torch.

    Returns a dict with ``version``, ``isa`` (``baseline | avx2 | avx512``), ``features`` (instruction sets the
    hand-written kernels ask for), ``threads``, ``cuda`` (None, or a dict: device name, compute capability, driver,
    runtime), ``libraries`` (name -> version or None) and ``kernels`` (name -> qualification state:
    ``unknown | trusted | qualified | quarantined | unsupported``).
    """
    from octavo import _info

    return _info.info()


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"octavo.{name}")
    raise AttributeError(f"module 'octavo' has no attribute {name!r}; its rooms are {', '.join(_ROOMS)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ROOMS})
