"""What the tests of LoKA share: a small trained ranker on an AdsWorld log, and the operands its layers really have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from octavo import loka, models
from octavo.config import build_config
from octavo.data import AdsWorld, Batch, EventLog
from octavo.loka.sites import rows_of
from octavo.ops.dispatch import sites

BATCH, STEPS, WATCHED_FROM = 256, 128, 88


def ads_log(path: Path) -> EventLog:
    """40,000 events of the reference world."""
    return AdsWorld("reference", seed=1).write(path, events=40_000)


def ranker(log: EventLog, kind: str, **values: Any) -> models.Ranker:
    """A small model for ``log``."""
    settings = {"kind": kind, "embedding_dim": 16, "table_init": 0.1, **values}
    return models.build(log.schema, build_config({"model": settings}).model).train()


def loss_of(model: models.Ranker, batch: Batch) -> torch.Tensor:
    """Mean log loss over the heads' known labels."""
    losses = []
    for task, z in model(batch).items():
        known = ~batch.labels[task].isnan()
        losses.append(functional.binary_cross_entropy_with_logits(z[known], batch.labels[task][known]))
    return torch.stack(losses).sum()


def trained(log: EventLog, model: models.Ranker, every: int = 4, **options: Any) -> loka.Probe:
    """A Probe, closed, that watched the last third of a short training of ``model``."""
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    probe = None
    for step in range(STEPS):
        if step == WATCHED_FROM:
            probe = loka.Probe(model, every, **options)
        loss = loss_of(model, log.read(step * BATCH, (step + 1) * BATCH))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if probe is not None:
            probe.step()
    assert probe is not None
    probe.close()
    return probe


def real_inputs(model: torch.nn.Module, batch: Any) -> dict[str, torch.Tensor]:
    """Each site's input rows [M, K] on ``batch``, shuffled."""
    generator = torch.Generator().manual_seed(0)
    found = {site.path: rows_of(site.x, None).float() for site in sites(model, batch)}
    return {path: x[torch.randperm(len(x), generator=generator)] for path, x in found.items()}
