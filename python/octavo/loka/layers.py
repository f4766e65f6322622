"""The linear layers of a model: where they are, which of them plans are for, what tells models apart."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.utils.parametrize import is_parametrized

from octavo import nn
from octavo._files import content_hash
from octavo.ops.dispatch.plan import canonical, is_linear, weight_key
from octavo.ops.epilogue import describe

Layer = nn.Linear | nn.LinearNorm


def is_layer(module: torch.nn.Module) -> bool:
    """Whether ``module`` is a linear layer, one that plans are left out of among them."""
    return isinstance(module, torch.nn.Linear | nn.LinearNorm)


def why_left_alone(module: torch.nn.Module) -> str | None:
    """Why a linear layer cannot follow a plan, as the end of a sentence; None when it can."""
    if is_parametrized(module):
        return "is parametrized, its weight is computed anew in each call"
    return None if is_linear(module) else f"is a {type(module).__name__}, whose forward is its own"


def linear_layers(model: torch.nn.Module) -> dict[str, list[torch.nn.Module]]:
    """Every linear layer by its canonical path, in module order, layers that share a weight under the first one's."""
    found: dict[int, tuple[str, list[torch.nn.Module]]] = {}
    for path, module in model.named_modules():
        if is_layer(module):
            found.setdefault(weight_key(module), (canonical(path), []))[1].append(module)
    return dict(found.values())


def epilogue_of(module: torch.nn.Module) -> str:
    """What a linear layer does after its product, as plans name it: ``bias+layer+hardswish``."""
    norm = getattr(module, "norm_spec", None)
    return describe(module.bias is not None, norm.kind if norm else None, getattr(module, "activation", None), None)


def fingerprint(model: torch.nn.Module, epilogues: bool = True) -> str:
    """SHA-256 (hex) over the linear layers' paths, shapes and epilogues. ``epilogues=False``: without these, as states
    and plans were marked before."""
    described = []
    for path, (module, *_) in linear_layers(model).items():
        weight: Any = module.weight
        shape = [] if torch.nn.parameter.is_lazy(weight) else list(weight.shape)
        described.append([path, *shape, *([epilogue_of(module)] if epilogues else [])])
    return content_hash({"sites": described})


def is_of(model: torch.nn.Module, mark: str | None) -> bool:
    """Whether a fingerprint is the model's, with or without epilogues; None, of what bears none, is anyone's."""
    return mark in (None, fingerprint(model), fingerprint(model, epilogues=False))
