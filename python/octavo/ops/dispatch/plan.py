"""Making a plan: see every linear layer's input once, measure each class's error there, choose."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from octavo.ops import errors
from octavo.ops._types import ALL_NUMERICS, choice
from octavo.ops.dispatch.choice import choose, judge
from octavo.ops.dispatch.measure import is_measured, measure
from octavo.ops.dispatch.plan_file import Plan, PlanEntry
from octavo.ops.dispatch.problem import Evidence, Problem, Requirement
from octavo.ops.epilogue import Norm, describe
from octavo.ops.linear_call import run
from octavo.ops.packing import pack_as

LOW_PRECISION = ("bf16", "e4m3_weight_only", "e4m3_row", "int8_dynamic")
M_BUCKETS = (1, 16, 128, 1024, 8192)  # the largest M of each; the last one stands for all above
_LONGEST_US = 2e3  # calls that are predicted to take longer are not timed for their bucket's sake
_ROWS = 4096  # rows of the batch that errors are measured on


@dataclass(frozen=True)
class Site:
    """A linear layer as it was met in one forward pass: its weight, what follows it, its input [M, K]."""

    path: str
    weight: torch.Tensor
    bias: torch.Tensor | None
    norm: Norm | None
    activation: str | None
    x: torch.Tensor

    @property
    def epilogue(self) -> str:
        return describe(self.bias is not None, self.norm.kind if self.norm else None, self.activation, None)

    def problem(self, m: int, numerics: str | None = None) -> Problem:
        """The site's call with m rows."""
        n, k = self.weight.shape
        dtype = str(self.x.dtype).removeprefix("torch.")
        return Problem("linear", m, n, k, dtype, dtype, self.epilogue, self.x.device.type, numerics)


def plan(model: torch.nn.Module, batch: Any, requirement: Requirement, *, measure_costs: bool = True) -> Plan:
    """Run ``model`` on ``batch`` once (a tuple is unpacked), in evaluation mode, and choose a class for every linear
    layer.

    Sites are ``torch.nn.Linear`` and octavo's ``nn.Linear`` and ``nn.LinearNorm`` modules; layers that share a weight
    are one site. Each class's errors are measured on the layer's real input before the epilogue's norm (``post_norm``:
    after it; of one output, of which a norm leaves nothing, the demand is on relative L1), and with ``measure_costs``
    the candidates are timed at the batch's M, and the chosen class's kernels at the M of every bucket whose calls are
    short. Low precision is chosen where it meets ``requirement`` and is the fastest; FP32 stays elsewhere. Raises
    ValueError when the model has no linear layer that ran.
    """
    if not isinstance(requirement, Requirement):
        raise TypeError(f"requirement: expected an octavo.ops.dispatch.Requirement, found {type(requirement).__name__}")
    return _build(model, batch, lambda site: _chosen(site, requirement, measure_costs))


def uniform_plan(model: torch.nn.Module, batch: Any, numerics: str) -> Plan:
    """Every linear layer in one class, whatever its error and cost: for comparisons."""
    choice("numerics", numerics, ALL_NUMERICS)
    return _build(model, batch, lambda site: _uniform(site, numerics))


def sites(model: torch.nn.Module, batch: Any) -> list[Site]:
    """Every linear layer that ran on ``batch``, in module order, with its input."""
    found: dict[str, Site] = {}
    first_path: dict[int, str] = {}
    hooks = []
    for path, module in model.named_modules():
        if not is_linear(module):
            continue
        name = first_path.setdefault(weight_key(module), canonical(path))
        hooks.append(module.register_forward_pre_hook(_recorder(name, found), with_kwargs=True))
    training = model.training
    try:
        model.eval()
        with torch.no_grad():
            model(*batch) if isinstance(batch, tuple) else model(batch)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    if not found:
        raise ValueError("model: no torch.nn.Linear, octavo.nn.Linear or octavo.nn.LinearNorm ran on this batch")
    order = list(dict.fromkeys(first_path.values()))
    return sorted(found.values(), key=lambda site: order.index(site.path))


def canonical(path: str) -> str:
    """A module's path without the prefixes of DDP, torch.compile and FSDP."""
    wrappers = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
    return ".".join(part for part in path.split(".") if part not in wrappers)


