"""One head's windows over a stream: exact quality of each, sums of them all, by domain."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from octavo.evaluation.inputs import Floats
from octavo.evaluation.metrics import Quality, entropy_of, log_loss, probabilities, quality

BUCKETS = 1 << 16
_SUMS = ("events", "weight", "weighted labels", "weighted losses", "weighted predictions")
EVERY = -1  # the domain that stands for all of them in a state
_STATE = ("points", "point domains", "domains", "sums", "bucket places", "buckets", "open", "open ids", "progress")


@dataclass(frozen=True)
class ProgressPoint:
    """Quality over the window that ends after ``position`` events, the last of them at ``time_ms``; of one ``domain``,
    or of all (None)."""

    task: str
    position: int
    time_ms: int
    quality: Quality
    domain: int | None = None


class HeadWindows:
    """Logits, labels and weights of one head in stream order. ``by_domain``: points and totals for each domain too."""

    def __init__(self, head: str, by_domain: bool) -> None:
        self.head, self.by_domain = head, by_domain
        self.position = 0
        self.points: list[ProgressPoint] = []
        self.open_events = 0
        self.last_time = 0
        self._totals: dict[int, tuple[Floats, Floats]] = {EVERY: _nothing()}
        self._open: list[tuple[Any, Any]] = []

    def add(self, rows: Any, ids: Any) -> None:
        """``rows`` [3, n] float32: logits, labels, weights; ``ids`` [3, n] int64: users, domains, times."""
        count = rows.shape[1]
        if count:
            self._open.append((rows, ids))
            self.open_events += count
            self.position += count
            self.last_time = int(ids[2, -1])

    def close(self) -> list[ProgressPoint]:
        """End the open window and return its points: of all events, then of each domain."""
        if self.open_events == 0:
            return []
        rows, ids = self.window()
        points = [self._point(rows, ids, None)]
        if self.by_domain:
            present = np.unique(ids[1])
            points += [self._point(rows, ids, int(domain)) for domain in present[present != -1]]
        self._add_totals(self._totals, rows, ids)
        self.points += points
        self._open, self.open_events = [], 0
        return points

    def cumulative(self) -> dict[int, Quality]:
        """Quality over everything seen, the open window included, by domain and of all (``EVERY``)."""
        totals = {domain: (sums.copy(), buckets.copy()) for domain, (sums, buckets) in self._totals.items()}
        self._add_totals(totals, *self.window())
        return {domain: _quality(*found) for domain, found in totals.items()}

    def window(self) -> tuple[Any, Any]:
        """``rows`` and ``ids`` of the open window."""
        if not self._open:
            return np.empty((3, 0), np.float32), np.empty((3, 0), np.int64)
        rows, ids = (np.concatenate(parts, axis=1) for parts in zip(*self._open))
        return rows, ids

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Everything as tensors named ``<head>/<part>``."""
        domains = list(self._totals)
        buckets = np.stack([self._totals[domain][1] for domain in domains]).ravel()
        places = np.flatnonzero(buckets)
        rows, ids = self.window()
        state = {
            "points": torch.tensor([_history(point) for point in self.points], dtype=torch.float64).view(-1, 7),
            "point domains": torch.tensor([EVERY if p.domain is None else p.domain for p in self.points]).long(),
            "domains": torch.tensor(domains),
            "sums": torch.from_numpy(np.stack([self._totals[domain][0] for domain in domains])),
            "bucket places": torch.from_numpy(places),
            "buckets": torch.from_numpy(buckets[places]),
            "open": torch.from_numpy(rows.copy()),
            "open ids": torch.from_numpy(ids.copy()),
            "progress": torch.tensor([self.position, self.open_events, self.last_time]),
        }
        return {f"{self.head}/{part}": value for part, value in state.items()}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from :meth:`state_dict`."""
        found = {part: state[f"{self.head}/{part}"].numpy().copy() for part in _STATE}
        self.position, self.open_events, self.last_time = found["progress"].tolist()
        self.points = [
            ProgressPoint(
                self.head, int(row[0]), int(row[1]), Quality(int(row[2]), *map(_optional, row[3:])),
                None if domain == EVERY else domain,
            )
            for row, domain in zip(found["points"].tolist(), found["point domains"].tolist(), strict=True)
        ]  # fmt: skip
        domains = found["domains"].tolist()
        buckets = np.zeros(len(domains) * 2 * BUCKETS)
        buckets[found["bucket places"]] = found["buckets"]
        parts = buckets.reshape(len(domains), 2, BUCKETS)
        self._totals = {d: (sums, part.copy()) for d, sums, part in zip(domains, found["sums"], parts, strict=True)}
        self._open = [(found["open"], found["open ids"])] if self.open_events else []

    def _point(self, rows: Any, ids: Any, domain: int | None) -> ProgressPoint:
        inside = slice(None) if domain is None else ids[1] == domain
        scores, truth, loads = rows[:, inside]
        found = quality(scores, truth, loads, logits=True, group=ids[0, inside])
        return ProgressPoint(self.head, self.position, self.last_time, found, domain)

    def _add_totals(self, totals: dict[int, tuple[Floats, Floats]], rows: Any, ids: Any) -> None:
        present = np.unique(ids[1]) if self.by_domain else np.empty(0, np.int64)
        for domain in [EVERY, *present[present != -1].tolist()]:
            part = rows if domain == EVERY else rows[:, ids[1] == domain]
            sums, buckets = totals.setdefault(domain, _nothing())
            sums += _count(buckets, *part)


def state_names(head: str) -> set[str]:
    """The names of a head's state."""
    return {f"{head}/{part}" for part in _STATE}


