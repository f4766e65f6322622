"""What a student has heard of one teacher: how much, of which versions, how old, and what it lost on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from octavo.store import Records


class Heard:
    """Counts over the events that were learned, each as often as it was.

    ``events``; ``silent``: those without a soft label of any task; ``versions`` {number: events}: whose answers the
    others had. ``lag_ms``: their least, mean and greatest lag, None before the first. ``losses`` {head: the mean over
    updates of its loss}, ``weight`` included.
    """

    def __init__(self, heads: Sequence[str]) -> None:
        self.events = self.silent = 0
        self._by_version = torch.zeros(1, dtype=torch.int64)
        self._lags = torch.zeros(3, dtype=torch.int64)  # sum, least, greatest
        self._losses = {head: torch.zeros(2, dtype=torch.float64) for head in heads}  # sum, updates

    @property
    def versions(self) -> dict[int, int]:
        """Events by the version that spoke, versions that spoke of none left out."""
        return {number: count for number, count in enumerate(self._by_version.tolist()) if count}

    @property
    def lag_ms(self) -> tuple[int, float, int] | None:
        """Least, mean and greatest over the events with an answer."""
        total, least, greatest = self._lags.tolist()
        spoken = self.events - self.silent
        return (least, total / spoken, greatest) if spoken else None

    @property
    def losses(self) -> dict[str, float | None]:
        """By head; None before its first update."""
        return {head: float(v[0] / v[1]) if v[1] else None for head, v in self._losses.items()}

    def add(self, records: Records, tasks: Sequence[str]) -> None:
        """One more batch's records, of which ``tasks`` are learned."""
        silent = torch.stack([records.logits[task].isnan() for task in tasks]).all(0)
        version, lag = records.version[~silent], records.lag[~silent]
        before = self.events - self.silent
        self.events += len(records)
        self.silent += int(silent.sum())
        if len(version) == 0:
            return
        counts = version.bincount(minlength=len(self._by_version))
        counts[: len(self._by_version)] += self._by_version
        self._by_version = counts
        least, greatest = lag.min(), lag.max()
        if before:
            least, greatest = torch.minimum(least, self._lags[1]), torch.maximum(greatest, self._lags[2])
        self._lags = torch.stack([self._lags[0] + lag.sum(), least, greatest])

    def lost(self, head: str, loss: float) -> None:
        """One more update's loss at ``head``."""
        self._losses[head] += torch.tensor([loss, 1.0], dtype=torch.float64)

    def state_tensors(self) -> dict[str, torch.Tensor]:
        """All of it, by name."""
        counts = torch.tensor([self.events, self.silent])
        losses = {f"losses.{head}": value.clone() for head, value in self._losses.items()}
        return {"counts": counts, "versions": self._by_version.clone(), "lags": self._lags.clone()} | losses

    def load_state_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Go on from what :meth:`state_tensors` gave."""
        self.events, self.silent = (int(count) for count in tensors["counts"])
        self._by_version, self._lags = tensors["versions"].clone(), tensors["lags"].clone()
        self._losses = {head: tensors[f"losses.{head}"].clone() for head in self._losses}
