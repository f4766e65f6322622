"""Applying a plan to a model."""

from __future__ import annotations

import copy
import warnings

import torch
from torch.nn.utils.parametrize import is_parametrized

from octavo.nn.linear import Linear, LinearNorm
from octavo.ops.dispatch import Plan
from octavo.ops.dispatch.plan import canonical, is_linear, weight_key


def convert(model: torch.nn.Module, plan: Plan) -> torch.nn.Module:
    """A copy of ``model`` for inference whose linear layers run in the classes that ``plan`` names.

    The copy owns its parameters (tables included) and is in evaluation mode; ``model`` is not touched.
    ``torch.nn.Linear`` modules become octavo's, parametrized ones with the weight of this moment; a
    ``torch.nn.TransformerEncoderLayer`` with one in low precision does without torch's fused inference path. Layers
    that share a weight keep sharing it. The plan's preferred kernels serve where they may. A preferred kernel that this
    machine lacks is reported as a warning and another of the same class runs. Entries of gradients are left out.

    Raises ValueError when the plan names a site the model does not have, one of another shape, or, in low precision,
    one that is no linear layer or has a forward of its own.
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
        module = converted.get_submodule(paths[entry.site])
        weight = module.weight
        shape = list(weight.shape) if isinstance(weight, torch.Tensor) else type(weight).__name__
        if shape != [entry.n, entry.k]:
            raise ValueError(f"plan: {entry.site} is [{entry.n}, {entry.k}] in the plan but {shape} in the model")
        if not is_linear(module) and entry.numerics != "fp32":
            raise ValueError(
                f"plan: {entry.site} is a {type(module).__name__} in the model, no linear layer or one with a forward "
                f"of its own; leave it out of the plan"
            )
        by_weight[weight_key(module)] = entry
    for module in list(converted.modules()):
        planned = by_weight.get(weight_key(module))
        if planned is None or not is_linear(module):
            continue
        layer = adopt(module)
        if planned.numerics != "fp32":  # kernels take biases and norms in FP32, whatever the weight's type
            for parameter in layer.parameters():
                if parameter.dim() == 1:
                    parameter.data = parameter.data.float()
        layer.numerics = planned.numerics
        layer.preferred_kernels = {int(m): name for m, name in planned.kernels.items()}
    for module in converted.modules():
        if isinstance(module, torch.nn.TransformerEncoderLayer) and _has_low_precision(module):
            module.activation_relu_or_gelu = 0  # torch's fused layer would read the FP32 weights
        if isinstance(module, torch.nn.TransformerEncoder) and _has_low_precision(module):
            module.use_nested_tensor = False  # which the layers take in the fused path alone
    for parameter in converted.parameters():
        parameter.requires_grad_(False)
    for module in converted.modules():
        if isinstance(module, Linear | LinearNorm) and module.numerics != "fp32":
            module.packed()
    return converted


def _has_low_precision(module: torch.nn.Module) -> bool:
    return any(isinstance(m, Linear | LinearNorm) and m.numerics != "fp32" for m in module.modules())


def adopt(module: torch.nn.Module) -> Linear | LinearNorm:
    """A linear layer (:func:`octavo.ops.dispatch.plan.is_linear`) itself as octavo's: of a ``torch.nn.Linear`` the
    class changes, in which a subclass's other methods stay; what a parametrization makes becomes its parameters."""
    if is_parametrized(module):  # torch's remove_parametrizations would change the class, which copies share
        names = [name for name, _ in module.get_submodule("parametrizations").named_children()]
        made = {name: getattr(module, name).detach().clone() for name in names}
        del module._modules["parametrizations"]
        (module.__class__,) = type(module).__bases__
        for name, value in made.items():
            setattr(module, name, torch.nn.Parameter(value))
    kind = type(module)
    if kind is torch.nn.Linear:
        module.__class__ = Linear
    elif not isinstance(module, Linear | LinearNorm):
        fixed = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
        module.__class__ = type(kind.__name__, (Linear, kind), fixed)
    assert isinstance(module, Linear | LinearNorm)
    return module