def _nothing() -> tuple[Floats, Floats]:
    return np.zeros(len(_SUMS)), np.zeros((2, BUCKETS))


def _count(buckets: Floats, scores: Any, truth: Any, loads: Any) -> Floats:
    """What is summed over the stream: see ``_SUMS``. Weights are added to ``buckets`` (class, bucket of the logit)."""
    losses = log_loss(scores, truth, logits=True)
    known = ~np.isnan(truth)
    kept, outcome, load = scores[known], truth[known].astype(np.float64), loads[known].astype(np.float64)
    chance = probabilities(kept.astype(np.float64), logits=True)
    sums = np.array([known.sum(), load.sum(), load @ outcome, load @ losses[known], load @ chance])
    bucket = _bucket(kept)
    for counts, share in zip(buckets, (load * (1 - outcome), load * outcome), strict=True):
        np.add.at(counts, bucket, share)
    return sums


def _bucket(logits: Any) -> Any:
    """The upper 16 bits of each float32 logit, in an order that follows the logits'."""
    bits = (logits + np.float32(0.0)).astype(np.float32).view(np.uint32)  # + 0.0: one zero only
    ordered = np.where(bits >> 31, ~bits, bits | np.uint32(0x80000000))
    return (ordered >> 16).astype(np.int64)


def _quality(sums: Floats, buckets: Floats) -> Quality:
    events, weight, positive, loss, predicted = sums.tolist()
    entropy = entropy_of(positive / weight) if weight > 0 else 0.0
    negatives, positives = buckets
    pairs = negatives.sum() * positives.sum()
    below = np.cumsum(negatives) - negatives
    return Quality(
        int(events),
        loss / weight / entropy if entropy > 0 else None,
        float(positives @ (below + 0.5 * negatives) / pairs) if pairs > 0 else None,
        predicted / positive if positive > 0 else None,
    )


def _history(point: ProgressPoint) -> list[float]:
    found = point.quality
    values = (found.ne, found.auc, found.calibration, found.gauc)
    return [point.position, point.time_ms, found.events, *(math.nan if v is None else v for v in values)]


def _optional(value: float) -> float | None:
    return None if math.isnan(value) else value
