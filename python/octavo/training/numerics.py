"""Linear layers in low precision while they train: one class for all, or a plan. Masters stay FP32."""

from __future__ import annotations

import torch

from octavo import loka, nn
from octavo.config import PlanConfig
from octavo.data import Batch
from octavo.loka.installing import is_installed
from octavo.ops import dispatch
from octavo.ops.dispatch import Plan
from octavo.ops.dispatch.plan import canonical

FIRST_PLAN = 20  # updates in FP32 before the first plan: its errors are of inputs that have begun to look like any


def linear_layers(model: torch.nn.Module) -> dict[str, nn.Linear | nn.LinearNorm]:
    """octavo's linear layers by canonical path."""
    found = {canonical(path): module for path, module in model.named_modules(remove_duplicate=False)}
    return {path: module for path, module in found.items() if isinstance(module, nn.Linear | nn.LinearNorm)}


def run_all_in(model: torch.nn.Module, numerics: str) -> None:
    """Every linear layer in one class, from the next call on; a plan installed for training leaves the model."""
    if is_installed(model):
        loka.uninstall(model)
    for layer in linear_layers(model).values():
        layer.numerics, layer.preferred_kernels = numerics, {}


def follow(model: torch.nn.Module, plan: Plan) -> None:
    """Every layer's forward in the class, and by the kernels, that ``plan`` names; layers that share a weight share an
    entry."""
    layers = linear_layers(model)
    forward = plan.of_direction("forward")
    by_weight = {id(layers[entry.site].weight): entry for entry in forward if entry.site in layers}
    for layer in layers.values():
        entry = by_weight.get(id(layer.weight))
        if entry is not None:
            layer.numerics = entry.numerics
            layer.preferred_kernels = {int(m): name for m, name in entry.kernels.items()}


def training_plan(model: torch.nn.Module, batch: Batch, config: PlanConfig) -> Plan:
    """A plan for the layers' forward on ``batch``. Costs are the calibrated ones, not timed here: a run that is resumed
    on the same machine makes the plan it would have made."""
    part = batch.rows(0, min(len(batch), config.calibration_events))
    requirement = dispatch.Requirement(min_sqnr_db=config.min_sqnr_db)
    return dispatch.plan(model, part, requirement, measure_costs=False)
