"""Peers of linear + bias + LayerNorm + hardswish: torch in FP32 and BF16, its INT8 and E4M3 routes, torchao.

FBGEMM's own INT8 linear on a CPU is torch's ``quantize_dynamic`` with the x86 engine; fbgemm-gpu-cpu has no other.
Compiled peers: inductor, one graph for any batch (dynamic), weights frozen; M = 1 gets a graph of its own, as
torch.compile gives it.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Callable

import harness
import peers
import torch
from torch.nn import functional

Build = Callable[[], Callable[[torch.Tensor], torch.Tensor]]
IO = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Layer(torch.nn.Module):
    """The layer as a torch user writes it."""

    def __init__(self, n: int, k: int) -> None:
        super().__init__()
        self.linear, self.norm = torch.nn.Linear(k, n), torch.nn.LayerNorm(n)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.hardswish(self.norm(self.linear(x)))


class IntMm(torch.nn.Module):
    """Row-wise dynamic INT8 by hand around ``torch._int_mm``."""

    codes: torch.Tensor
    scale: torch.Tensor

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        weight = layer.linear.weight.detach()
        scale = weight.abs().amax(1) / 127
        self.register_buffer("codes", (weight / scale[:, None]).round().to(torch.int8).T.contiguous().T)
        self.register_buffer("scale", scale)
        self.bias, self.norm = layer.linear.bias, layer.norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values = x.float()
        scale = values.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
        codes = (values / scale).round().to(torch.int8)
        z = torch._int_mm(codes, self.codes.T).float() * scale * self.scale + self.bias
        return functional.hardswish(self.norm(z)).to(x.dtype)


class ScaledMm(torch.nn.Module):
    """Row-wise E4M3 by hand around ``torch._scaled_mm``."""

    codes: torch.Tensor
    scale: torch.Tensor

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        codes, scale = _e4m3_rows(layer.linear.weight.detach())
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)
        self.bias, self.norm = layer.linear.bias, layer.norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        codes, scale = _e4m3_rows(x.float())
        z = torch._scaled_mm(codes, self.codes.T, scale, self.scale.T, out_dtype=torch.float32) + self.bias
        return functional.hardswish(self.norm(z)).to(x.dtype)


def _e4m3_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scale = x.abs().amax(1, keepdim=True).clamp_min(1e-12) / 448
    return (x / scale).to(torch.float8_e4m3fn), scale


def layer_of(n: int, k: int) -> Layer:
    """A layer with its own affine norm."""
    torch.manual_seed(n + k)
    layer = Layer(n, k).eval()
    with torch.no_grad():
        layer.norm.weight.uniform_(0.5, 1.5)
        layer.norm.bias.normal_(0, 0.1)
    return layer.requires_grad_(False)


def compiled(
    module: torch.nn.Module, mode: str | None = None, dynamic: bool = True
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The module through inductor: frozen weights, any number of rows or, not ``dynamic``, each compiled for itself."""
    from torch._inductor import config

    config.freezing = True
    config.autotune_num_choices_displayed = 0
    torch._dynamo.config.fail_on_recompile_limit_hit = True  # never eager under a compiled peer's name
    return torch.compile(with_own_code(module), dynamic=dynamic, mode=mode)


def with_own_code(module: torch.nn.Module) -> torch.nn.Module:
    """The module with a copy of its forward's code. Dynamo keeps what it compiled by code object and tries all of it in
    turn: peers of one class would pay for each other's guards."""
    kind = type(module)
    forward = types.FunctionType(kind.forward.__code__.replace(), kind.forward.__globals__, "forward")
    module.__class__ = type(kind.__name__, (kind,), {"forward": forward})
    return module


def quantized_dynamic(layer: Layer) -> torch.nn.Module:
    """torch.ao.quantization.quantize_dynamic with the x86 engine (FBGEMM and oneDNN): FP32 in and out."""
    torch.backends.quantized.engine = "x86"
    quantized: torch.nn.Module = torch.ao.quantization.quantize_dynamic(
        copy.deepcopy(layer), {torch.nn.Linear}, dtype=torch.qint8
    )
    return quantized


def torchao_int8(layer: torch.nn.Module) -> torch.nn.Module:
    """torchao's Int8DynamicActivationInt8Weight."""
    quantization = peers.quietly("torchao.quantization")
    module = copy.deepcopy(layer)
    quantization.quantize_(module, quantization.Int8DynamicActivationInt8WeightConfig())
    return module


def recipes(layer: Layer, io: str) -> dict[str, tuple[str, str, Build]]:
    """name -> (group, numerics, how to build it), for one type at the boundary."""
    own = copy.deepcopy(layer).to(IO[io])
    float_class = "fp32" if io == "float32" else "bf16"
    table: dict[str, tuple[str, str, Build]] = {
        f"torch {io} eager": ("float", float_class, lambda: own),
        f"torch {io} compiled": ("float", float_class, lambda: compiled(copy.deepcopy(own))),
        f"_int_mm {io} eager": ("int8", "int8_dynamic", lambda: IntMm(layer)),
        f"_int_mm {io} compiled": ("int8", "int8_dynamic", lambda: compiled(IntMm(layer))),
        f"_scaled_mm {io} eager": ("e4m3", "e4m3_row", lambda: ScaledMm(layer)),
        f"torchao int8 {io} eager": ("int8", "int8_dynamic", lambda: torchao_int8(own)),
        f"torchao int8 {io} compiled": ("int8", "int8_dynamic", lambda: compiled(torchao_int8(own))),
    }
    if io == "bfloat16":
        name = "torch bfloat16 compiled max-autotune"
        table[name] = ("float", "bf16", lambda: compiled(copy.deepcopy(own), "max-autotune-no-cudagraphs"))
    if io == "float32":
        table["quantize_dynamic x86"] = ("int8", "int8_dynamic", lambda: quantized_dynamic(layer))
    return table


class Rivals:
    """The peers of one layer [N, K], built once, admitted again for each batch."""

    def __init__(self, layer: Layer, without: dict[str, str]) -> None:
        self._built: dict[str, tuple[harness.Entry, Callable[[torch.Tensor], torch.Tensor], str]] = {}
        self._absent = {}
        for io in IO:
            for name, (group, numerics, build) in recipes(layer, io).items():
                reason = next((why for part, why in without.items() if part in name), None)
                if reason is not None:
                    self._absent[name] = reason
                    continue

                def make(name: str = name, io: str = io, group: str = group, build: Build = build,
                         numerics: str = numerics) -> harness.Entry:  # fmt: skip
                    entry = harness.Entry(name, build(), io=io, group=group, facts={"numerics": numerics})
                    self._built[name] = (entry, entry.call, numerics)
                    return entry

                peers.admit([], self._absent, name, make)

    def against(
        self, inputs: dict[str, torch.Tensor], expected: torch.Tensor
    ) -> tuple[list[harness.Entry], dict[str, str]]:
        """(entries, absent) for one batch: x by type at the boundary, and the FP32 result."""
        entries: list[harness.Entry] = []
        absent = dict(self._absent)
        for name, (entry, module, numerics) in self._built.items():
            x = inputs[entry.io]

            def make(
                entry: harness.Entry = entry,
                module: Callable[[torch.Tensor], torch.Tensor] = module,
                x: torch.Tensor = x,
                numerics: str = numerics,
            ) -> harness.Entry:
                peers.agrees(module(x), expected, numerics)  # compiles, where it is compiled
                return harness.Entry(entry.name, lambda i: module(x), io=entry.io, group=entry.group, facts=entry.facts)

            peers.admit(entries, absent, name, make)
        return entries, absent
