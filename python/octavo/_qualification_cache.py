"""What is known on this machine about every kernel, kept between processes. Works without torch.

One JSON file per (compiled kernels, machine, instruction set, driver) below ``$XDG_CACHE_HOME/octavo``; entries of
other libraries' kernels also name the library's version. Written atomically; where the directory is read-only, verdicts
live in memory only.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
from pathlib import Path

from octavo import _core
from octavo._files import write_atomically


def path() -> Path:
    """The cache file of this machine and this build."""
    return file("kernels")


def file(kind: str, suffix: str = "") -> Path:
    """The file of this machine and this build that holds ``kind``."""
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser() / "octavo" / f"{kind}-{_machine(_core.isa())}{suffix}.json"


def read() -> dict[str, str]:
    """Verdicts by ``entry``: '' = qualified, else why the kernel was quarantined. Unreadable files count as empty."""
    try:
        content = json.loads(path().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) and all(isinstance(v, str) for v in content.values()) else {}


def write(verdicts: dict[str, str]) -> None:
    """Add verdicts to the file. A directory that cannot be written is not an error."""
    target = path()
    merged = {**read(), **verdicts}
    with contextlib.suppress(OSError):
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, json.dumps(merged, indent=1, sort_keys=True))


def entry(kernel: _core.Kernel) -> str:
    """The key of one kernel in the file."""
    return kernel.name if kernel.library == "octavo" else f"{kernel.name} ({kernel.library} {version(kernel.library)})"


def version(library: str) -> str | None:
    """The installed version of a library, or None."""
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def _machine(isa: str) -> str:
    features = [name for name, present in sorted(_core.cpu_features().items()) if present]
    facts = [_build(), cpu_name(), isa, *features, json.dumps(_core.cuda_info(), sort_keys=True)]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:20]


@functools.cache
def _build() -> str:
    return hashlib.sha256(Path(_core.__file__).read_bytes()).hexdigest()


@functools.cache
def cpu_name() -> str:
    """The processor's name as the system tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
