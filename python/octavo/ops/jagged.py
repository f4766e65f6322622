"""Variable-length rows of several features: the one sparse container of octavo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from octavo import _core


@dataclass(frozen=True, eq=False)
class Jagged:
    """Bags of ids for F features and B events, feature-major.

    ``values`` [V] int64; ``offsets`` [F*B+1] int64: the bag of feature f, event b is
    ``values[offsets[f*B+b] : offsets[f*B+b+1]]``; ``weights`` [V] float32 or None (= all ones).

    Raises TypeError (dtype) or ValueError (rank, device, offsets that do not start at 0, decrease, or do not end at V).
    The offsets' content is checked on the CPU only: on a GPU the check would stall the stream.
    """

    values: torch.Tensor
    offsets: torch.Tensor
    weights: torch.Tensor | None = None

    def __post_init__(self) -> None:
        _expect("values", self.values, torch.int64)
        _expect("offsets", self.offsets, torch.int64)
        if self.offsets.device != self.values.device:
            raise ValueError(f"offsets: is on {self.offsets.device}, values is on {self.values.device}; move one")
        if self.weights is not None:
            _expect("weights", self.weights, torch.float32)
            if self.weights.device != self.values.device:
                raise ValueError(f"weights: is on {self.weights.device}, values is on {self.values.device}; move one")
            if len(self.weights) != len(self.values):
                raise ValueError(f"weights: expected one per value ({len(self.values)}), found {len(self.weights)}")
        if len(self.offsets) == 0:
            raise ValueError("offsets: expected F*B+1 entries, found 0; no bags is the single entry 0")
        if self.offsets.device.type == "cpu":
            self._check_offsets()

    @torch.compiler.disable
    def _check_offsets(self) -> None:
        offsets = self.offsets.contiguous()
        _core.check_offsets(offsets.data_ptr(), self.bags, len(self.values))

    @property
    def bags(self) -> int:
        """F*B."""
        return len(self.offsets) - 1

    def lengths(self) -> torch.Tensor:
        """[F*B] int64: ids per bag."""
        return self.offsets.diff()

    def to(self, device: torch.device | str) -> Jagged:
        """The same bags on ``device`` (not checked again)."""
        moved = object.__new__(Jagged)
        weights = None if self.weights is None else self.weights.to(device)
        for name, tensor in (("values", self.values.to(device)), ("offsets", self.offsets.to(device))):
            object.__setattr__(moved, name, tensor)
        object.__setattr__(moved, "weights", weights)
        return moved

    def to_kjt(self, keys: Sequence[str]) -> Any:
        """TorchRec's KeyedJaggedTensor over the same memory; ``keys`` are the F features' names.

        Raises ImportError where torchrec is not installed, ValueError where the bags do not divide among the keys.
        """
        if len(keys) == 0 or self.bags % len(keys):
            raise ValueError(f"keys: {self.bags} bags do not divide among {len(keys)} keys; give one name per feature")
        try:
            from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
        except ImportError as error:
            raise ImportError(
                "Jagged.to_kjt needs torchrec, which is not installed; install octavo[distributed]"
            ) from error
        return KeyedJaggedTensor(
            keys=list(keys),
            values=self.values,
            weights=self.weights,
            lengths=self.lengths(),
            offsets=self.offsets,
            stride=self.bags // len(keys),
        )


def _expect(argument: str, value: object, dtype: torch.dtype) -> None:
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{argument}: expected a torch.Tensor, found {type(value).__name__}")
    if value.dtype != dtype:
        found, wanted = (str(d).removeprefix("torch.") for d in (value.dtype, dtype))
        raise TypeError(f"{argument}: expected {wanted}, found {found}; convert it with .to()")
    if value.dim() != 1:
        raise ValueError(f"{argument}: expected 1 dimension, found shape {list(value.shape)}")
