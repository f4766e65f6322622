"""Heads of one task's windows that cannot contradict each other: a longer window never has the smaller probability."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch.nn import functional

from octavo.data import Label

Chains = tuple[tuple[str, ...], ...]


def window_chains(labels: Sequence[Label]) -> Chains:
    """The heads of each label with several windows, shortest window first."""
    found = []
    for label in labels:
        if len(label.windows) > 1:
            order = sorted(range(len(label.windows)), key=lambda number: label.windows_ms[number])
            found.append(tuple(label.heads[number] for number in order))
    return tuple(found)


def monotone(logits: Mapping[str, torch.Tensor], chains: Chains) -> dict[str, torch.Tensor]:
    """Logits [B] in which each chain's rise: the first head keeps its own, each next one's is read as that of
    q = P(within this window | not within the one before), and p = p_before + (1 - p_before) q [Personalized
    Interpolation; methods.md 5b.1]:

        logit p = log(e^z + e^g (1 + e^z)) = logaddexp(z, g + softplus(z)),   z = logit p_before, g = logit q

    without a difference of probabilities, so nothing cancels and gradients reach both heads for any z and g.
    """
    found = dict(logits)
    for chain in chains:
        z = found[chain[0]]
        for head in chain[1:]:
            z = found[head] = torch.logaddexp(z, found[head] + functional.softplus(z))
    return found
