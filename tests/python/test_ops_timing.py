"""The clock of measurements: the host's, and the device's on a stand-in that keeps what was asked of it."""

import contextlib
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from octavo.ops.dispatch.timing import sampler


class Device:
    """torch.cuda without a device: work takes ``ms`` a call, and graphs keep what ran while they were recorded."""

    def __init__(self) -> None:
        self.now, self.recording, self.log = 0.0, None, []  # type: ignore[var-annotated]

    def launch(self, i: int) -> None:
        """A call of the work: an asynchronous launch, or a node of the graph."""
        if self.recording is not None:
            self.recording.append(i)
            return
        self.log.append(i)
        self.now += 0.25

    def patch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        device = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                self.at = device.now

            def synchronize(self) -> None:
                assert device.recording is None

            def elapsed_time(self, other: Any) -> float:
                return float(other.at - self.at)

        class CUDAGraph:
            def __init__(self) -> None:
                self.nodes: list[int] = []

            def replay(self) -> None:
                for i in self.nodes:
                    device.launch(i)

        @contextlib.contextmanager
        def graph(found: Any) -> Iterator[None]:
            device.recording = found.nodes
            yield
            device.recording = None

        stream = types.SimpleNamespace(wait_stream=lambda other: None)
        for name, value in {
            "Event": Event, "CUDAGraph": CUDAGraph, "graph": graph, "Stream": lambda: stream,
            "current_stream": lambda: stream, "stream": lambda s: contextlib.nullcontext(), "synchronize": lambda: None,
        }.items():  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, value)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    found = Device()
    found.patch(monkeypatch)
    return found


def test_a_graph_is_recorded_once_after_its_calls_ran_and_replayed_by_every_sample(device: Device) -> None:
    take = sampler(device.launch, "cuda", repeats=3)
    assert device.log == [0, 1, 2]  # what must not happen in a capture happened before
    assert [take(), take()] == pytest.approx([250.0, 250.0])
    assert device.log == [0, 1, 2, 3, 4, 5, 3, 4, 5]


def test_what_cannot_be_recorded_is_called(device: Device) -> None:
    take = sampler(device.launch, "cuda", repeats=2, captures=False)
    assert device.log == []
    assert take() == pytest.approx(250.0)
    assert take() == pytest.approx(250.0)
    assert device.log == [0, 1, 2, 3]


def test_the_hosts_clock_is_divided_by_the_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def call(i: int) -> None:
        now[0] += 2e-6 * (i + 1)

    take: Callable[[], float] = sampler(call, "cpu", repeats=2)
    assert [take(), take()] == pytest.approx([3.0, 7.0])
