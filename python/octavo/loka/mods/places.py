"""Where in a model Mods may look: modules with their paths, what is kept, what is closed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch

from octavo import nn
from octavo.ops.dispatch.plan import canonical

_LISTS = (torch.nn.ModuleList, torch.nn.ModuleDict)
LINEAR = (torch.nn.Linear, nn.Linear)


@dataclass(frozen=True, eq=False)
class Place:
    """``module`` under ``name`` in ``parent``; ``path`` is canonical."""

    path: str
    parent: torch.nn.Module
    name: str
    module: torch.nn.Module


class Places:
    """Every place of a model but those inside modules that read their parts' parameters themselves (torch's own but
    for Sequential, ModuleList and ModuleDict; octavo's), and those that ``keep`` protects.

    ``keep``: globs on canonical paths; a module is kept with everything in it. Raises ValueError for a glob that no
    module matches.
    """

    def __init__(self, model: torch.nn.Module, keep: Iterable[str]) -> None:
        self.model = model
        patterns = [keep] if isinstance(keep, str) else list(keep)
        paths = [canonical(path) for path, _ in model.named_modules(remove_duplicate=False) if path]
        for pattern in patterns:
            if not any(fnmatchcase(path, pattern) for path in paths):
                raise ValueError(f"keep: no module matches {pattern!r}; the model has {', '.join(paths[:20])}")
        opened, kept = {"": True}, {"": False}
        found: dict[tuple[int, str], Place] = {}
        kept_modules: set[int] = set()
        modules = dict(model.named_modules(remove_duplicate=False))
        for path, module in modules.items():
            if not path:
                continue
            before, _, name = path.rpartition(".")
            if not opened[before]:
                opened[path], kept[path] = False, False
                continue
            site, parent = canonical(path), modules[before]
            opened[path] = is_open(module)
            kept[path] = kept[before] or any(fnmatchcase(site, pattern) for pattern in patterns)
            if kept[path]:
                kept_modules.add(id(module))
            found.setdefault((id(parent), name), Place(site, parent, name, module))
        self._counts = Counter(id(place.module) for place in found.values())
        self.every = [place for place in found.values() if id(place.module) not in kept_modules]
        self.by_module = {id(place.module): place for place in reversed(self.every)}

    def is_shared(self, module: torch.nn.Module) -> bool:
        """Whether it has more places than one."""
        return self._counts[id(module)] > 1

    def __iter__(self) -> Iterator[Place]:
        """Each module once, at its first place."""
        return (place for place in self.every if self.by_module[id(place.module)] is place)

    def hosts(self) -> Iterator[tuple[str, torch.nn.Module]]:
        """Modules whose forward may be looked into, the model itself first."""
        yield "", self.model
        for place in self:
            if is_open(place.module):
                yield place.path, place.module


def is_open(module: torch.nn.Module) -> bool:
    """Whether its parts may be exchanged."""
    kind = type(module)
    if isinstance(module, torch.jit.ScriptModule):
        return False
    if kind.__module__.startswith("torch."):
        return kind in (torch.nn.Sequential, *_LISTS)
    return not kind.__module__.startswith("octavo.nn.")


def is_list(module: torch.nn.Module) -> bool:
    """A container without a forward of its own."""
    return isinstance(module, _LISTS) and not runs(module)


def runs(module: torch.nn.Module) -> bool:
    """Whether its class defines ``forward``."""
    return any("forward" in vars(kind) for kind in type(module).__mro__ if kind is not torch.nn.Module)
