"""Bags whose backward updates their tables: one step of an optimizer on the rows that were looked up, or on all."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from octavo.nn.dynamic import SHARED
from octavo.nn.table_optimizers import SGD
from octavo.ops import embedding
from octavo.ops.by_torch import refused

if TYPE_CHECKING:
    from octavo.nn.embedding_bags import EmbeddingBags

_FROZEN = SGD(0.0)


def _call_backward(
    bags: EmbeddingBags, tables: Any, values: Any, offsets: Any, weights: Any, grad: Any, kind: str, optimizer: Any,
    grad_weights: Any, step: int,
) -> None:  # fmt: skip
    embedding.bag_backward(
        tables, values, offsets, weights, grad, kind, optimizer.lr, optimizer.eps, optimizer.weight_decay, bags.bounds,
        grad_weights, None, optimizer.betas, step, bags.rounding, bags.seed, bags._first_table,
    )  # fmt: skip


def _with_every_row(
    tables: embedding.TableSet, values: torch.Tensor, offsets: torch.Tensor, weights: torch.Tensor | None,
    grad: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor]:  # fmt: skip
    """The batch with one more event, which looks up every row and whose gradient is zero."""
    rows = [len(table) for table in tables.rows]
    counts = offsets.diff().view(len(rows), -1)
    ends = [0, *counts.sum(1).cumsum(0).tolist()]
    counts = torch.cat([counts, counts.new_tensor(rows).unsqueeze(1)], 1).view(-1)

    def extended(mine: torch.Tensor, added: Callable[..., torch.Tensor]) -> torch.Tensor:
        each = zip(itertools.pairwise(ends), rows, strict=True)
        return torch.cat([part for (a, b), size in each for part in (mine[a:b], added(size, device=mine.device))])

    return (
        extended(values, torch.arange),
        torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
        None if weights is None else extended(weights, torch.ones),
        functional.pad(grad, (0, 0, 0, 1)),
    )


class BagsFunction(torch.autograd.Function):
    """Forward of the bags whose backward updates the tables; the only gradient it returns is that of the weights."""

    @staticmethod
    def forward(
        ctx: Any, anchor: Any, weights: Any, values: torch.Tensor, offsets: torch.Tensor, bags: EmbeddingBags, ids: Any
    ) -> torch.Tensor:
        tables = bags._table_set()
        if ctx.needs_input_grad[1] and not tables.trainable:
            raise ValueError("weights: no gradients over tables of a dtype that does not train; detach the weights")
        ctx.save_for_backward(weights, values, offsets, ids)
        ctx.bags, ctx.trains = bags, anchor is not None
        ctx.removed = 0 if bags.ids is None else bags.ids.removed
        return embedding.bag_forward(tables, values, offsets, weights, bags.bounds)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        again = torch.is_grad_enabled()
        with torch.no_grad():
            of_weights = BagsFunction._update(ctx, grad)
        if again:
            (of_weights,) = refused([of_weights], "nn.EmbeddingBags: its weights have no gradients of gradients")
        return None, of_weights, None, None, None, None

    @staticmethod
    def _update(ctx: Any, grad: torch.Tensor) -> torch.Tensor | None:
        weights, values, offsets, ids = ctx.saved_tensors
        bags = ctx.bags
        if ids is not None and bags.ids.removed != ctx.removed:  # a row may be another id's since
            values = bags._looked_up(ids, offsets.to(ids.device), False)[1]
            for touched in bags._touched.values():
                touched[SHARED] = 1
        optimizer: Any = (bags.optimizer or _FROZEN) if ctx.trains else _FROZEN
        grad_weights = torch.zeros_like(weights) if ctx.needs_input_grad[1] else None
        step = bags._next_step()
        tables = bags._table_set()
        kind, wanted = optimizer.kind if ctx.trains else "none", grad_weights
        if grad_weights is not None and ctx.trains and (bags.gather is not None or not optimizer.lazy):
            # of this process's lookups; the update is of more
            _call_backward(bags, tables, values, offsets, weights, grad, "none", _FROZEN, grad_weights, step)
            wanted = None
        if ctx.trains and bags.gather is not None:
            values, offsets, weights, grad = bags.gather(len(tables.names), values, offsets, weights, grad)
        if not optimizer.lazy:
            optimizer = dataclasses.replace(optimizer, eps=optimizer.dense_eps(step))
            values, offsets, weights, grad = _with_every_row(tables, values, offsets, weights, grad)
            for touched in bags._touched.values():
                touched.fill_(1)
        _call_backward(bags, tables, values, offsets, weights, grad, kind, optimizer, wanted, step)
        if ctx.trains and bags.step is not None:
            bags.step.fill_(step)
        return grad_weights
