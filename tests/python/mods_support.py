"""Plain torch models that the tests of LoKA's Mods change."""

from __future__ import annotations

import torch
from torch.nn import functional


class Ranker(torch.nn.Module):
    """Functional calls, dropout, a shared activation, three projections of one input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = torch.nn.Linear(13, 37), torch.nn.LayerNorm(37)
        self.second, self.rms = torch.nn.Linear(37, 64), torch.nn.RMSNorm(64)
        self.third = torch.nn.Linear(64, 48)
        self.act = torch.nn.SiLU()
        self.query, self.key, self.value = (torch.nn.Linear(48, n) for n in (16, 24, 9))
        self.out = torch.nn.Linear(49, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.gelu(self.norm(self.first(x)))
        x = functional.dropout(x, 0.5, self.training)
        x = self.act(self.rms(self.second(x)))
        x = self.act(self.third(x))
        return self.out(torch.cat([self.query(x), self.key(x), self.value(x)], 1)).squeeze(1)


class Branching(torch.nn.Module):
    """Data decide; the tower inside is a Sequential."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm = torch.nn.Linear(13, 20), torch.nn.LayerNorm(20)
        self.tower = torch.nn.Sequential(
            torch.nn.Linear(20, 32), torch.nn.LayerNorm(32), torch.nn.ReLU(), torch.nn.Dropout(0.1),
            torch.nn.Linear(32, 16), torch.nn.GELU(), torch.nn.Linear(16, 1),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.inner(x))
        if x.sum() > 0:
            x = x * 2
        return self.tower(x).squeeze(1)


class Click(torch.nn.Module):
    """DLRM in small: a bag, rows of ids, a dense tower and a top."""

    def __init__(self, mode: str = "sum") -> None:
        super().__init__()
        self.tags = torch.nn.EmbeddingBag(50, 11, mode=mode)
        self.item = torch.nn.Embedding(31, 11, padding_idx=0, sparse=True)
        self.bottom = torch.nn.Sequential(torch.nn.Linear(5, 11), torch.nn.RMSNorm(11), torch.nn.SiLU())
        self.top = torch.nn.Sequential(torch.nn.Linear(33, 24), torch.nn.ReLU(), torch.nn.Linear(24, 1))

    def forward(
        self, dense: torch.Tensor, item: torch.Tensor, tags: torch.Tensor, offsets: torch.Tensor
    ) -> torch.Tensor:
        return self.top(torch.cat([self.bottom(dense), self.item(item), self.tags(tags, offsets)], 1)).squeeze(1)


def click_inputs(events: int = 9) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(5)
    sizes = torch.randint(0, 4, (events,), generator=generator)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)[:-1]])
    return (
        torch.randn(events, 5, generator=generator),
        torch.randint(0, 31, (events,), generator=generator),
        torch.randint(0, 50, (int(sizes.sum()),), generator=generator),
        offsets,
    )


@torch.no_grad()
def trained(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """``model`` in evaluation mode with parameters drawn anew, gains around 1."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        is_gain = bool((parameter == 1).all())
        drawn = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        parameter.copy_(drawn / parameter.shape[-1] ** 0.5 if parameter.dim() > 1 else 0.2 * drawn + is_gain)
    return model.eval()


def inputs(rows: int = 9, width: int = 13) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(7))
