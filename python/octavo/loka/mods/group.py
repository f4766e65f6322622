"""Parallel linear layers of one input become one layer whose weight is theirs, one below the other; its output is cut
into views.

One concatenated weight, not ``ops.grouped_linear``: the layers share x, which is read and quantized once, and one call
costs less than a group's lists. Measured (docs/decisions.md): it pays from three layers on, and only without copies of
the pieces. So layers whose results go where strides may matter are not merged.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.nn import functional

from octavo import nn
from octavo.loka.mods import parts
from octavo.loka.mods.places import Places
from octavo.loka.mods.record import Change, Record
from octavo.loka.mods.trace import Method
from octavo.nn.hooks import has_hooks

_PARAMETERS = ("weight", "bias")
_LEAST = 3  # layers
_ANY_STRIDES = {
    torch.cat, torch.stack, torch.matmul, torch.bmm, torch.add, torch.sub, torch.mul, torch.addcmul, torch.sum,
    torch.softmax, torch.sigmoid, torch.tanh, torch.relu, functional.relu, functional.silu, functional.gelu,
    functional.hardswish, functional.softmax, functional.layer_norm, functional.rms_norm, functional.linear,
    operator.add, operator.sub, operator.mul, operator.truediv, operator.matmul, parts.block_norm,
}  # fmt: skip
_VIEWS = {"transpose", "permute", "unsqueeze", "reshape", "unflatten"}  # methods; what reads their result counts


@dataclass(eq=False)
class Merged:
    """``layer``, at ``name`` of ``host``, computes what ``old`` layers [(parent, name, module)] computed."""

    host: torch.nn.Module
    name: str
    layer: torch.nn.Module
    old: list[tuple[torch.nn.Module, str, Any]]

    def revert(self) -> None:
        start = 0
        for parent, name, module in self.old:
            end = start + module.out_features
            for parameter in _PARAMETERS:
                present = self.layer._parameters.get(parameter)
                if present is not None:
                    value = present.detach()[start:end].clone()
                    module._parameters[parameter] = torch.nn.Parameter(value, present.requires_grad)
            module.train(self.layer.training)
            parent._modules[name] = module
            start = end
        del self.host._modules[self.name]


def group_graph(method: Method, places: Places, record: Record) -> None:
    """Merge the method's linear layers that read the same value."""
    found: dict[Any, list[fx.Node]] = {}
    for node in method.graph.nodes:
        key = _key(method, node, places)
        if key is not None:
            found.setdefault(key, []).append(node)
    for nodes in found.values():
        if len(nodes) < _LEAST:
            continue
        free = [node for node in nodes if all(_takes_any_strides(method, user) for user in node.users)]
        _leave(method, [node for node in nodes if node not in free], places, record)
        if len(free) >= _LEAST:
            _merge(method, free, places, record)


def _leave(method: Method, nodes: list[fx.Node], places: Places, record: Record) -> None:
    for node in nodes:
        users = [str(user) for user in node.users if not _takes_any_strides(method, user)]
        why = f"its result goes to {', '.join(users)}, which may ask for strides that a part of a longer result lacks"
        place = places.by_module[id(method.child(node))]
        record.changes.append(Change(place.path, "group", type(place.module).__name__, None, why))


def _key(method: Method, node: fx.Node, places: Places) -> Any:
    """What layers must have in common to be merged; None for what cannot be."""
    layer: Any = method.child(node)
    if layer is None or id(layer) not in places.by_module or len(node.args) != 1 or node.kwargs:
        return None
    if not method.is_own(node) or method.calls(node) != 1 or places.is_shared(layer) or has_hooks(layer):
        return None
    common: tuple[Any, ...]
    if isinstance(layer, nn.LinearNorm):
        rows = layer.norm is None or (layer.norm == "block" and layer.out_features % layer.block == 0)
        if not rows:
            return None
        common = (layer.norm, layer.activation, layer.eps, layer.block)
    elif parts.is_linear(layer):
        common = ()
    else:
        return None
    weight = layer.weight
    states = tuple(None if p is None else p.requires_grad for p in (layer.weight, layer.bias))
    precision = (getattr(layer, "numerics", None), getattr(layer, "backward_numerics", None))
    return (node.args[0], type(layer), layer.in_features, weight.dtype, weight.device, states, precision, *common)


