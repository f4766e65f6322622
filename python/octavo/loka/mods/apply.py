"""Applying Mods to a model, reading what they did, taking them back."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch

from octavo import nn
from octavo.loka.mods.fuse import fuse_graph, fuse_sequentials, swap_calls
from octavo.loka.mods.group import group_graph
from octavo.loka.mods.parts import is_linear
from octavo.loka.mods.places import Places, is_list, is_open
from octavo.loka.mods.record import MODS, Change, Record
from octavo.loka.mods.swaps import block_norms, drop_biases, hard_swishes, swish_rms_norms
from octavo.loka.mods.tables import convertible, store_tables
from octavo.loka.mods.trace import Method, methods_of
from octavo.ops._types import choice
from octavo.ops.table_formats import FORMATS

_RECORD = "_octavo_mods"
_REWRITING = ("fuse", "group", "hard_swish", "block_norm")


def apply(
    model: torch.nn.Module,
    *,
    no_bias: bool = False,
    block_norm: int | None = None,
    hard_swish: bool = False,
    swish_rms: bool = False,
    norm_first: bool = False,
    fuse: bool = False,
    group: bool = False,
    tables: str | None = None,
    keep: Iterable[str] = (),
    inplace: bool = False,
) -> torch.nn.Module:
    """A copy of ``model``, of the same class, with LoKA's Mods: each may be asked for alone, none is by default.

    Args:
        no_bias: linear layers and norms lose their biases; prediction layers (linear layers of one output, or the
            last one of a model that has none such) keep theirs.
        block_norm: LayerNorm and RMSNorm over the last dimension become ``nn.BlockNorm`` of so many columns
            (LoKA: 256).
        hard_swish: SiLU and GELU become Hard Swish, modules and functional calls.
        swish_rms: in LinearNorm layers (fused ones too) norm and SiLU, GELU or Hard Swish become SwishRMSNorm.
        norm_first: with ``fuse``, Linear -> activation -> norm becomes Linear -> norm -> activation.
        fuse: Linear -> norm -> activation chains become ``nn.LinearNorm`` with the same Parameters. Same values in
            FP32. A Sequential that the model may reach into is left.
        group: linear layers of one input become one with a longer weight, new Parameters.
        tables: a row format (``e4m3 | int8 | int4 | fp16 | bf16``) for ``torch.nn.Embedding``, ``EmbeddingBag`` and
            octavo's tables, which are frozen then: for serving.
        keep: globs on canonical module paths (``heads.*``); no Mod touches what they match.
        inplace: change ``model`` itself and return it.

    ``changes`` says what was done and what was left, and why; ``undo`` takes everything back; ``names`` says where each
    parameter of the original is. Mods may be applied one after the other. Apply them before optimizers, hooks,
    torch.compile and DistributedDataParallel. Raises TypeError or ValueError that names the argument.
    """
    arguments = dict(locals())
    _check(model, arguments)
    block = None if block_norm is None or block_norm is False else 256 if block_norm is True else block_norm
    target = model if inplace else _copied(model, keep, tables)
    record = vars(target).setdefault(_RECORD, Record())
    before = _named(target)
    if tables is not None:
        store_tables(Places(target, keep), record, tables)
    if asked := [mod for mod in MODS if arguments[mod] and mod != "tables"]:
        _leave_closed(Places(target, keep), record, asked[0])
    if no_bias:
        drop_biases(Places(target, keep), record)
    if block is not None:
        block_norms(Places(target, keep), record, block)
    if hard_swish:
        hard_swishes(Places(target, keep), record)
    if fuse:
        fuse_sequentials(Places(target, keep), record, norm_first)
    if fuse or group or hard_swish or block is not None:
        methods = _traced(Places(target, keep), record, "fuse" if fuse else "group" if group else None)
        for method in methods:
            swap_calls(method, record, hard_swish, block)
            if fuse:
                fuse_graph(method, Places(target, keep), record, norm_first)
            if group:
                group_graph(method, Places(target, keep), record)
        _regenerate(methods, record, next(mod for mod in _REWRITING if arguments[mod]))
    if swish_rms:
        swish_rms_norms(Places(target, keep), record)
    _follow(record, before, _named(target))
    return target


def changes(model: torch.nn.Module) -> tuple[Change, ...]:
    """What :func:`apply` did to ``model`` (or to a model inside it: DDP, torch.compile), in order."""
    return tuple(_record_of(model)[1].changes)


def names(model: torch.nn.Module) -> dict[str, str]:
    """Name of each parameter and buffer of the original -> its name in ``model``, with the rows where it is a part
    (``q_k.weight[0:64]``). What was dropped or stored in another format is not there.
    """
    return dict(_record_of(model)[1].names or {})


def undo(model: torch.nn.Module, inplace: bool = False) -> torch.nn.Module:
    """A copy of ``model`` (``inplace``: itself) with all Mods taken back: the original structure with the present
    parameters. Dropped parameters return as they were; tables return in FP32 with the rounded rows.
    """
    _record_of(model)
    target = model if inplace else copy.deepcopy(model)
    owner, record = _record_of(target)
    record.edits.revert()
    del vars(owner)[_RECORD]
    return target


def _record_of(model: torch.nn.Module) -> tuple[torch.nn.Module, Record]:
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, found {type(model).__name__}")
    for module in model.modules():
        if _RECORD in vars(module):
            return module, vars(module)[_RECORD]
    raise ValueError("model: no Mods were applied to it; see octavo.loka.mods.apply")


def _check(model: object, arguments: dict[str, object]) -> None:
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, found {type(model).__name__}")
    asked = ("no_bias", "block_norm", "hard_swish", "swish_rms", "norm_first", "fuse", "group", "tables")
    if not any(arguments[name] for name in asked):
        raise ValueError(f"mods: none asked for; pass one or more of {', '.join(asked)}")
    block = arguments["block_norm"]
    if block is not None and (not isinstance(block, int) or (block <= 0 and block is not False)):
        raise ValueError(f"block_norm: expected a positive number of columns or None, found {block!r}")
    if arguments["norm_first"] and not arguments["fuse"]:
        raise ValueError("norm_first: places the norm inside fused layers; pass fuse=True with it")
    if arguments["swish_rms"] and (block or arguments["hard_swish"]):
        raise ValueError("swish_rms: replaces norm and activation, as block_norm and hard_swish do; choose one")
    if arguments["tables"] is not None:
        choice("tables", arguments["tables"], tuple(name for name in FORMATS if name != "fp32"))
    if hasattr(model, "_orig_mod") or isinstance(model, torch.nn.parallel.DistributedDataParallel):
        raise ValueError(f"model: is wrapped in {type(model).__name__}; apply Mods to the model inside, then wrap it")
    if not is_open(model) or is_list(model):
        raise ValueError(f"model: is itself a {type(model).__name__}; wrap it in torch.nn.Sequential to change it")


def _copied(model: torch.nn.Module, keep: Iterable[str], tables: str | None) -> torch.nn.Module:
    """A deep copy; tables that will be stored anew are not copied in between."""
    memo: dict[int, object] = {}
    if tables is not None:
        memo = {id(p.module): p.module for p, why in convertible(Places(model, keep), tables) if why is None}
    return copy.deepcopy(model, memo)


def _leave_closed(places: Places, record: Record, mod: str) -> None:
    """Says which of torch's modules keep their parts."""
    for place in places:
        kind = type(place.module)
        if not is_open(place.module) and kind.__module__.startswith("torch.") and any(place.module.children()):
            why = "a module of torch's own, whose code reads its parts; no Mod looks inside"
            record.changes.append(Change(place.path, mod, kind.__name__, None, why))


