"""Bootstrap intervals over draws."""

from __future__ import annotations

import math

import torch

from octavo.loka.findings import Estimate

RESAMPLES = 1000
_Z = 1.959963984540054


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
    wider = _t_quantile(draws - 1) / _Z * math.sqrt(draws / (draws - 1))
    found = []
    for mean, below, above in zip(means.tolist(), low.tolist(), high.tolist(), strict=True):
        if math.isfinite(mean):
            below, above = mean - wider * (mean - below), mean + wider * (above - mean)
        found.append(Estimate(mean, below, above))
    return found


def _t_quantile(freedom: int) -> float:
    """97.5% of Student's t [Abramowitz and Stegun 26.7.5]; exact to 1% from 3 degrees of freedom on."""
    if freedom < 3:
        return {1: 12.706, 2: 4.303}[freedom]
    z, v = _Z, float(freedom)
    return (
        z + (z**3 + z) / (4 * v) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    )  # fmt: skip
