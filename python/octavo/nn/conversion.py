"""Applying a plan to a model."""

from __future__ import annotations

import copy
import warnings

import torch

from octavo.nn.linear import Linear, LinearNorm
from octavo.ops.dispatch import Plan
from octavo.ops.dispatch.plan import canonical


def convert(model: torch.nn.Module, plan: Plan) -> torch.nn.Module:
    """A copy of ``model`` for inference whose linear layers run in the classes that ``plan`` names.

    The copy owns its parameters (tables included) and is in evaluation mode; ``model`` is not touched.
    ``torch.nn.Linear`` modules become octavo's. Layers that share a weight keep sharing it. The plan's preferred
    kernels serve where they may. A preferred kernel that this machine lacks is reported as a warning and another of the
    same class runs. Entries of gradients are left out.

    Raises ValueError when the plan names a site the model does not have, or one of another shape.
    """
    if not isinstance(plan, Plan):
        raise TypeError(f"plan: expected an octavo.ops.dispatch.Plan, found {type(plan).__name__}")
    plan = plan.of_direction("forward")
    converted = copy.deepcopy(model).eval()
    paths = {canonical(path): path for path, _ in converted.named_modules(remove_duplicate=False)}
    unknown = [entry.site for entry in plan if entry.site not in paths]
    if unknown:
        raise ValueError(f"plan: the model has no module {', '.join(unknown)}; make the plan from this model")
    for site, names in plan.missing_kernels().items():
        warnings.warn(
            f"plan: {site} prefers {', '.join(names)}, which this machine lacks; using its class", stacklevel=2
        )
    by_weight = {}
    for entry in plan:
        weight = converted.get_submodule(paths[entry.site]).weight
        shape = list(weight.shape) if isinstance(weight, torch.Tensor) else type(weight).__name__
        if shape != [entry.n, entry.k]:
            raise ValueError(f"plan: {entry.site} is [{entry.n}, {entry.k}] in the plan but {shape} in the model")
        by_weight[id(weight)] = entry
    for path, module in list(converted.named_modules(remove_duplicate=False)):
        planned = by_weight.get(id(getattr(module, "weight", None)))
        if planned is None or not isinstance(module, torch.nn.Linear | LinearNorm):
            continue
        target = module if isinstance(module, Linear | LinearNorm) else _replaced(converted, path, module)
        target.numerics = planned.numerics
        target.preferred_kernels = {int(m): name for m, name in planned.kernels.items()}
    for parameter in converted.parameters():
        parameter.requires_grad_(False)
    for module in converted.modules():
        if isinstance(module, Linear | LinearNorm) and module.numerics != "fp32":
            module.packed()
    return converted


def _replaced(model: torch.nn.Module, path: str, module: torch.nn.Linear) -> Linear:
    """octavo's Linear with ``module``'s parameters in its place (``model`` itself when the path is empty)."""
    if not path:
        raise ValueError("model: is itself a torch.nn.Linear; wrap it in torch.nn.Sequential to convert it")
    layer = Linear(module.in_features, module.out_features, module.bias is not None, device="meta")
    layer.weight, layer.bias = module.weight, module.bias
    layer.train(module.training)
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, layer)
    return layer