def _takes_any_strides(method: Method, user: fx.Node) -> bool:
    """Whether ``user`` may read a view and gives a result of its own, or a view that only such ones read."""
    module: Any = method.child(user)
    if user.op == "call_method":
        return user.target in _VIEWS and all(_takes_any_strides(method, reader) for reader in user.users)
    if module is None:
        return user.op == "call_function" and user.target in _ANY_STRIDES
    known = parts.is_linear(module) or isinstance(module, nn.LinearNorm) or parts.norm_of_module(module) is not None
    return known or parts.activation_of_module(module) is not None


def _merge(method: Method, nodes: list[fx.Node], places: Places, record: Record) -> None:
    layers: list[Any] = [method.child(node) for node in nodes]
    sizes: list[Any] = [layer.out_features for layer in layers]
    merged = _merged_layer(layers)
    name = _name(method.host, [str(node.target) for node in nodes])
    old = []
    for node, layer in zip(nodes, layers, strict=True):
        parent, own = method.parent_of(node)
        old.append((parent, own, layer))
        parent._modules[own] = torch.nn.Identity()
    method.host.add_module(name, merged)
    record.edits.done.append(Merged(method.host, name, merged, old))
    with method.graph.inserting_before(nodes[0]):
        y = method.graph.call_module(name, nodes[0].args)
        cut = method.graph.call_method("split", (y, list(sizes), -1))
        pieces = [method.graph.call_function(operator.getitem, (cut, i)) for i in range(len(nodes))]
    for node, piece in zip(nodes, pieces, strict=True):
        node.replace_all_uses_with(piece)
        method.graph.erase_node(node)
    method.changed = True
    sites = [places.by_module[id(layer)].path for layer in layers]
    site = f"{method.path}.{name}" if method.path else name
    start = 0
    for path, size in zip(sites, sizes, strict=True):
        for parameter in _PARAMETERS:
            if getattr(merged, parameter) is not None:
                record.merged[f"{path}.{parameter}"] = f"{site}.{parameter}[{start}:{start + size}]"
        start += size
    before = f"{len(sites)} layers of one input: {', '.join(sites)}"
    note = "new Parameters, make the optimizer anew; same values but for the order of sums"
    record.changes.append(Change(site, "group", before, f"{type(merged).__name__}({sum(sizes)})", note))


def _merged_layer(layers: list[Any]) -> torch.nn.Module:
    first = layers[0]
    rows = sum(layer.out_features for layer in layers)
    with torch.device("meta"):
        if isinstance(first, nn.LinearNorm):
            merged: Any = nn.LinearNorm(
                first.in_features, rows, first.norm, first.activation, False, first.eps, block=first.block
            )
        else:
            merged = type(first)(first.in_features, rows, bias=False)
    for name in _PARAMETERS:
        own = [getattr(layer, name) for layer in layers]
        if own[0] is not None:
            value = torch.nn.Parameter(torch.cat([p.detach() for p in own]), own[0].requires_grad)
            setattr(merged, name, value)
    if hasattr(first, "numerics"):
        merged.numerics, merged.backward_numerics = first.numerics, first.backward_numerics
    return merged.train(first.training)  # type: ignore[no-any-return]


def _name(host: torch.nn.Module, targets: list[str]) -> str:
    flat = [target.replace(".", "_") for target in targets]
    name = "_".join(flat) if len(flat) <= 4 else f"{flat[0]}_to_{flat[-1]}"
    while hasattr(host, name):
        name += "_"
    return name
