"""Methods of a model's modules as graphs, one level deep: every child is a leaf. What a graph cannot hold is refused.

A chain of modules alone can be fused by exchanging modules, and the user's code stays. Where functional calls take part
the method is generated anew from its graph, in a class of the module's own. So a graph must mean what the code means
for every input: data-dependent branches make tracing fail, and ``refusal`` names the rest.
"""

from __future__ import annotations

import dis
import inspect
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import CodeType
from typing import Any

import torch
from torch import fx

from octavo.loka.mods.places import is_list

_SETUP = ("__init__", "reset_parameters", "extra_repr", "__repr__")
_TYPE_TESTS = ("isinstance", "issubclass", "type", "hasattr", "callable", "is_tensor", "is_compiling", "is_scripting")
_BUFFERS = ("_parameters", "_buffers", "_modules")


class Untraceable(Exception):
    """Why a method has no graph."""


@dataclass(eq=False)
class Method:
    """A method of ``host`` as a graph. ``changed``: the graph no longer is the code's. ``foreign``: children that other
    methods use as well. ``frozen``: plain attributes whose present values the graph holds.
    """

    path: str
    host: torch.nn.Module
    name: str
    graph: fx.Graph
    changed: bool = False
    foreign: set[str] = field(default_factory=set)
    frozen: list[str] = field(default_factory=list)

    def child(self, node: fx.Node) -> torch.nn.Module | None:
        """The module that ``node`` calls."""
        return self.host.get_submodule(str(node.target)) if node.op == "call_module" else None

    def parent_of(self, node: fx.Node) -> tuple[torch.nn.Module, str]:
        before, _, name = str(node.target).rpartition(".")
        return self.host.get_submodule(before), name

    def calls(self, node: fx.Node) -> int:
        """How often the method calls the module that ``node`` calls."""
        module = self.child(node)
        return sum(1 for other in self.graph.nodes if other.op == "call_module" and self.child(other) is module)

    def is_own(self, node: fx.Node) -> bool:
        """Whether this method alone runs the called module: a child that only it names, or in a list of such."""
        path = str(node.target).split(".")
        outer = (self.host.get_submodule(".".join(path[:end])) for end in range(1, len(path)))
        return path[0] not in self.foreign and all(is_list(module) for module in outer)

    def compiled(self) -> Any:
        """The function that the graph is now."""
        self.graph.lint()
        return type(fx.GraphModule(self.host, self.graph, f"{type(self.host).__name__}_{self.name}")).forward


def methods_of(path: str, host: torch.nn.Module) -> Iterator[Method | tuple[str, str]]:
    """The methods that ``forward`` runs and that alone name their children, or (name, why not) for each refused."""
    codes = codes_of(host)
    reached: list[str] = []
    waiting = ["forward"]
    while waiting:
        name = waiting.pop()
        if name in codes and name not in reached:
            reached.append(name)
            waiting.extend(other for code in codes[name] for other in code.co_names)
    named = {child: [n for n, found in codes.items() if _names(found, child)] for child in host._modules}
    for name in reached:
        own = {child for child, users in named.items() if users == [name]}
        if not any(_names(codes[name], child) for child in host._modules):
            continue
        try:
            method = Method(path, host, name, traced(host, name, [c for n in reached for c in codes[n]]))
        except Untraceable as error:
            yield name, str(error)
            continue
        method.foreign = set(host._modules) - own
        method.frozen = [
            attribute
            for attribute, value in vars(host).items()
            if isinstance(value, int | float | str)
            and attribute != "training"
            and not attribute.startswith("_")
            and any(_names(codes[n], attribute) for n in reached)
        ]
        yield method


def codes_of(host: torch.nn.Module) -> dict[str, list[CodeType]]:
    """The code of each of the host's own methods, with that of the functions inside."""
    return {name: list(_codes(function)) for name, function in _functions(type(host))}


def traced(host: torch.nn.Module, name: str, codes: list[CodeType]) -> fx.Graph:
    """The graph of ``host.name`` that holds in training and in evaluation. Raises Untraceable."""
    why = refusal(codes)
    if why:
        raise Untraceable(why)
    before = _state(host)
    chance, draws = torch.get_rng_state(), random.getstate()
    mode = host.training
    graphs = []
    try:
        for training in (True, False):
            host.training = training
            graphs.append(_Tracer(name).trace(host))
    except Exception as error:
        words = (str(error).strip() or repr(error)).splitlines()[0][:160]
        raise Untraceable(f"cannot be traced ({words})") from error
    finally:
        host.training = mode
        changed = _restore(host, before)
        drawn = not torch.equal(chance, torch.get_rng_state()) or draws != random.getstate()
        torch.set_rng_state(chance)
        random.setstate(draws)
    if changed:
        raise Untraceable(f"sets {changed} or makes a tensor of its own while it runs")
    if drawn:
        raise Untraceable("draws random numbers while it runs")
    return _joined(*graphs)


