"""Bootstrap intervals over draws."""

from __future__ import annotations

import math

import torch

from octavo.loka.findings import Estimate
from octavo.ops.intervals import expansion

RESAMPLES = 1000


def estimates(values: torch.Tensor, seed: int = 0) -> list[Estimate]:
    """The mean over draws of each column of values [draws, errors] FP64, with its 95% interval: percentiles of
    resampled means, moved away from the mean by what few draws lack [Hesterberg 2015: expanded percentiles, here by
    half-widths]. One draw has an interval without ends."""
    draws = values.shape[0]
    means = values.mean(0)
    if draws < 2:
        return [Estimate(float(mean), -math.inf, math.inf) for mean in means]
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(draws, (RESAMPLES, draws), generator=generator)
    resampled = torch.stack([values[:, error][picks].mean(1) for error in range(values.shape[1])], 1)
    ordered = resampled.sort(0).values
    low, high = ordered[round(0.025 * (RESAMPLES - 1))], ordered[round(0.975 * (RESAMPLES - 1))]
    wider = expansion(draws)
    found = []
    for mean, below, above in zip(means.tolist(), low.tolist(), high.tolist(), strict=True):
        if math.isfinite(mean):
            below, above = mean - wider * (mean - below), mean + wider * (above - mean)
        found.append(Estimate(mean, below, above))
    return found
