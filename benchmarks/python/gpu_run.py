"""How the GPU benchmarks run: samples by the device's own clock, roofs by its own copies, a budget of seconds.

A sample writes 256 MiB first, which empties L2 and keeps the device busy while the host queues what follows, then takes
the time between two CUDA events around a CUDA graph of up to ten calls (``octavo.ops.dispatch.timing``); entries that
cannot be recorded are called instead. Rounds are interleaved in random orders as everywhere (``harness``). Clocks are
not set: the header says what they were. ``--device cpu`` runs the same code on the host's clock, for tests.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import harness
import numpy as np
import records
import torch
from command_line import command_line, level_of
from harness import Effort, Entry
from machine import gpu_facts
from roofs import Roof

from octavo import _core
from octavo.ops import dispatch, kernels
from octavo.ops.dispatch.timing import sampler

EFFORTS = {
    "smoke": Effort("smoke", 0.01, 3, 3, 1.0, 1.0),
    "quick": Effort("quick", 0.15, 7, 30, 200.0, 20.0),
    "full": Effort("full", 0.5, 11, 60, 300.0, 50.0),
}
_FLUSH_BYTES = 256 << 20  # several times any L2
_MOST_CALLS = 10  # in a sample
_ROOF_BYTES = {"cpu": 1 << 20, "cuda": 1 << 30}


class GpuRun(harness.Run):
    """A run on ``device`` (``cuda``; ``cpu`` in tests) that may take ``budget_s`` in all."""

    def __init__(self, name: str, level: str, as_json: bool, device: str, budget_s: float) -> None:
        machine = gpu_facts() if device == "cuda" else {}
        super().__init__(name, EFFORTS[level], as_json, partial(interleaved, device=device), machine)
        self.device, self._end, self._copy = device, time.monotonic() + budget_s, 0.0

    def has_time(self, op: str, shape: Mapping[str, Any]) -> bool:
        """Whether the budget allows one more shape; says so where it does not."""
        if time.monotonic() < self._end:
            return True
        self.cut(op, shape, "the script's budget is spent")
        return False

    def copy_roof(self) -> Roof:
        """GB/s, read and written, of a copy of 1 GiB, measured once in the run: the median of nine."""
        if self._copy == 0.0:
            x = torch.empty(_ROOF_BYTES[self.device], dtype=torch.uint8, device=self.device).random_()
            y = torch.empty_like(x)
            take = sampler(lambda i: y.copy_(x), self.device, 2)
            take()
            self._copy = 2 * x.nbytes / float(np.median([take() for _ in range(9)])) / 1e3
        return Roof("copy of 1 GiB", self._copy, "GB/s")


def interleaved(entries: Sequence[Entry], effort: Effort, device: str) -> dict[str, np.ndarray]:
    """us per call of each entry, one sample a round, as ``harness.interleaved`` by the device's clock."""
    flush = flusher(device)
    takes, cost_s = {}, 0.0
    for entry in entries:
        if entry.prepare is not None:
            raise ValueError(f"{entry.name}: entries that prepare are for the host's clock")
        look = sampler(entry.call, device, captures=False)
        look()  # which may compile, or pack
        repeats = int(np.clip(math.ceil(effort.sample_us / max(look(), 1e-3)), 1, _MOST_CALLS))
        takes[entry.name] = sampler_of(entry, device, repeats)
        cost_s += takes[entry.name]() * repeats * 1e-6 + (100e-6 if device == "cuda" else 0)  # 256 MiB written
    rounds = int(np.clip(effort.budget_s / max(cost_s, 1e-9), effort.min_rounds, effort.max_rounds))
    times: dict[str, list[float]] = {name: [] for name in takes}
    orders, names = np.random.default_rng(0), list(takes)
    for _ in range(rounds):
        for number in orders.permutation(len(names)):
            flush()
            times[names[number]].append(takes[names[number]]())
    return {name: np.asarray(found) for name, found in times.items()}


def sampler_of(entry: Entry, device: str, repeats: int) -> Callable[[], float]:
    """The entry's calls in a CUDA graph, or one by one where torch cannot record them, which it says."""
    try:
        return sampler(entry.call, device, repeats, entry.captures)
    except RuntimeError as error:
        if device == "cpu" or not entry.captures:
            raise
        print(f"{entry.name}: cannot be recorded in a CUDA graph, is called instead: {error}", file=sys.stderr)
        entry.facts["captured"] = False
        return sampler(entry.call, device, repeats, captures=False)


def flusher(device: str) -> Callable[[], object]:
    """Empties the device's caches; does nothing on a CPU."""
    if device == "cpu":
        return lambda: None
    waste = torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device=device)
    return waste.zero_


def rotating(make: Callable[[int], Any], bytes_each: int, device: str) -> Callable[[int], Any]:
    """``make(i)`` for call i: as many as pass through L2 before one comes again, at least two, at most ten."""
    count = 2 if device == "cpu" else int(np.clip(math.ceil(2 * 60e6 / max(bytes_each, 1)), 2, _MOST_CALLS))
    made = [make(i) for i in range(count)]
    return lambda i: made[i % count]


def own_kernel(numerics: str, device: str) -> _core.Kernel | None:
    """octavo's own qualified linear kernel of the class: of several the last in the table, the most special one."""
    dispatch.qualify()
    rows = [k for k in _core.kernels() if k.op == _core.Op.linear and k.library == "octavo" and k.supported
            and k.device.name == device and k.numerics.name == numerics and k.state == "qualified"]  # fmt: skip
    return kernels.by_name(rows[-1].name) if rows else None


def unusable() -> str:
    """Why nothing can run on a GPU here; empty where it can."""
    if _core.cuda_info() is not None:
        return ""
    why = "octavo was built without CUDA" if not _core.built_with_cuda else "no usable CUDA device"
    return f"{why}; see docs/gpu.md"


def main(name: str, body: Callable[[GpuRun], None], argv: Sequence[str] | None = None) -> int:
    """The command line of a GPU benchmark. What was measured is written where the body fails, too, without a summary,
    beside ``--out`` as ``.partial``."""
    parser = command_line(name)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: for tests")
    parser.add_argument(
        "--budget", type=float, default=harness.GPU_BUDGETS[name], help="seconds; shapes beyond are cut"
    )
    arguments = parser.parse_args(argv)
    if arguments.device == "cuda" and (why := unusable()):
        print(f"{name}: {why}", file=sys.stderr)
        return 1
    run = GpuRun(name, level_of(arguments), arguments.json, arguments.device, arguments.budget)
    try:
        body(run)
    except BaseException:
        if arguments.out is not None:
            records.write(arguments.out.with_name(arguments.out.name + ".partial"), run.records)
        raise
    run.finish()
    if arguments.out is not None:
        records.write(arguments.out, run.records)
    return 0
