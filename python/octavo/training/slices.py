"""What a model predicts for a stretch of a log, and its quality for each head and domain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from octavo.data import EventLog
from octavo.evaluation import quality
from octavo.report import SliceRow

_DAY_MS = 86_400_000


@dataclass(frozen=True)
class Predictions:
    """Logits and labels [n] by head, and the events' weights, users, domains and times (ms) [n]."""

    logits: Mapping[str, torch.Tensor]
    labels: Mapping[str, torch.Tensor]
    weight: torch.Tensor
    user: torch.Tensor
    domain: torch.Tensor
    time: torch.Tensor

    @property
    def has_users(self) -> bool:
        """Whether any event names its user."""
        return bool((self.user != -1).any())

    @property
    def clusters(self) -> torch.Tensor:
        """[n]: what a bootstrap resamples whole: users, or days where the log has no users."""
        return self.user if self.has_users else self.time // _DAY_MS


def predict(model: torch.nn.Module, log: EventLog, start: int, stop: int, batch_size: int = 4096) -> Predictions:
    """Predictions for the events at positions ``start`` to ``stop`` (exclusive), in evaluation mode; of a log with
    fewer negatives, as they are for its events."""
    model.eval()
    logits: dict[str, list[torch.Tensor]] = {}
    labels: dict[str, list[torch.Tensor]] = {}
    columns: list[tuple[torch.Tensor, ...]] = []
    with torch.inference_mode():
        for batch in log.batches(batch_size, start, stop):
            for head, z in log.as_sampled(model(batch)).items():
                logits.setdefault(head, []).append(z)
                labels.setdefault(head, []).append(batch.labels[head])
            columns.append((batch.weight, batch.user, batch.domain, batch.time))
    if not columns:
        raise ValueError(f"start, stop: no events between {start} and {stop}")
    joined = {head: torch.cat(parts) for head, parts in logits.items()}
    return Predictions(
        joined, {head: torch.cat(parts) for head, parts in labels.items()}, *map(torch.cat, zip(*columns, strict=True))
    )


def slices_of(found: Predictions) -> list[SliceRow]:
    """Quality of each head, over all events and in each domain."""
    rows = []
    for head, z in found.logits.items():
        for domain, inside in domains_of(found).items():
            columns = (found.labels[head][inside], found.weight[inside], True, found.user[inside])
            rows.append(SliceRow(head, domain, quality(z[inside], *columns)))
    return rows


def domains_of(found: Predictions) -> dict[int | None, torch.Tensor]:
    """Which events are of each domain; None: all. A log with one domain, or none, has no others."""
    masks: dict[int | None, torch.Tensor] = {None: torch.ones(len(found.domain), dtype=torch.bool)}
    present = [domain for domain in found.domain.unique().tolist() if domain != -1]
    if len(present) > 1:
        masks |= {domain: found.domain == domain for domain in present}
    return masks
