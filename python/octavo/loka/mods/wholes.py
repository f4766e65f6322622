"""Which Sequentials run as a whole, so that nobody sees what passes between their layers.

Told by the graphs of the modules around them, which show who calls a layer inside, and by their code, in which a call
(``self.net(x)``) shows that the Sequential runs as a whole.
"""

from __future__ import annotations

import dis
from dataclasses import dataclass
from types import CodeType
from typing import TypeGuard

import torch

from octavo.loka.mods.places import is_list, is_open
from octavo.loka.mods.trace import Method, codes_of, methods_of


@dataclass(frozen=True)
class _User:
    """A module with a forward of its own. ``reached``: what its graphs call and read, relative paths; ``codes``: of all
    its methods, ``untraced``: of those without a graph."""

    name: str
    reached: frozenset[str]
    codes: tuple[CodeType, ...]
    untraced: tuple[CodeType, ...]


def is_plain_sequential(module: torch.nn.Module) -> TypeGuard[torch.nn.Sequential]:
    return isinstance(module, torch.nn.Sequential) and type(module).forward is torch.nn.Sequential.forward


def why_not_whole(model: torch.nn.Module) -> dict[int, str]:
    """The Sequentials inside ``model``, by id, that do not surely run as a whole, and why; ``model`` itself does."""
    modules = dict(model.named_modules(remove_duplicate=False))
    users = {
        path: _user(path, module)
        for path, module in modules.items()
        if is_open(module) and not is_list(module) and not is_plain_sequential(module)
    }
    found: dict[str, str] = {}
    for path, module in modules.items():  # those outside come first
        if path and is_plain_sequential(module):
            why = _tapped(path, modules, users) or _not_shown(path, modules, users, found)
            if why is not None:
                found[path] = why
    return {id(modules[path]): why for path, why in found.items()}


def _user(path: str, host: torch.nn.Module) -> _User:
    traced = [method for method in methods_of(path, host) if isinstance(method, Method)]
    nodes = (node for method in traced for node in method.graph.nodes)
    reached = frozenset(str(node.target) for node in nodes if node.op in ("call_module", "get_attr"))
    names, methods = {method.name for method in traced}, codes_of(host)
    codes = tuple(code for own in methods.values() for code in own)
    untraced = tuple(code for name, own in methods.items() if name not in names for code in own)
    return _User(type(host).__name__, reached, codes, untraced)


def _tapped(path: str, modules: dict[str, torch.nn.Module], users: dict[str, _User]) -> str | None:
    """Who around ``path`` reaches into it, or may."""
    parts = path.split(".")
    for depth in range(len(parts)):
        outer = ".".join(parts[:depth])
        user, inner = users.get(outer), parts[depth:]
        if user is None:
            continue
        if any(target.startswith(".".join(inner) + ".") for target in user.reached):
            return f"{user.name} reaches into the Sequential it is in"
        if ".".join(parts[: depth + 1]) in users:  # in a module with a forward of its own, which ``outer`` may pass by
            passed = [part for part in inner[1:] if part not in modules[outer]._modules]
            may = any(_names(code, part) for code in user.untraced for part in passed)
        else:  # a graph is of one path through the code: other paths may do other things with the Sequential
            codes = user.codes if len(inner) == 1 else user.untraced
            may = not all(_only_calls(code, inner[0]) for code in codes)
        if may:
            return f"{user.name} may reach into the Sequential it is in, as its code does more than call it"
    return None


def _not_shown(
    path: str, modules: dict[str, torch.nn.Module], users: dict[str, _User], found: dict[str, str]
) -> str | None:
    """Whether nobody is seen to run ``path``."""
    parts = path.split(".")
    parent = ".".join(parts[:-1])
    if parent not in users and is_plain_sequential(modules[parent]) and parent not in found:
        return None
    for depth in range(len(parts)):
        user = users.get(".".join(parts[:depth]))
        if user is not None and ".".join(parts[depth:]) in user.reached:
            return None
    if parent in users and any(_calls(code, parts[-1]) for code in users[parent].codes):
        return None  # by calls alone, or it would be tapped
    return "nothing shows that the Sequential it is in runs as a whole"


def _names(code: CodeType, name: str) -> bool:
    return name in code.co_names or name in code.co_consts


def _only_calls(code: CodeType, name: str) -> bool:
    """Whether ``code`` does nothing else with the attribute ``name`` than call it."""
    return all(_is_call(one) for one in _uses(code, name))


def _calls(code: CodeType, name: str) -> bool:
    return any(_is_call(one) for one in _uses(code, name))


def _uses(code: CodeType, name: str) -> list[dis.Instruction]:
    """What concerns the attribute ``name``; its name as a text may stand for it."""
    kinds = ("ATTR", "METHOD", "CONST")
    return [one for one in dis.get_instructions(code) if one.argval == name and one.opname.endswith(kinds)]


def _is_call(one: dis.Instruction) -> bool:
    return one.opname == "LOAD_METHOD" or "NULL|self" in one.argrepr  # 3.11; later
