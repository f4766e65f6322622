"""Data parallel training: one batch shared by the processes of a torchrun, every process with all the tables.

Every process reads the log, takes its part of each batch, and learns from the whole: dense gradients are added up (in
FP32, or sent in eight bits), and before a table's fused update the looked-up ids and the output gradients of all parts
are gathered, in the order of ranks. So every process makes the same update, bit for bit, and holds what one process
alone would hold up to the order of sums (and what eight bits round).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.distributed as dist

from octavo import loka, nn
from octavo.data import Batch


class Group:
    """The processes that train together; alone, one."""

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank, self.world = rank, world
        self._compressed: loka.comm.Compressed | None = None

    @classmethod
    def current(cls) -> Group:
        """The processes of torch's default group, joined on gloo first where torchrun started this one."""
        if not dist.is_available():
            return cls()
        if not dist.is_initialized():
            if not dist.is_torchelastic_launched():
                return cls()
            dist.init_process_group("gloo")
        return cls(dist.get_rank(), dist.get_world_size())

    def __enter__(self) -> Group:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave torch's default group."""
        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sizes(self, events: int) -> list[int]:
        """How many of a batch's events each process takes: they differ by one at most."""
        cuts = [events * rank // self.world for rank in range(self.world + 1)]
        return [end - begin for begin, end in pairwise(cuts)]

    def part(self, batch: Batch) -> Batch:
        """This process's events of a batch that all hold."""
        if self.world == 1:
            return batch
        ends = [0, *accumulate(self.sizes(len(batch)))]
        return batch.rows(ends[self.rank], ends[self.rank + 1])

    def join(self, part: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
        """[sum of sizes, ...]: the parts [sizes[rank], ...] of all processes in the order of ranks."""
        if self.world == 1:
            return part
        padded = part.new_zeros((max(sizes), *part.shape[1:]))
        padded[: len(part)] = part
        found = [torch.empty_like(padded) for _ in range(self.world)]
        dist.all_gather(found, padded)
        return torch.cat([one[:size] for one, size in zip(found, sizes, strict=True)])

    def join_any(self, part: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
        """As :meth:`join`, for lengths that only their own process knows; and the lengths."""
        sizes = self.join(torch.tensor([len(part)]), [1] * self.world).tolist()
        return self.join(part, sizes), sizes

    def compress(self, format: str) -> None:
        """From now on gradients are sent in ``format`` (``e4m3``, ``int8``), with error feedback that starts from zero;
        ``fp32``: as they are."""
        self._compressed = None if format == "fp32" or self.world == 1 else loka.comm.compressed(format)[0]

    def owed(self, model: torch.nn.Module) -> dict[str, torch.Tensor]:
        """What rounding took from the gradients of each process and was not sent yet, [processes, *shape] by parameter;
        nothing where gradients are sent as they are. All processes call it."""
        if self._compressed is None:
            return {}
        own = self._compressed.state_dict(model.named_parameters())
        ones = [1] * self.world
        return {name: self.join(error.unsqueeze(0), ones) for name, error in own.items()}

    def owe(self, model: torch.nn.Module, owed: Mapping[str, torch.Tensor]) -> None:
        """Go on from :meth:`owed`. Of another number of processes the first owes all; one alone rounds nothing and owes
        nothing."""
        if self._compressed is None or not owed:
            return
        own = {
            name: error[self.rank] if len(error) == self.world else error.sum(0) * (self.rank == 0)
            for name, error in owed.items()
        }
        self._compressed.load_state_dict(model.named_parameters(), own)

    def add_up(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Replace the gradient of each parameter that has one by its sum over the processes, the same bits on all."""
        parameters = [parameter for parameter in parameters if parameter.grad is not None]
        if self.world == 1 or not parameters:
            return
        if self._compressed is not None:
            self._compressed.add_up(parameters)
            return
        tensors = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        for tensor, total in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(total.view_as(tensor))

    def share(self, value: Any) -> Any:
        """The first process's value."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def wait(self) -> None:
        """Until all are here."""
        if self.world > 1:
            dist.barrier()

    def attach(self, model: torch.nn.Module) -> None:
        """Let every table below ``model`` update itself from the parts of all processes."""
        if self.world == 1:
            return
        for module in model.modules():
            if isinstance(module, nn.EmbeddingBags):
                module.gather = self.join_bags

    def join_bags(
        self, tables: int, values: torch.Tensor, offsets: torch.Tensor, weights: torch.Tensor | None, grad: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """Lookups and output gradients [B, ...] of all processes, features first as one batch would have them."""
        grad, batches = self.join_any(grad.contiguous())
        lengths, _ = self.join_any(offsets.diff())
        values, counts = self.join_any(values)
        joined = None if weights is None else self.join(weights, counts)
        by_rank = lengths.split([tables * size for size in batches])
        order = torch.cat([part.view(tables, -1) for part in by_rank], 1).reshape(-1)
        ends = torch.zeros(len(order) + 1, dtype=torch.int64)
        torch.cumsum(order, 0, out=ends[1:])
        cuts = [part.view(tables, -1).sum(1).tolist() for part in by_rank]  # lookups by rank and table

        def features_first(column: torch.Tensor) -> torch.Tensor:
            parts = [part.split(cut) for part, cut in zip(column.split(counts), cuts, strict=True)]
            return torch.cat([parts[rank][table] for table in range(tables) for rank in range(self.world)])

        return features_first(values), ends, None if joined is None else features_first(joined), grad