def refusal(codes: list[CodeType]) -> str | None:
    """What in the code a graph would silently freeze."""
    for code in codes:
        for name in code.co_names:
            if name in _TYPE_TESTS:
                return f"asks {name}() while it runs"
        found = list(dis.get_instructions(code))
        for i, instruction in enumerate(found):
            jumps = "JUMP" in instruction.opname and "NONE" in instruction.opname
            operands = 2 if instruction.opname == "IS_OP" else int(jumps)
            if any(one.opname.startswith("LOAD_FAST") for one in found[max(0, i - operands) : i]):
                return "compares an argument or a variable with None while it runs"
    return None


class _Tracer(fx.Tracer):
    """Every child is a leaf; buffers are read when the graph runs."""

    proxy_buffer_attributes = True

    def __init__(self, method: str) -> None:
        super().__init__()
        self.traced_func_name = method

    def is_leaf_module(self, m: torch.nn.Module, module_qualified_name: str) -> bool:
        return True


def _functions(kind: type) -> Iterator[tuple[str, Any]]:
    """The class's own methods and properties but those that only set it up, the most derived of each name."""
    seen: set[str] = set()
    for base in kind.__mro__:
        if base.__module__.startswith("torch.") or base is object:
            continue
        for name, value in vars(base).items():
            function = value.fget if isinstance(value, property) else value
            if name not in seen and callable(function) and name not in _SETUP and not name.startswith("_init"):
                seen.add(name)
                yield name, function


def _codes(function: Any) -> Iterator[CodeType]:
    code = getattr(inspect.unwrap(function), "__code__", None)
    waiting = [code] if code is not None else []
    while waiting:
        code = waiting.pop()
        yield code
        waiting.extend(const for const in code.co_consts if isinstance(const, CodeType))


def _names(codes: list[CodeType], child: str) -> bool:
    return any(child in code.co_names or child in code.co_consts for code in codes)


def _state(host: torch.nn.Module) -> dict[str, Any]:
    own = {key: value for key, value in vars(host).items() if key not in (*_BUFFERS, "training")}
    return {**own, **{key: dict(vars(host)[key]) for key in _BUFFERS}}


def _restore(host: torch.nn.Module, before: dict[str, Any]) -> str | None:
    """Undo what tracing set on ``host``; the name of what it was, None when nothing."""
    found = None
    for key in _BUFFERS:
        now = vars(host)[key]
        differing = [n for n in {**before[key], **now} if before[key].get(n) is not now.get(n)]
        if differing:
            found = differing[0]
            now.clear()
            now.update(before[key])
    for key in [key for key in vars(host) if key not in before and key != "training"]:
        found = key
        del vars(host)[key]
    for key, value in before.items():
        if key not in _BUFFERS and vars(host).get(key) is not value:
            found = key
            vars(host)[key] = value
    return found


def _joined(train: fx.Graph, evaluation: fx.Graph) -> fx.Graph:
    """One graph of two that differ in booleans alone: these become reads of ``self.training``."""
    why = "does different things in training and in evaluation"
    first, second = list(train.nodes), list(evaluation.nodes)
    if len(first) != len(second):
        raise Untraceable(why)
    place = {node: i for i, node in enumerate(second)}
    position = {node: i for i, node in enumerate(first)}
    mode: list[fx.Node] = []

    def join(a: Any, b: Any) -> Any:
        if isinstance(a, fx.Node) and isinstance(b, fx.Node) and position[a] == place[b]:
            return a
        if a is True and b is False:
            if not mode:
                with train.inserting_before(first[0]):
                    mode.append(train.get_attr("training"))
            return mode[0]
        if isinstance(a, list | tuple) and type(a) is type(b) and len(a) == len(b):
            parts = [join(x, y) for x, y in zip(a, b, strict=True)]
            return type(a)(*parts) if hasattr(a, "_fields") else type(a)(parts)
        if isinstance(a, dict) and isinstance(b, dict) and list(a) == list(b):
            return {key: join(a[key], b[key]) for key in a}
        if isinstance(a, slice) and isinstance(b, slice):
            return slice(*(join(getattr(a, n), getattr(b, n)) for n in ("start", "stop", "step")))
        if isinstance(a, fx.Node) or isinstance(b, fx.Node) or type(a) is not type(b) or a != b:
            raise Untraceable(why)
        return a

    for a, b in zip(first, second, strict=True):
        if (a.op, a.target) != (b.op, b.target):
            raise Untraceable(why)
        a.args, a.kwargs = join(a.args, b.args), join(a.kwargs, b.kwargs)
    return train
