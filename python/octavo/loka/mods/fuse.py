"""Linear -> norm -> activation chains become ``nn.LinearNorm`` with the same Parameters: the same values in FP32."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx
from torch.nn import functional

from octavo.loka.mods import parts
from octavo.loka.mods.parts import NormPart
from octavo.loka.mods.places import Places
from octavo.loka.mods.record import Change, Record
from octavo.loka.mods.trace import Method
from octavo.loka.mods.wholes import is_plain_sequential, why_not_whole
from octavo.nn.hooks import has_hooks


@dataclass(eq=False)
class _Chain:
    """What follows a linear layer. ``norm_last``: the norm came after the activation."""

    norm: NormPart | None = None
    activation: str | None = None
    norm_last: bool = False

    def take(self, norm: NormPart | None, activation: str | None, norm_first: bool) -> bool:
        """Whether the next part, a norm or an activation, belongs to the chain; if so it is taken."""
        if norm is not None and self.norm is None and (self.activation is None or norm_first):
            self.norm, self.norm_last = norm, self.activation is not None
        elif activation is not None and self.activation is None:
            self.activation = activation
        else:
            return False
        return True

    def __bool__(self) -> bool:
        return self.norm is not None or self.activation is not None


def fuse_sequentials(places: Places, record: Record, norm_first: bool) -> None:
    """Neighbours in ``torch.nn.Sequential``, which need no tracing, where it surely runs as a whole."""
    tapped = why_not_whole(places.model)
    for path, host in places.hosts():
        if is_plain_sequential(host):
            _fuse_sequential(path, host, places, record, norm_first, tapped.get(id(host)))


def _fuse_sequential(
    path: str, host: torch.nn.Sequential, places: Places, record: Record, norm_first: bool, tapped: str | None
) -> None:
    parts_of = list(host._modules.items())
    for start, (name, linear) in enumerate(parts_of):
        if not parts.is_linear(linear) or id(linear) not in places.by_module:
            continue
        chain = _Chain()
        members: list[tuple[torch.nn.Module, str]] = []
        for other, module in parts_of[start + 1 :]:
            norm, activation = parts.norm_of_module(module), parts.activation_of_module(module)
            if id(module) not in places.by_module or has_hooks(module) or (norm and places.is_shared(module)):
                break
            if not chain.take(norm, activation, norm_first):
                break
            members.append((host, other))
        if chain:
            _fuse(path, (host, name), linear, members, chain, places, record, tapped)


def fuse_graph(method: Method, places: Places, record: Record, norm_first: bool) -> None:
    """Chains in a traced method: children or functional calls whose intermediate results have one user each."""
    for node in list(method.graph.nodes):
        linear = method.child(node)
        if not parts.is_linear(linear) or id(linear) not in places.by_module or len(node.args) != 1 or node.kwargs:
            continue
        assert linear is not None
        if not method.is_own(node) or method.calls(node) != 1:
            continue
        chain, found, members, rewrites = _Chain(), [node], [], False
        while len(found[-1].users) == 1:
            (following,) = found[-1].users
            module = method.child(following)
            if module is not None:
                norm, activation = parts.norm_of_module(module), parts.activation_of_module(module)
                often = method.calls(following) > 1 or places.is_shared(module)
                usable = id(module) in places.by_module and method.is_own(following) and not has_hooks(module)
                if not usable or (often and norm is not None and norm.parameters()):
                    break
            else:
                norm, activation, often = parts.norm_of_call(following, method.host), None, True
                activation = parts.activation_of_call(following)
            if found[-1] not in following.args[:1] or not chain.take(norm, activation, norm_first):
                break
            if not often:
                members.append(method.parent_of(following))
            rewrites |= often
            found.append(following)
        if not chain or not _fuse(method.path, method.parent_of(node), linear, members, chain, places, record):
            continue
        if chain.norm is not None:  # parameters of the host's own, read by a call
            for owner, own in chain.norm.parameters().values():
                if owner is method.host:
                    record.edits.assign(method.host, own, None)
        if rewrites:
            _shorten(method, found)


def _shorten(method: Method, chain: list[fx.Node]) -> None:
    """The first node's result in place of the last one's."""
    chain[-1].replace_all_uses_with(chain[0])
    for node in reversed(chain[1:]):
        read = [arg for arg in node.all_input_nodes if arg.op == "get_attr"]
        method.graph.erase_node(node)
        for attribute in read:
            if not attribute.users:
                method.graph.erase_node(attribute)
    method.changed = True


def _fuse(
    path: str,
    place: tuple[torch.nn.Module, str],
    linear: torch.nn.Module,
    members: list[tuple[torch.nn.Module, str]],
    chain: _Chain,
    places: Places,
    record: Record,
    tapped: str | None = None,
) -> bool:
    """Put the fused layer at ``place`` and identities in place of ``members``; whether it was done. ``tapped``:
    why what is between them may be seen."""
    site = places.by_module[id(linear)].path
    before = parts.describe(type(linear).__name__, chain.norm, chain.activation, chain.norm_last)
    why = parts.why_not(linear, chain.norm) or tapped
    if has_hooks(linear):
        why = "it has hooks; remove them first, and set them on the fused layer"
    elif places.is_shared(linear):
        why = "it is used in several places of the model"
    if why is not None:
        record.changes.append(Change(site, "fuse", before, None, why))
        return False
    layer = parts.linear_norm(linear, chain.norm, chain.activation)
    kept = {name: (layer, name) for name in ("weight", "bias")}
    record.edits.replace(*place, layer, kept)
    norm_names = {} if chain.norm is None else chain.norm.parameters()
    for parent, name in members:
        module = parent._modules[name]
        own = {old: (layer, new) for new, (owner, old) in norm_names.items() if owner is module}
        record.edits.replace(parent, name, torch.nn.Identity(), own)
    if chain.norm_last:
        after = parts.describe("", chain.norm, chain.activation).removeprefix(" -> ")
        record.changes.append(Change(site, "norm_first", before, after, "values change: the norm comes first"))
    after = f"LinearNorm({chain.norm.kind if chain.norm else None}, {chain.activation})"
    record.changes.append(Change(site, "fuse", before, after, "" if chain.norm_last else "same values in FP32"))
    return True


def swap_calls(method: Method, record: Record, hard_swish: bool, block: int | None) -> None:
    """Hard Swish and BlockNorm for functional calls in a traced method."""
    for node in list(method.graph.nodes):
        if node.op != "call_function":
            continue
        if hard_swish and node.target in (functional.silu, functional.gelu):
            before = node.target.__name__
            node.kwargs = {name: value for name, value in node.kwargs.items() if name in ("input", "inplace")}
            node.target = functional.hardswish
            record.changes.append(Change(method.path, "hard_swish", f"{before}()", "hardswish()", "values change"))
            method.changed = True
        norm = parts.norm_of_call(node, method.host)
        if block is not None and norm is not None and node.target is not parts.block_norm:
            read = [arg for arg in node.all_input_nodes if arg.op == "get_attr"]
            with method.graph.inserting_before(node):
                new = method.graph.call_function(parts.block_norm, (node.all_input_nodes[0], block, norm.eps))
            node.replace_all_uses_with(new)
            method.graph.erase_node(node)
            for attribute in read:
                if not attribute.users:
                    method.graph.erase_node(attribute)
            note = "values change" + ("; its parameters stay, unused" if norm.parameters() else "")
            record.changes.append(Change(method.path, "block_norm", f"{norm.kind}_norm()", f"BlockNorm({block})", note))
            method.changed = True
