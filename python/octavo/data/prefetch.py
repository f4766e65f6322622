"""Batches made ahead of their use, in a background thread."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from queue import Full, Queue
from threading import Event, Thread
from typing import TypeVar

Item = TypeVar("Item")
_PATIENCE_S = 0.05  # between looks whether the consumer has left


class _Failure:
    def __init__(self, error: BaseException) -> None:
        self.error = error


class _End:
    """No more items."""


def prefetched(items: Iterable[Item], ahead: int = 2) -> Iterator[Item]:
    """``items`` in their order, up to ``ahead`` of them made before they are asked for.

    The thread starts with the first item asked for and ends with the last one, or when the iterator is closed or
    collected. What ``items`` raises is raised where its item would have come. Reading parquet and Arrow's columns leave
    the interpreter to the consumer meanwhile. Raises ValueError for ``ahead`` below 1.
    """
    if ahead < 1:
        raise ValueError(f"ahead: expected at least 1, found {ahead}")
    return _consume(items, ahead)


def _consume(items: Iterable[Item], ahead: int) -> Iterator[Item]:
    made: Queue[Item | _Failure | _End] = Queue(ahead)
    left = Event()

    def hand_over(item: Item | _Failure | _End) -> None:
        while not left.is_set():
            with suppress(Full):
                made.put(item, timeout=_PATIENCE_S)
                return

    def produce() -> None:
        try:
            for item in items:
                hand_over(item)
                if left.is_set():
                    return
            hand_over(_End())
        except BaseException as error:
            hand_over(_Failure(error))

    thread = Thread(target=produce, name="octavo-prefetch", daemon=True)
    thread.start()
    try:
        while not isinstance(item := made.get(), _End):
            if isinstance(item, _Failure):
                raise item.error
            yield item
    finally:
        left.set()
        thread.join()
