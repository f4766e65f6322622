"""nn.Adam(lazy=False) at its edges: every update is torch.optim.Adam's over dense gradients, whatever is in a batch."""

from __future__ import annotations

import warnings

import pytest
import torch

from octavo import nn

OPTIMIZER = nn.Adam(0.05, (0.9, 0.99), eps=1e-4, weight_decay=0.1, lazy=False)
TABLES = [nn.Table("a", 7, 4), nn.Table("none", 0, 4), nn.Table("b", 13, 4, pooling="mean")]


def rows_of(module: nn.EmbeddingBags) -> list[torch.Tensor]:
    return [module.state_dict()[f"rows.{table.name}"].clone() for table in module.tables]


def batch_of(size: int, step: int, beyond: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Bags of up to three ids, those of the table without rows empty; ``beyond``: how far ids may lie outside."""
    generator = torch.Generator().manual_seed(step)
    counts, values = [], []
    for table in TABLES:
        lengths = torch.randint(0, 4 if table.rows else 1, (size,), generator=generator)
        counts.append(lengths)
        if table.rows:
            values.append(torch.randint(-beyond, table.rows + beyond, (int(lengths.sum()),), generator=generator))
    return torch.cat(values), torch.cat([torch.zeros(1, dtype=torch.int64), torch.cat(counts).cumsum(0)])


def pooled(twins: list[torch.nn.Parameter], values: torch.Tensor, offsets: torch.Tensor, size: int) -> torch.Tensor:
    """The definition, a bag at a time; rows outside are skipped."""
    out = []
    for t, (twin, table) in enumerate(zip(twins, TABLES, strict=True)):
        bags = []
        for b in range(t * size, (t + 1) * size):
            ids = values[offsets[b] : offsets[b + 1]]
            inside = twin[ids[(ids >= 0) & (ids < table.rows)]]
            bags.append(inside.sum(0) / (len(inside) if table.pooling == "mean" and len(inside) else 1))
        out.append(torch.stack(bags) if bags else twin.sum() * torch.zeros(0, table.dim))
    return torch.cat(out, 1)


@pytest.mark.parametrize(("bounds", "beyond"), [("error", 0), ("warn", 4), ("ignore", 4)])
def test_rows_outside_empty_batches_and_tables_without_rows(bounds: str, beyond: int) -> None:
    module = nn.EmbeddingBags(TABLES, OPTIMIZER, bounds=bounds)
    module.reset_parameters(0.3, torch.Generator().manual_seed(0))
    twins = [torch.nn.Parameter(rows.double()) for rows in rows_of(module)]
    peer = torch.optim.Adam(twins, 0.05, OPTIMIZER.betas, OPTIMIZER.eps, OPTIMIZER.weight_decay)
    for step, size in enumerate((5, 9, 0, 3, 1)):
        values, offsets = batch_of(size, step, beyond)
        target = torch.randn(size, 12, generator=torch.Generator().manual_seed(step))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            (module(values, offsets) - target).square().sum().backward()
        (pooled(twins, values, offsets, size) - target.double()).square().sum().backward()
        for twin in twins:
            twin.grad = torch.zeros_like(twin) if twin.grad is None else twin.grad
        peer.step()
        peer.zero_grad()
    assert module.step == 5
    for found, twin in zip(rows_of(module), twins, strict=True):
        assert torch.allclose(found.double(), twin.detach(), atol=1e-6)


def test_rows_without_pooling_take_the_same_updates() -> None:
    tables = [nn.Table("a", 7, 4), nn.Table("b", 13, 4)]
    bags, rows = (kind(tables, OPTIMIZER, seed=3) for kind in (nn.EmbeddingBags, nn.EmbeddingCollection))
    for module in (bags, rows):
        module.reset_parameters(0.3, torch.Generator().manual_seed(0))
    for step in range(4):
        generator = torch.Generator().manual_seed(step)
        values, offsets = torch.cat([torch.randint(0, 7, (5,), generator=generator),
                                     torch.randint(0, 13, (5,), generator=generator)]), torch.arange(11)  # fmt: skip
        target = torch.randn(5, 8, generator=generator)
        (bags(values, offsets) - target).square().sum().backward()
        found = rows(values, offsets)
        (torch.cat([found["a"], found["b"]], 1) - target).square().sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(rows_of(bags), rows_of(rows), strict=True))


@pytest.mark.parametrize("dtype", ["bf16", "e4m3", "int8"])
def test_narrow_rows_that_no_batch_holds_move_with_the_others(dtype: str) -> None:
    module = nn.EmbeddingBags([nn.Table("a", 9, 16, dtype)], nn.Adam(0.02, weight_decay=0.1, lazy=False), seed=1)
    before = module(torch.arange(9), torch.arange(10)).detach()
    for _ in range(5):
        module(torch.tensor([2, 2, 5]), torch.tensor([0, 1, 3])).sum().backward()
    after = module.eval()(torch.arange(9), torch.arange(10))
    moved = (after - before).abs().mean(1)
    assert (moved > 0.05).all()  # about lr a step, whatever the gradient
    assert after[[0, 1, 3, 4]].abs().mean() < before[[0, 1, 3, 4]].abs().mean()  # towards 0


def test_dynamic_tables_are_refused() -> None:
    with pytest.raises(
        ValueError, match="optimizer: Adam with lazy=False passes over all 50 rows of dynamic table 'u'"
    ):
        nn.EmbeddingBags([nn.Table("u", 50, 4, dynamic=nn.Dynamic())], OPTIMIZER)
