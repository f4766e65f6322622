"""Embedding tables in low-precision rows, for serving: torch's become octavo's, octavo's change their format."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch

from octavo import nn
from octavo.loka.mods.places import Place, Places
from octavo.loka.mods.record import Change, Record
from octavo.loka.mods.served import ServedEmbedding, ServedEmbeddingBag, decoded_rows
from octavo.nn.hooks import has_hooks

_TORCHS = (torch.nn.Embedding, torch.nn.EmbeddingBag)
_OCTAVOS = (nn.EmbeddingBags, nn.EmbeddingCollection)


@dataclass(eq=False)
class Stored:
    """Tables that became ``new`` at ``places`` [(parent, name)]. The old rows are not kept; taking it back decodes the
    present ones.
    """

    places: list[tuple[torch.nn.Module, str]]
    new: nn.EmbeddingBags
    kind: type
    arguments: dict[str, Any]

    def revert(self) -> None:
        old = self._torchs() if self.kind in _TORCHS else self._octavos()
        old.train(self.new.training)
        for parent, name in self.places:
            parent._modules[name] = old

    def _torchs(self) -> torch.nn.Module:
        rows = self.new.decoded()  # type: ignore[operator]
        trains = self.arguments["requires_grad"]
        rest = {name: value for name, value in self.arguments.items() if name != "requires_grad"}
        old: torch.nn.Module = self.kind(*rows.shape, _weight=rows, **rest)
        return old.requires_grad_(trains)

    @torch.no_grad()
    def _octavos(self) -> torch.nn.Module:
        with torch.random.fork_rng(devices=[]):
            old: nn.EmbeddingBags = self.kind(**self.arguments)
        for table, coded in zip(old.tables, self.new.tables, strict=True):
            rows = old.rows.get(table.name)
            assert rows is not None
            rows.copy_(decoded_rows(self.new, coded))
        old.ids = copy.deepcopy(self.new.ids)
        return old


def convertible(places: Places, dtype: str) -> list[tuple[Place, str | None]]:
    """The model's tables and for each why it stays, None where it can be converted."""
    owners = Counter(id(p) for module in places.model.modules() for p in module._parameters.values() if p is not None)
    found = []
    for place in places.every:
        module = place.module
        if type(module) in (*_TORCHS, *_OCTAVOS):
            found.append((place, _why_not(module, owners, dtype)))
    return found


def store_tables(places: Places, record: Record, dtype: str) -> None:
    """Convert what :func:`convertible` says; a module with several places is converted once."""
    done: dict[int, Stored] = {}
    for place, why in convertible(places, dtype):
        module = place.module
        before = type(module).__name__
        if why is not None:
            record.changes.append(Change(place.path, "tables", before, None, why))
            continue
        edit = done.get(id(module))
        if edit is None:
            edit = done[id(module)] = Stored([], _converted(module, dtype), type(module), _arguments(module))
            edit.new.train(module.training)
            record.edits.done.append(edit)
        edit.places.append((place.parent, place.name))
        place.parent._modules[place.name] = edit.new
        note = f"frozen, for serving; rows round to {dtype}, undo gives back the rounded rows"
        record.changes.append(Change(place.path, "tables", before, f"{type(edit.new).__name__}({dtype})", note))


def _why_not(module: Any, owners: Counter[int], dtype: str) -> str | None:
    if has_hooks(module):
        return "it has hooks; remove them first"
    if isinstance(module, nn.EmbeddingBags):
        coded = next((table for table in module.tables if table.dtype != "fp32"), None)
        return None if coded is None else f"table '{coded.name}' is {coded.dtype} already; convert the FP32 original"
    if module.weight.dtype != torch.float32:
        return f"its weight is {str(module.weight.dtype).removeprefix('torch.')}; convert the FP32 original"
    if owners[id(module.weight)] > 1:
        return "its weight is shared with another module, which reads it in FP32"
    if module.max_norm is not None:
        return "max_norm changes rows when they are read; renormalise the table once and set max_norm to None"
    if module.embedding_dim == 0:
        return "its rows are empty"
    if isinstance(module, torch.nn.EmbeddingBag):
        if module.mode == "max":
            return "mode 'max' is not one of sum and mean"
        if module.padding_idx is not None:
            return "padding_idx leaves entries out of its bags; drop them from the input, or keep the table"
    return None


def _converted(module: Any, dtype: str) -> nn.EmbeddingBags:
    if isinstance(module, nn.EmbeddingBags):
        return module.to_dtype(dtype)
    if isinstance(module, torch.nn.Embedding):
        return ServedEmbedding(module.weight, dtype)
    return ServedEmbeddingBag(module.weight, dtype, module.mode, module.include_last_offset)


def _arguments(module: Any) -> dict[str, Any]:
    """What makes a module like ``module`` but for its rows."""
    if isinstance(module, nn.EmbeddingBags):
        names: tuple[str, ...] = ("optimizer", "bounds", "rounding", "seed")
        return {"tables": list(module.tables), **{name: getattr(module, name) for name in names}}
    names = ("scale_grad_by_freq", "sparse", "padding_idx", "norm_type")
    if isinstance(module, torch.nn.EmbeddingBag):
        names = (*names, "mode", "include_last_offset")
    return {"requires_grad": module.weight.requires_grad, **{name: getattr(module, name) for name in names}}
