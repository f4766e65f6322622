"""What this machine can do at best, measured in the run: the loops of benchmarks/cpp/roofs.cpp.

They are compiled once with the system's C++ compiler (``CXX``, else c++ or g++) into build/bench. Without a compiler
there is no roof, and rows have no share.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "benchmarks" / "cpp" / "roofs.cpp"
REPEATS = 3  # the best of them: a roof is what the machine can do
SETTLE_S = 0.02  # torch's workers spin for some ms after their last region


@dataclass(frozen=True)
class Roof:
    """``value`` in ``unit``: GB/s (bytes in + out), GFLOP/s (2 per multiply-add) or M rows/s."""

    name: str
    value: float
    unit: str


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled loops, or None without a compiler."""
    names = [os.environ["CXX"]] if "CXX" in os.environ else ["c++", "g++", "clang++"]
    compiler = next((found for found in map(shutil.which, names) if found), None)
    if compiler is None:
        return None
    text = SOURCE.read_bytes() + SOURCE.with_suffix(".hpp").read_bytes()
    target = ROOT / "build" / "bench" / f"roofs-{hashlib.sha256(text).hexdigest()[:12]}.so"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            fresh = Path(folder) / target.name
            flags = ["-O3", "-std=c++20", "-shared", "-fPIC", "-pthread"]
            subprocess.run([compiler, *flags, str(SOURCE), "-o", str(fresh)], check=True)
            os.replace(fresh, target)
    loops = ctypes.CDLL(str(target))
    number, size, whole, yes = ctypes.c_double, ctypes.c_int64, ctypes.c_int, ctypes.c_bool
    for name, arguments in {
        "copy": [whole, size, yes, number],
        "gather": [whole, size, size, number],
        "lines": [whole, size, number],
        "fp32": [whole, number],
        "bf16": [whole, number],
        "int8": [whole, number],
    }.items():
        function = getattr(loops, f"octavo_roof_{name}")
        function.argtypes, function.restype = arguments, number
    loops.octavo_stream_once.argtypes = [whole, ctypes.c_void_p, ctypes.c_void_p, size, whole]
    loops.octavo_stream_once.restype = None
    return loops


def stream_once(source: torch.Tensor, target: torch.Tensor) -> None:
    """Read all of ``source`` and stream as many whole lines to ``target`` as it has, past the caches, on torch's number
    of threads. The size of source is a multiple of target's. Raises RuntimeError without a compiler."""
    loops = library()
    if loops is None or source.data_ptr() % 64 or target.data_ptr() % 64:
        raise RuntimeError("the stream needs a C++ compiler and arrays that start at a cache line")
    ratio = source.nbytes // target.nbytes
    lines = target.nbytes // 64
    loops.octavo_stream_once(torch.get_num_threads(), source.data_ptr(), target.data_ptr(), lines, ratio)


class Roofs:
    """Roofs at torch's number of threads, each measured once per run, ``ms`` long."""

    def __init__(self, ms: float) -> None:
        self._ms = ms
        self._known: dict[tuple[object, ...], Roof | None] = {}

    def copy(self, bytes_moved: int) -> Roof | None:
        """The faster copy of a working set of that size: normal stores, or non-temporal ones past the caches."""
        normal = self._measure("copy", bytes_moved // 2, False, unit="GB/s", name=f"copy of {_size(bytes_moved)}")
        past = self._measure("copy", bytes_moved // 2, True, unit="GB/s", name=f"NT copy of {_size(bytes_moved)}")
        return max((r for r in (normal, past) if r), key=lambda r: r.value, default=None)

    def gather(self, row_bytes: int, table_bytes: int) -> Roof | None:
        """Whole rows at random from a table of that size (at most 1 GiB), prefetched to L2."""
        table_bytes = min(table_bytes, 1 << 30)
        name = f"gather of {row_bytes} B rows from {_size(table_bytes)}"
        return self._measure("gather", table_bytes, row_bytes, unit="M rows/s", name=name)

    def lines(self, row_bytes: int, table_bytes: int) -> Roof | None:
        """Rows of so many 64-byte lines at the most lines/s that any row size and prefetch hint reaches in a table of
        that size (at most 1 GiB)."""
        found = self._measure("lines", min(table_bytes, 1 << 30), unit="M rows/s", name="")
        each = -(-row_bytes // 64)
        name = f"random lines of {_size(table_bytes)}, {each} a row, {torch.get_num_threads()} threads"
        return found and Roof(name, found.value / each, found.unit)

    def multiply(self, numerics: str) -> Roof | None:
        """The multiply-add loop a numerics class runs at on a CPU: FP32 FMA, BF16 (E4M3 too) or INT8 dot products."""
        loop = {"fp32": "fp32", "int8_dynamic": "int8"}.get(numerics, "bf16")
        return self._measure(loop, unit="GFLOP/s", name=f"{loop} multiply-add loop")

    def _measure(self, loop: str, *arguments: object, unit: str, name: str) -> Roof | None:
        key = (loop, *arguments)
        if key not in self._known:
            loops, threads = library(), torch.get_num_threads()
            value, repeats = 0.0, 1 if loop == "lines" else REPEATS  # lines: the best of many already
            if loops is not None:
                function = getattr(loops, f"octavo_roof_{loop}")
                time.sleep(SETTLE_S)
                value = max(function(threads, *arguments, self._ms) for _ in range(repeats))
            self._known[key] = Roof(f"{name}, {threads} threads", value, unit) if value > 0 else None
        return self._known[key]


def _size(count: int) -> str:
    return f"{count / 2**20:.3g} MiB" if count >= 1 << 20 else f"{count / 2**10:.3g} KiB"
