"""The linear layers of a model as Probe sees them: found once, and watched while one step runs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from octavo.loka.layers import epilogue_of, linear_layers, why_left_alone
from octavo.loka.statistics import Statistics
from octavo.loka.weight_model import WeightModel
from octavo.ops import Norm, QuantizedTensor
from octavo.ops.dispatch import Problem
from octavo.ops.epilogue_backward import epilogue_backward
from octavo.ops.quantization import as_rows

DTYPES = ("float32", "bfloat16")
log = logging.getLogger("octavo.loka")


@dataclass
class ProbedSite:
    """A linear layer [n, k]: the modules that share its weight, and what was seen of its input and its gradient.

    ``gradient`` is of x W^T + bias: what kernels of grad_input and grad_weight multiply. ``m``, ``dtype``: rows and
    type of the largest call seen (the last batch may be a remainder), 0 before the first.
    """

    path: str
    modules: list[torch.nn.Module]
    n: int
    k: int
    input: Statistics
    gradient: Statistics
    weights: WeightModel | None
    m: int = 0
    dtype: str = DTYPES[0]

    @property
    def weight(self) -> torch.Tensor:
        """[n, k] FP32 on the CPU, as it is now."""
        weight: Any = self.modules[0].weight
        return weight.detach().to("cpu", torch.float32)  # type: ignore[no-any-return]

    @property
    def device(self) -> str:
        """Where the layer is, ``cpu`` or ``cuda``: costs are of there, errors of the CPU's kernels of a class, which
        round alike."""
        weight: Any = self.modules[0].weight
        return str(weight.device.type)

    @property
    def bias(self) -> torch.Tensor | None:
        bias: Any = self.modules[0].bias
        return None if bias is None else bias.detach().to("cpu", torch.float32)

    @property
    def norm(self) -> Norm | None:
        """The norm inside the layer, or None."""
        return getattr(self.modules[0], "norm_spec", None)

    @property
    def cpu_norm(self) -> Norm | None:
        """The same in FP32 on the CPU."""
        norm = self.norm
        if norm is None:
            return None
        weight, bias = (None if v is None else v.detach().to("cpu", torch.float32) for v in (norm.weight, norm.bias))
        return Norm(norm.kind, weight, bias, norm.eps, norm.block)

    @property
    def activation(self) -> str | None:
        """The activation inside the layer, or None."""
        return getattr(self.modules[0], "activation", None)

    @property
    def epilogue(self) -> str:
        return epilogue_of(self.modules[0])

    def problem(self, m: int) -> Problem:
        """Its call with m rows, in any class."""
        return Problem("linear", m, self.n, self.k, self.dtype, self.dtype, self.epilogue, self.device)


def find_sites(model: torch.nn.Module, tails: bool, models_weights: bool) -> dict[str, ProbedSite]:
    """Every linear layer that a plan can be installed in by its path, layers that share a weight as one; others are
    named in the log. Raises ValueError when there is none."""
    found: dict[str, ProbedSite] = {}
    for path, modules in linear_layers(model).items():
        why = next((why for module in modules if (why := why_left_alone(module))), None)
        if why is not None:
            log.warning("probe: %s is left alone: it %s", path, why)
            continue
        weight: Any = modules[0].weight
        if torch.nn.parameter.is_lazy(weight) or weight.dim() != 2:
            raise ValueError(f"model: {path} has no weight [n, k] yet; run the model once before the Probe")
        n, k = weight.shape
        moving = WeightModel(n, k) if models_weights else None
        found[path] = ProbedSite(path, modules, n, k, Statistics(k, tails), Statistics(n, tails), moving)
    if not found:
        raise ValueError("model: has no torch.nn.Linear, octavo.nn.Linear or octavo.nn.LinearNorm to probe")
    return found


def watch(sites: dict[str, ProbedSite], most_rows: int) -> ExitStack:
    """Hooks that feed the sites until the stack is closed, at most ``most_rows`` rows of a call."""
    stack = ExitStack()
    for site in sites.values():
        for module in site.modules:
            handle = module.register_forward_hook(_Watcher(site, most_rows), with_kwargs=True)
            stack.callback(handle.remove)
    return stack


def no_hook(*_: Any, **__: Any) -> None:
    """What copies of a watched model have in the hooks' place: the Probe watches the model it was given alone."""


def _no_hook() -> Callable[..., None]:
    return no_hook


class _Watcher:
    """The forward hook of one site."""

    def __init__(self, site: ProbedSite, most_rows: int) -> None:
        self._site, self._most_rows = site, most_rows

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        return no_hook

    def __reduce__(self) -> tuple[Callable[[], Callable[..., None]], tuple[()]]:
        return _no_hook, ()

    @torch.no_grad()
    def __call__(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        site, most = self._site, self._most_rows
        x = args[0] if args else kwargs["x" if "x" in kwargs else "input"]
        x = x.dequantize() if isinstance(x, QuantizedTensor) else x
        m = x.shape[:-1].numel()
        if m == 0:
            return
        if m >= site.m:
            site.m, site.dtype = m, "bfloat16" if x.dtype == torch.bfloat16 else "float32"
        picks = picked_rows(m, most, site.input.rows)
        rows = rows_of(x, picks)
        site.input.observe(rows)
        if not isinstance(output, torch.Tensor) or not output.requires_grad:
            return
        has_epilogue = site.norm is not None or site.activation is not None
        output.register_hook(_gradient_watcher(site, rows if has_epilogue else None, picks))


def _gradient_watcher(
    site: ProbedSite, x: torch.Tensor | None, picks: torch.Tensor | None
) -> Callable[[torch.Tensor], None]:
    """Of the layer's output. Where norm and activation are inside the layer, what they saw is computed again for the
    rows picked, in FP32, and the gradient carried through them."""

    @torch.no_grad()
    def hook(grad: torch.Tensor) -> None:
        rows = rows_of(grad, picks)
        if x is not None:
            weight, bias = site.weight, site.bias
            z = torch.nn.functional.linear(x.float(), weight, bias)
            rows, _, _ = epilogue_backward(rows.float(), z, site.cpu_norm, site.activation)
        site.gradient.observe(rows.contiguous())

    return hook


def picked_rows(m: int, most: int, seed: int) -> torch.Tensor | None:
    """One row at random of each of ``most`` equal parts of m rows; None: all. Equal steps would fall in with what rows
    are made of: a layer over [B, D, tokens] would see the same few of D."""
    if m <= most:
        return None
    inside = torch.rand(most, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return ((torch.arange(most) + inside) * (m / most)).long().clamp_max(m - 1)


def rows_of(x: torch.Tensor, picks: torch.Tensor | None) -> torch.Tensor:
    """The picked rows of x [..., K] as a matrix on the CPU, float32 or bfloat16; a copy, whatever becomes of x."""
    rows = as_rows(x.detach())
    if picks is not None:
        rows = rows[picks.to(rows.device)]
    dtype = torch.bfloat16 if rows.dtype == torch.bfloat16 else torch.float32
    copy = rows.to("cpu", dtype)
    return copy.clone() if copy.data_ptr() == x.data_ptr() else copy


def parts_of(site: ProbedSite) -> Iterator[tuple[str, Statistics | WeightModel]]:
    """The site's mergeable states by name."""
    yield "input", site.input
    yield "gradient", site.gradient
    if site.weights is not None:
        yield "weight", site.weights