def _traced(places: Places, record: Record, mod: str | None) -> list[Method]:
    """The methods of all modules that have graphs; those that have none are reported where they hold linear layers."""
    found = []
    for path, host in places.hosts():
        if isinstance(host, torch.nn.Sequential) or is_list(host):
            continue
        for method in methods_of(path, host):
            if isinstance(method, Method):
                found.append(method)
            elif mod is not None and _has_linears(host):
                name, why = method
                record.changes.append(Change(path, mod, f"{type(host).__name__}.{name}", None, why))
    return found


def _has_linears(host: torch.nn.Module) -> bool:
    children = [c for child in host.children() for c in (child.children() if is_list(child) else (child,))]
    return any(is_linear(child) or isinstance(child, nn.LinearNorm) for child in children)


def _regenerate(methods: list[Method], record: Record, mod: str) -> None:
    by_host: dict[int, list[Method]] = {}
    for method in methods:
        if method.changed:
            by_host.setdefault(id(method.host), []).append(method)
    for changed in by_host.values():
        for method in changed:
            if method.frozen:
                note = f"keeps the present values of {', '.join(method.frozen)}; undo before you change them"
                before = f"{type(method.host).__name__}.{method.name}"
                record.changes.append(Change(method.path, mod, before, "made anew from its graph", note))
        record.edits.rewrite(changed[0].host, {method.name: method.compiled() for method in changed})


def _named(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}


def _follow(record: Record, before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> None:
    """Bring ``record.names`` up to date: tensors keep their identity, but for those that were merged."""
    now: dict[int, str] = {}
    for name, tensor in after.items():
        now.setdefault(id(tensor), name)
    steps = {name: name if after.get(name) is t else now[id(t)] for name, t in before.items() if id(t) in now}
    steps |= record.merged
    record.merged = {}
    if record.names is None:
        record.names = steps
        return
    bases = {old: new.partition("[") for old, new in record.names.items()}
    record.names = {old: _part(steps[base], rows) for old, (base, _, rows) in bases.items() if base in steps}


def _part(name: str, rows: str) -> str:
    """Rows ``begin:end]`` of ``name``, which may be rows of something itself."""
    if not rows:
        return name
    base, _, own = name.partition("[")
    start = int(own.partition(":")[0] or 0)
    begin, end = (start + int(edge) for edge in rows.rstrip("]").split(":"))
    return f"{base}[{begin}:{end}]"
