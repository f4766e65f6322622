"""Teacher records: for each example what a snapshot of the teacher said, which one, when and how old it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True, eq=False)
class Records:
    """n records.

    ``key`` [n] int64: the example's id. ``logits`` {task: [n] float32}; nan: the teacher does not know the task there.
    ``embedding`` [n, D] float32, or None. ``version`` [n] int64: the number of the snapshot that spoke, 0 = none did
    (its logits are nan). ``written`` [n] int64, ms: the event time at which it did. ``lag`` [n] int64, ms: how long
    before that the snapshot had seen its last event.

    Raises TypeError or ValueError that name the field whose dtype or shape does not fit.
    """

    key: torch.Tensor
    logits: Mapping[str, torch.Tensor]
    version: torch.Tensor
    written: torch.Tensor
    lag: torch.Tensor
    embedding: torch.Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("key", "version", "written", "lag"):
            self._expect(name, getattr(self, name), torch.int64)
        for task, logits in self.logits.items():
            self._expect(f"logits[{task!r}]", logits, torch.float32)
        if self.embedding is not None:
            if self.embedding.dtype != torch.float32:
                raise TypeError(f"embedding: expected float32, found {self.embedding.dtype}; use .float()")
            if self.embedding.dim() != 2 or len(self.embedding) != len(self.key):
                raise ValueError(f"embedding: expected [{len(self.key)}, D], found {list(self.embedding.shape)}")

    def _expect(self, name: str, column: torch.Tensor, dtype: torch.dtype) -> None:
        if column.dtype != dtype:
            raise TypeError(f"{name}: expected {str(dtype).removeprefix('torch.')}, found {column.dtype}")
        if column.shape != (self.key.numel(),):
            raise ValueError(f"{name}: expected [{self.key.numel()}], one for each key; found {list(column.shape)}")

    def __len__(self) -> int:
        return len(self.key)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks of the logits."""
        return tuple(self.logits)

    @property
    def dim(self) -> int | None:
        """D of the embedding."""
        return None if self.embedding is None else self.embedding.shape[1]

    def probabilities(self, task: str) -> torch.Tensor:
        """[n] float32: the soft labels of ``task``; nan where there are none."""
        return torch.sigmoid(self.logits[task])

    def rows(self, index: torch.Tensor | slice) -> Records:
        """The records at these places, in this order."""
        return replace(
            self,
            key=self.key[index],
            logits={task: z[index] for task, z in self.logits.items()},
            version=self.version[index],
            written=self.written[index],
            lag=self.lag[index],
            embedding=None if self.embedding is None else self.embedding[index],
        )

    @classmethod
    def unknown(cls, key: torch.Tensor, tasks: Sequence[str], dim: int | None = None) -> Records:
        """Records of examples about which nothing is known: version 0, logits and embeddings nan."""
        n, zero = len(key), torch.zeros(len(key), dtype=torch.int64)
        nan = torch.full((n,), float("nan"))
        embedding = None if dim is None else torch.full((n, dim), float("nan"))
        return cls(key, dict.fromkeys(tasks, nan), zero, zero, zero, embedding)

    @classmethod
    def joined(cls, parts: Sequence[Records]) -> Records:
        """One after the other. Raises ValueError for none, and where tasks or the embedding's width differ."""
        if not parts:
            raise ValueError("parts: found none; use Records.unknown for no records")
        first = parts[0]
        for part in parts[1:]:
            if part.tasks != first.tasks or part.dim != first.dim:
                raise ValueError(
                    f"parts: one has tasks {list(part.tasks)} and embeddings of {part.dim}, the first "
                    f"{list(first.tasks)} and {first.dim}"
                )
        embeddings = [part.embedding for part in parts if part.embedding is not None]
        return cls(
            torch.cat([part.key for part in parts]),
            {task: torch.cat([part.logits[task] for part in parts]) for task in first.tasks},
            torch.cat([part.version for part in parts]),
            torch.cat([part.written for part in parts]),
            torch.cat([part.lag for part in parts]),
            torch.cat(embeddings) if embeddings else None,
        )