def is_linear(module: torch.nn.Module) -> bool:
    """Whether ``module`` is a site of plans: octavo's, or a ``torch.nn.Linear`` without a forward of its own."""
    if getattr(module, "is_octavo_linear", False):
        return True
    return isinstance(module, torch.nn.Linear) and type(module).forward is torch.nn.Linear.forward


def weight_key(module: torch.nn.Module) -> int:
    """The same for layers that share their weight, as long as these live. A weight that is computed anew whenever it is
    read (``torch.nn.utils.parametrizations``) is the module's own."""
    return id(module._parameters.get("weight", module))


def _recorder(path: str, found: dict[str, Site]) -> Callable[..., None]:
    def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else kwargs["x" if "x" in kwargs else "input"]
        rows = x.detach().reshape(-1, x.shape[-1])
        if path not in found:
            norm, activation = getattr(module, "norm_spec", None), getattr(module, "activation", None)
            found[path] = Site(path, module.weight.detach(), module.bias, norm, activation, rows.clone())

    return hook


def _build(model: torch.nn.Module, batch: Any, entry: Callable[[Site], PlanEntry]) -> Plan:
    return Plan(tuple(entry(site) for site in sites(model, batch)))


def _chosen(site: Site, requirement: Requirement, measure_costs: bool) -> PlanEntry:
    measured = {numerics: site_errors(site, numerics) for numerics in LOW_PRECISION if _is_served(site, numerics)}
    problem = site.problem(site.x.shape[0])
    if measure_costs and not is_measured(problem):
        measure(problem)
    decision = choose(problem, requirement, Evidence(measured))
    if measure_costs:
        _measure_buckets(site, decision.numerics)
    return _entry(site, decision.numerics, measured, requirement, decision.predicted_us, decision.reason)


def _measure_buckets(site: Site, numerics: str) -> None:
    """Time the class's kernels at each bucket's largest M, where there is a choice and a call is short."""
    for m in M_BUCKETS:
        problem = site.problem(m, numerics)
        admitted = [c for c in judge(problem).candidates if c.admitted]
        if len(admitted) > 1 and admitted[0].source != "measured" and admitted[0].predicted_us <= _LONGEST_US:
            measure(problem, budget_ms=1.0)


def _is_served(site: Site, numerics: str) -> bool:
    """Whether a kernel of this class may run here with the FP32 output that errors are measured on."""
    problem = dataclasses.replace(site.problem(min(site.x.shape[0], _ROWS), numerics), out_dtype="float32", epilogue="")
    return any(candidate.admitted for candidate in judge(problem).candidates)


def _uniform(site: Site, numerics: str) -> PlanEntry:
    measured = {} if numerics == "fp32" else {numerics: site_errors(site, numerics)}
    return _entry(site, numerics, measured, Requirement(), None, "uniform plan")


def _entry(
    site: Site,
    numerics: str,
    measured: dict[str, dict[str, float]],
    requirement: Requirement,
    us: float | None,
    reason: str,
) -> PlanEntry:
    n, k = site.weight.shape
    buckets = {str(m): choose(site.problem(m, numerics)).kernel for m in M_BUCKETS}
    return PlanEntry(
        site.path, n, k, site.epilogue, numerics, "forward", buckets, requirement.demands(), measured, us, reason
    )


def site_errors(site: Site, numerics: str) -> dict[str, float]:
    """Errors of one class at a site against FP64 (x W^T + bias), by the names of :class:`Requirement`'s metrics."""
    x = site.x[:_ROWS]
    if x.shape[0] == 0:
        raise ValueError(f"batch: {site.path} saw no rows; plan on a batch with examples")
    weight = site.weight.float()
    bias = None if site.bias is None else site.bias.detach().float()
    ref = x.double() @ weight.double().T
    if bias is not None:
        ref += bias.double()
    y = run(x, pack_as(weight, numerics), bias, out_dtype=torch.float32)
    return {
        "sqnr_db": errors.sqnr_db(y, ref),
        "rel_l1": errors.relative_l1(y, ref),
        "mere": errors.mere(y, ref),
        "signal_rel": errors.signal_relative(y, ref),
        "post_norm": errors.next_layer_error(y, ref, site.norm),
    }
