"""What a figure was measured on: commit, date, device, instruction set, threads, caches, libraries."""

from __future__ import annotations

import datetime
import os
import subprocess
from pathlib import Path
from typing import Any

import torch

import octavo

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = ("torch", "fbgemm-gpu-cpu", "torchao")


def facts() -> dict[str, Any]:
    """Facts of this process and machine. ``load`` is the 1-minute load average at the start: above 0 before anything
    ran, someone else shares the cores."""
    info = octavo.info()
    return {
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": info["cpu"],
        "isa": info["isa"],
        "features": info["features"],
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "l2_bytes": cache_bytes(2),
        "l3_bytes": cache_bytes(3),
        "memory_bytes": memory_bytes("MemTotal"),
        "huge_pages": _selected(Path("/sys/kernel/mm/transparent_hugepage/enabled")),
        "torch_huge_pages": os.environ.get("THP_MEM_ALLOC_ENABLE") == "1",
        "libraries": {name: info["libraries"].get(name) for name in LIBRARIES},
        "octavo": info["version"],
    }


def gpu_facts() -> dict[str, Any]:
    """The current CUDA device, in place of the processor, and its clocks as they are now: nothing here sets them."""
    properties = torch.cuda.get_device_properties()
    return {
        "device": properties.name,
        "isa": f"sm_{properties.major}{properties.minor}",
        "host": octavo.info()["cpu"],
        "multiprocessors": properties.multi_processor_count,
        "gpu_memory_bytes": properties.total_memory,
        "gpu_l2_bytes": properties.L2_cache_size,
        "cuda": torch.version.cuda,
        "octavo_cuda": octavo.info()["cuda"],
        "gpu_clocks": _gpu_clocks(),
    }


def _gpu_clocks() -> dict[str, str] | None:
    """What nvidia-smi says of clocks, power and temperature, or None where it cannot."""
    names = ("clocks.sm", "clocks.max.sm", "clocks.mem", "power.draw", "power.limit", "temperature.gpu",
             "driver_version")  # fmt: skip
    ask = ["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader", "-i", "0"]
    try:
        done = subprocess.run(ask, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return dict(zip(names, (value.strip() for value in done.stdout.splitlines()[0].split(",")), strict=False))


def commit() -> str:
    """The checkout's commit, ``-dirty`` when tracked files differ from it; ``unknown`` outside git."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode != 0:
        return "unknown"
    clean = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True, check=False).returncode == 0
    return head.stdout.strip() + ("" if clean else "-dirty")


def cache_bytes(level: int) -> int | None:
    """Size of the first CPU's cache of this level, or None where the system does not say."""
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            if int((index / "level").read_text()) != level:
                continue
            size = (index / "size").read_text().strip()
        except (OSError, ValueError):
            continue
        return int(size[:-1]) << {"K": 10, "M": 20}[size[-1]]
    return None


def memory_bytes(field: str) -> int | None:
    """A line of /proc/meminfo, in bytes: ``MemTotal``, ``MemAvailable``."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) << 10
    except OSError:
        pass
    return None


def _selected(path: Path) -> str | None:
    try:
        return path.read_text().split("[")[1].split("]")[0]
    except (OSError, IndexError):
        return None
