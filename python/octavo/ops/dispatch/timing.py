"""Microseconds of a call: by the host's clock on a CPU, by the device's own between two events on CUDA.

On CUDA calls are recorded in a CUDA graph where they can be, so that what the host does beside them is not measured.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import torch


def sampler(call: Callable[[int], object], device: str, repeats: int = 1, captures: bool = True) -> Callable[[], float]:
    """A function that takes one sample: us of one of ``repeats`` calls in a row, ``call(0)``, ``call(1)``, ...

    ``device``: ``cpu`` or ``cuda``. ``captures``: on CUDA the calls are recorded once, after they ran once without, and
    every sample replays them with the same numbers; else each sample makes them anew.
    """
    numbers = itertools.count()

    def loop() -> None:
        for _ in range(repeats):
            call(next(numbers))

    if device == "cpu":

        def by_the_host() -> float:
            start = time.perf_counter()
            loop()
            return (time.perf_counter() - start) * 1e6 / repeats

        return by_the_host
    run = recorded(loop) if captures else loop

    def by_the_device() -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e3 / repeats

    return by_the_device


def recorded(work: Callable[[], object]) -> Callable[[], None]:
    """``work`` as a CUDA graph: what it launches, run again by each call. It runs once before, on another stream, for
    what must not happen in a capture (first choices, compiling, allocations)."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph, before = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph):
            work()
    except BaseException:
        torch.cuda.set_stream(before)  # a capture that fails leaves the thread on its own stream
        raise

    def replay() -> None:
        graph.replay()

    return replay
