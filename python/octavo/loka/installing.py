"""Putting a plan into a model: each layer's forward, grad_input and grad_weight in the classes of its entries."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from octavo import nn
from octavo.loka.identity import machine
from octavo.loka.layers import Layer, epilogue_of, fingerprint, is_layer, is_of, linear_layers, why_left_alone
from octavo.nn.conversion import adopt
from octavo.ops.dispatch import Plan, PlanEntry
from octavo.ops.dispatch.plan import canonical, weight_key
from octavo.ops.linear_backward import backward_classes

log = logging.getLogger("octavo.loka")
_ROUTED = ("_numerics", "_backward", "_classes", "_forward_codes", "_backward_codes", "preferred_kernels")
_BEFORE, _ENTRIES = "_loka_before", "_loka_entries"  # on a layer: what it was, and its entries by direction


def install(model: torch.nn.Module, plan: Plan, training: bool | None = None) -> torch.nn.Module:
    """``model`` under ``plan``.

    For inference (``training=False``): a copy in evaluation mode that owns its parameters, as :func:`octavo.nn.convert`
    makes it. For training: ``model`` itself, whose layers are routed from the next call on: the forward, the gradient
    of the input and that of the weight each in the class of its entry, in FP32 where the plan has none. Parameters stay
    the same tensors in FP32, so optimizers, hooks, DDP and state dicts go on as they are; ``torch.nn.Linear`` modules
    turn into octavo's in their place (subclasses keep their other methods). :func:`uninstall` undoes it; installing
    again replaces the earlier plan. ``training=None``: as the model's own mode says.

    Layers that share a weight follow one entry. On another machine than the plan's, classes stay, kernels are chosen
    again, and the log of ``octavo.loka`` says so; it also names the sites that are left alone: planned in FP32
    throughout, with a forward of their own or parametrized. Raises ValueError, and changes nothing, when the plan was
    made for another model (``plan.origin["model"]``), names a site that the model does not have, one of another shape
    or epilogue, in low precision one that would be left alone, or, for training, one whose weight is not FP32.
    """
    if not isinstance(plan, Plan):
        raise TypeError(f"plan: expected an octavo.ops.dispatch.Plan, found {type(plan).__name__}")
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, found {type(model).__name__}")
    if training is None:
        training = model.training
    plan = _without_left_alone(model, plan)
    by_weight = _fitted(model, plan, training)
    _expect_same_model(model, plan)
    made_on = plan.origin.get("machine")
    if made_on is not None and made_on != machine():
        log.warning("install: the plan was made on %s, this is %s; classes stay, kernels are chosen again", made_on,
                    machine())  # fmt: skip
        plan = _without_kernels(plan)
        by_weight = _fitted(model, plan, training)
    if not training:
        converted = nn.convert(model, plan)
        twins = dict(converted.named_modules(remove_duplicate=False))
        for path, _, entries in _planned(model, by_weight):
            twins[path].__dict__.pop(_BEFORE, None)
            setattr(twins[path], _ENTRIES, entries)
        return converted
    for site, names in plan.missing_kernels().items():
        log.warning("install: %s prefers %s, which this machine lacks; using its class", site, ", ".join(names))
    if is_installed(model):
        uninstall(model)
    for _, module, entries in list(_planned(model, by_weight)):
        setattr(module, _BEFORE, (type(module), {k: v for k, v in module.__dict__.items() if k in _ROUTED}))
        _route(adopt(module), entries)
    return model


def uninstall(model: torch.nn.Module) -> torch.nn.Module:
    """``model`` as it was before it was installed for training, with the parameters it has now. Raises ValueError when
    no plan is installed."""
    if not is_installed(model):
        raise ValueError("model: has no plan installed for training; what install made for inference is a copy")
    for module in model.modules():
        before = module.__dict__.pop(_BEFORE, None)
        if before is None:
            continue
        module.__dict__.pop(_ENTRIES, None)
        for name in _ROUTED:
            module.__dict__.pop(name, None)
        module.__class__ = before[0]
        module.__dict__.update(before[1])
    return model


def is_installed(model: torch.nn.Module) -> bool:
    """Whether a plan was installed for training."""
    return any(_BEFORE in module.__dict__ for module in model.modules())


@dataclass
class Installed:
    """A site that follows a plan: the layers that share its weight, its entries by direction."""

    layers: list[Layer]
    entries: Mapping[str, PlanEntry]

    @property
    def is_low(self) -> bool:
        """Whether a direction runs in low precision."""
        return _is_low(self.entries)


def runs_low(module: torch.nn.Module) -> bool:
    """Whether a plan has a direction of this layer in low precision now."""
    return _is_low(module.__dict__.get(_ENTRIES, {}))


def _is_low(entries: Mapping[str, PlanEntry]) -> bool:
    return any(entry.numerics != "fp32" for entry in entries.values())


def installed(model: torch.nn.Module) -> dict[str, Installed]:
    """The sites that follow a plan, in module order."""
    found: dict[str, Installed] = {}
    for module in model.modules():
        entries = module.__dict__.get(_ENTRIES)
        if entries and isinstance(module, Layer):
            site = next(iter(entries.values())).site
            found.setdefault(site, Installed([], entries)).layers.append(module)
    return found


def to_high_precision(site: Installed, reason: str) -> None:
    """All directions of a site in FP32 from the next call on."""
    changed = {
        direction: replace(entry, numerics="fp32", kernels={}, predicted_us=None, reason=reason)
        for direction, entry in site.entries.items()
    }
    for layer in site.layers:
        _route(layer, changed)


def _route(layer: Layer, entries: Mapping[str, PlanEntry]) -> None:
    forward = entries.get("forward")
    layer.numerics = "fp32" if forward is None else forward.numerics
    layer.preferred_kernels = {} if forward is None else {int(m): name for m, name in forward.kernels.items()}
    layer.backward_numerics = (_class_of(entries, "grad_input"), _class_of(entries, "grad_weight"))
    setattr(layer, _ENTRIES, dict(entries))


def _class_of(entries: Mapping[str, PlanEntry], direction: str) -> str:
    return entries[direction].numerics if direction in entries else "fp32"


def _planned(
    model: torch.nn.Module, by_weight: Mapping[int, Mapping[str, PlanEntry]]
) -> Iterator[tuple[str, torch.nn.Module, Mapping[str, PlanEntry]]]:
    """Path, module and entries of every linear layer whose weight is planned."""
    for path, module in model.named_modules():
        entries = by_weight.get(weight_key(module))
        if entries is not None and is_layer(module) and why_left_alone(module) is None:
            yield path, module, entries


def _expect_same_model(model: torch.nn.Module, plan: Plan) -> None:
    made_for = plan.origin.get("model")
    if is_of(model, made_for):
        return
    others = sorted(linear_layers(model).keys() - {entry.site for entry in plan})
    raise ValueError(
        f"plan: was made for the model {made_for}, this one is {fingerprint(model)}: its linear layers are others or "
        f"otherwise tied"
        + (f" (the plan says nothing of {', '.join(others[:5])})" if others else "")
        + "; probe this model"
    )


def _without_left_alone(model: torch.nn.Module, plan: Plan) -> Plan:
    """``plan`` without the sites in FP32 throughout that cannot follow one."""
    low = {entry.site for entry in plan if entry.numerics != "fp32"}
    paths = {canonical(path): module for path, module in model.named_modules(remove_duplicate=False)}
    left: dict[str, str] = {}
    for entry in plan:
        module = paths.get(entry.site)
        if module is None or entry.site in low or not is_layer(module):
            continue
        why = why_left_alone(module)
        if why is not None:
            _refuse_shape(module, entry, f"plan: {entry.site}")
            left[entry.site] = why
    for site, why in left.items():
        log.warning("install: %s stays as it is, in FP32 as planned: it %s", site, why)
    return Plan(tuple(entry for entry in plan if entry.site not in left), plan.origin)


def _fitted(model: torch.nn.Module, plan: Plan, training: bool) -> dict[int, dict[str, PlanEntry]]:
    """Entries by direction of every planned weight. Raises ValueError for the first that does not fit the model."""
    paths = {canonical(path): module for path, module in model.named_modules(remove_duplicate=False)}
    unknown = sorted({entry.site for entry in plan if entry.site not in paths})
    if unknown:
        here = ", ".join(path for path, module in paths.items() if is_layer(module)) or "none"
        raise ValueError(
            f"plan: the model has no module {', '.join(unknown)}; its linear layers are {here}. The plan was made from "
            f"another model: probe this one"
        )
    by_weight: dict[int, dict[str, PlanEntry]] = {}
    for entry in plan:
        module = paths[entry.site]
        _refuse(module, entry)
        directions = by_weight.setdefault(weight_key(module), {})
        if entry.direction in directions:
            raise ValueError(
                f"plan: {entry.site} and {directions[entry.direction].site} share a weight in the model but have an "
                f"entry of {entry.direction} each; keep one of them"
            )
        directions[entry.direction] = entry
        backward_classes((_class_of(directions, "grad_input"), _class_of(directions, "grad_weight")))
        if training and module.weight.dtype != torch.float32:
            raise ValueError(
                f"plan: {entry.site} has a weight of {module.weight.dtype}; masters that are trained are FP32, use "
                f"model.float() first"
            )
    for module in paths.values():  # others that share a planned weight
        entries = by_weight.get(weight_key(module)) if is_layer(module) else None
        if entries is not None and any(entry.numerics != "fp32" for entry in entries.values()):
            _refuse(module, next(iter(entries.values())), is_twin=True)
    return by_weight


def _refuse(module: torch.nn.Module, entry: PlanEntry, is_twin: bool = False) -> None:
    where = f"plan: {entry.site}" + (" shares its weight with a layer that" if is_twin else "")
    if not is_layer(module):
        raise ValueError(f"{where} is a {type(module).__name__} in the model, not a linear layer; probe this model")
    why = why_left_alone(module)
    if why is not None:
        raise ValueError(f"{where} {why}; leave it out of the plan or make it a plain torch.nn.Linear")
    weight = _refuse_shape(module, entry, where)
    if weight.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"{where} has a weight of {weight.dtype}; plans are for float32 and bfloat16, use .float()")
    if is_twin:
        return
    epilogue = epilogue_of(module)
    if epilogue != entry.epilogue:
        raise ValueError(
            f"{where} has the epilogue {entry.epilogue or 'none'!r} in the plan but {epilogue or 'none'!r} in the "
            f"model; its errors are others, probe this model"
        )


def _refuse_shape(module: torch.nn.Module, entry: PlanEntry, where: str) -> torch.Tensor:
    """The layer's weight, refused when it is not of the plan's shape."""
    weight: Any = module.weight
    if not isinstance(weight, torch.Tensor) or list(weight.shape) != [entry.n, entry.k]:
        shape = list(weight.shape) if isinstance(weight, torch.Tensor) else type(weight).__name__
        raise ValueError(f"{where} is [{entry.n}, {entry.k}] in the plan but {shape} in the model; probe this model")
    return weight


def _without_kernels(plan: Plan) -> Plan:
    return Plan(tuple(replace(entry, kernels={}) for entry in plan), plan.origin)
