"""The states of all ranks' Probes on every rank."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

_FINGERPRINT = "fingerprint"


def states_of_ranks(state: Mapping[str, torch.Tensor], group: Any = None) -> list[Mapping[str, torch.Tensor]]:
    """Every rank's ``state`` (of :meth:`octavo.loka.Probe.state_dict`), in the order of ranks.

    What the states hold is compared before they are sent. Raises ValueError on every rank when they are of different
    models or settings, RuntimeError without a process group.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError("merge_ranks: there is no process group; call torch.distributed.init_process_group first")
    world = dist.get_world_size(group)
    mine = {name: (tuple(tensor.shape), str(tensor.dtype)) for name, tensor in state.items()}
    held: list[Any] = [None] * world
    dist.all_gather_object(held, (bytes(state[_FINGERPRINT].tolist()).hex(), mine), group)
    model, parts = held[0]
    for rank, (other, theirs) in enumerate(held):
        if other != model:
            odd = sorted(_sites(theirs) ^ _sites(parts)) or ["the same paths with other shapes or epilogues"]
            raise ValueError(
                f"merge_ranks: rank {rank} watches another model than rank 0 ({', '.join(odd[:5])}); build the same "
                "linear layers on every rank"
            )
        if theirs != parts:
            odd = sorted(name for name in theirs.keys() | parts.keys() if theirs.get(name) != parts.get(name))
            raise ValueError(
                f"merge_ranks: rank {rank} keeps other statistics than rank 0 ({', '.join(odd[:3])}); give "
                "every rank's Probe the same tails and weights"
            )
    states: list[Any] = [None] * world
    dist.all_gather_object(states, dict(state), group)
    return states


def _sites(parts: Mapping[str, Any]) -> set[str]:
    return {name.removesuffix("/call") for name in parts if name.endswith("/call")}
