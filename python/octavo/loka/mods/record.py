"""What Mods did to a model, in words for people and in steps that can be taken back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

MODS = ("no_bias", "block_norm", "hard_swish", "swish_rms", "norm_first", "fuse", "group", "tables")


@dataclass(frozen=True)
class Change:
    """What one Mod did at one site (a canonical module path), or, with ``after`` None, why it left the site alone.

    ``note``: what was lost, whether values change, or that reason.
    """

    site: str
    mod: str
    before: str
    after: str | None
    note: str = ""

    def __str__(self) -> str:
        done = "left as it is" if self.after is None else f"-> {self.after}"
        return f"{self.site or '(model)'} [{self.mod}] {self.before} {done}" + (f": {self.note}" if self.note else "")


class Edit(Protocol):
    def revert(self) -> None: ...


@dataclass(eq=False)
class Replaced:
    """``old`` in ``parent`` gave way to ``new``. ``kept``: where old's parameters are now, by name."""

    parent: torch.nn.Module
    name: str
    old: torch.nn.Module
    new: torch.nn.Module
    kept: Mapping[str, tuple[torch.nn.Module, str]]

    def revert(self) -> None:
        for name, (module, other) in self.kept.items():
            present = module._parameters.get(other)
            if present is not None:
                self.old._parameters[name] = present
        self.old.train(self.new.training)
        self.parent._modules[self.name] = self.old


@dataclass(eq=False)
class Assigned:
    """An attribute or parameter got another value."""

    module: torch.nn.Module
    name: str
    old: Any

    def revert(self) -> None:
        old = self.old
        if isinstance(old, torch.nn.Parameter):  # the model may have moved without it
            weight = self.module._parameters.get("weight")
            if weight is not None and (weight.device, weight.dtype) != (old.device, old.dtype):
                old = torch.nn.Parameter(old.detach().to(weight), old.requires_grad)
        setattr(self.module, self.name, old)


@dataclass(eq=False)
class Rewritten:
    """A module got a class of its own, with another ``forward``."""

    module: torch.nn.Module
    old: type

    def revert(self) -> None:
        self.module.__class__ = self.old


class Edits:
    """Changes of a model's structure, made and remembered."""

    def __init__(self) -> None:
        self.done: list[Edit] = []

    def replace(
        self,
        parent: torch.nn.Module,
        name: str,
        new: torch.nn.Module,
        kept: Mapping[str, tuple[torch.nn.Module, str]] | None = None,
    ) -> None:
        old = parent._modules[name]
        assert old is not None
        new.train(old.training)
        parent._modules[name] = new
        self.done.append(Replaced(parent, name, old, new, kept or {}))

    def assign(self, module: torch.nn.Module, name: str, value: Any) -> None:
        self.done.append(Assigned(module, name, getattr(module, name)))
        setattr(module, name, value)

    def rewrite(self, module: torch.nn.Module, methods: Mapping[str, Any]) -> None:
        old = type(module)
        fixed = {"__module__": old.__module__, "__qualname__": old.__qualname__, "__doc__": old.__doc__}
        module.__class__ = type(old.__name__, (old,), {**fixed, **methods})
        self.done.append(Rewritten(module, old))

    def revert(self) -> None:
        while self.done:
            self.done.pop().revert()


@dataclass(eq=False)
class Record:
    """Kept by a modified model, beside its parameters. ``merged``: names of an application that is not done yet."""

    changes: list[Change] = field(default_factory=list)
    edits: Edits = field(default_factory=Edits)
    names: dict[str, str] | None = None
    merged: dict[str, str] = field(default_factory=dict)
