"""Batches made ahead: the same ones in the same order, errors in their place, no thread left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from octavo.data import prefetched


def _threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name == "octavo-prefetch"]


def _wait_for(condition) -> None:
    deadline = time.monotonic() + 5
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert condition()


@pytest.mark.parametrize("ahead", [1, 2, 7])
@pytest.mark.parametrize("count", [0, 1, 5, 100])
def test_items_come_in_order(ahead, count) -> None:
    assert list(prefetched(range(count), ahead)) == list(range(count))
    assert not _threads()


def test_any_item_is_an_item() -> None:
    assert list(prefetched([1, None, 2])) == [1, None, 2]


def test_no_more_than_ahead_are_made() -> None:
    made = []

    def source() -> Iterator[int]:
        for i in range(100):
            made.append(i)
            yield i

    items = prefetched(source(), 3)
    assert not made  # nothing before the first is asked for
    assert next(items) == 0
    _wait_for(lambda: len(made) == 5)  # 0, three waiting, and one that waits for room
    time.sleep(0.05)
    assert len(made) == 5
    items.close()
    assert not _threads()


def test_an_error_comes_where_its_item_would_have_come() -> None:
    def source() -> Iterator[int]:
        yield 1
        yield 2
        raise RuntimeError("file 3 is corrupt")

    items = prefetched(source(), 2)
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(RuntimeError, match="file 3 is corrupt"):
        next(items)
    assert not _threads()


def test_leaving_the_loop_ends_the_thread() -> None:
    for item in prefetched(range(1000), 2):
        if item == 3:
            break
    del item
    _wait_for(lambda: not _threads())


def test_ahead_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="ahead: expected at least 1, found 0"):
        prefetched([1], 0)
