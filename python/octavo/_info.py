"""``octavo.info()``: what this build and this machine have, without torch."""

from __future__ import annotations

from typing import Any

import octavo
from octavo import _core, _qualification_cache

LIBRARIES = ("torch", "fbgemm-gpu-cpu", "fbgemm-gpu", "torchao", "torchrec", "pyarrow", "nvidia-cutlass")


def info() -> dict[str, Any]:
    """See :func:`octavo.info`."""
    return {
        "version": octavo.__version__,
        "cpu": _qualification_cache.cpu_name(),
        "isa": _core.isa(),
        "features": [name for name, present in _core.cpu_features().items() if present],
        "threads": _core.threads(),
        "cuda": _core.cuda_info(),
        "libraries": {name: _qualification_cache.version(name) for name in LIBRARIES},
        "kernels": kernel_states(),
    }


def kernel_states() -> dict[str, str]:
    """Every kernel's state; verdicts of earlier processes count where this one has none yet."""
    known = _qualification_cache.read()
    return {kernel.name: _state(kernel, known) for kernel in _core.kernels()}


def _state(kernel: _core.Kernel, known: dict[str, str]) -> str:
    if not kernel.supported:
        return "unsupported"
    verdict = known.get(_qualification_cache.entry(kernel))
    if kernel.state != "unknown" or verdict is None:
        return str(kernel.state)
    return "quarantined" if verdict else "qualified"
