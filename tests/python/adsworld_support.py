"""Statistics of event streams, the same for a simulated log and a real one."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from octavo.data import AdsWorld


def columns(world: AdsWorld, *names: str, events: int | None = None, days: float | None = None) -> list[npt.NDArray]:
    """Columns of the world's log; nulls are nan."""
    table = pa.concat_tables(part.select(list(names)) for part in world.tables(events, days))
    return [table.column(name).to_numpy() for name in names]


def skew(ids: npt.NDArray) -> float:
    """Minus the slope of ln count against ln rank, between the first hundredth and the middle of the ranks."""
    counts = np.sort(np.unique(ids, return_counts=True)[1])[::-1].astype(float)
    ranks = np.arange(1, len(counts) + 1)
    inside = slice(max(1, len(counts) // 100), max(10, len(counts) // 2))
    return -float(np.polyfit(np.log(ranks[inside]), np.log(counts[inside]), 1)[0])


def top_tenth(ids: npt.NDArray) -> float:
    """Share of the rows that the most frequent tenth of the ids has."""
    counts = np.sort(np.unique(ids, return_counts=True)[1])[::-1]
    return float(counts[: len(counts) // 10].sum() / counts.sum())


def repeats(user: npt.NDArray, item: npt.NDArray) -> float:
    """Share of the second half's rows whose (user, item) pair was there before."""
    pair = user.astype(np.int64) * (1 << 32) + item
    again = np.ones(len(pair), bool)
    again[np.unique(pair, return_index=True)[1]] = False
    return float(again[len(pair) // 2 :].mean())


def unseen(ids: npt.NDArray, share: float = 0.8) -> float:
    """Share of the rows after the first ``share`` whose id is not among those."""
    cut = int(share * len(ids))
    return float((~np.isin(ids[cut:], np.unique(ids[:cut]))).mean())
