"""A chain of four layers, linear + bias + norm + hardswish each, BF16 in and out, on a GPU.

The norm is LayerNorm, which octavo keeps in FP32 wherever a row does not fit one tile, and for some widths RMSNorm,
which it passes between its kernels in BF16 there.

octavo's classes run layer by layer (``octavo.ops.linear``'s route, its own kernels), E4M3 with BF16 or with codes
between layers. Peers: torch's BF16 layers, and torch's FP8 ones, which round x by torch's expression (a scale a row, or
one a tensor) and multiply by ``_scaled_mm`` with its fast sums; each eager and compiled, for any number of rows, and at
``AUTOTUNED`` rows compiled for these alone with inductor's own products tried against cuBLAS's (max-autotune), which
takes too long for every shape. All of it in CUDA graphs. The best of octavo's against the best peer, shape by shape;
every candidate's output is compared with FP32 first. Up to
``EARLY`` rows octavo's classes run a second time, with launches that start early: figures of their own, for the bars
are of what is shipped.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, pairwise
from typing import Any

import gpu_run
import linear_peers
import numpy as np
import peers
import torch
from gpu_run import GpuRun, own_kernel, rotating
from harness import Entry, Interval, where
from linear_peers import Layer, layer_of
from torch.nn import functional

from octavo import ops
from octavo.ops.dispatch import early_launches
from octavo.ops.linear_call import run as run_linear
from octavo.ops.packing import pack_as

WIDTHS = {
    "smoke": {"layer": [(32, 48, 48, 32, 16)], "rms": [(32,) * 5]},
    "quick": {"layer": [(256,) * 5, (1024,) * 5], "rms": [(1024,) * 5]},
    "full": {
        "layer": [(128,) * 5, (256,) * 5, (512,) * 5, (1024,) * 5, (2048,) * 5, (2048, 1024, 512, 256, 128)],
        "rms": [(256,) * 5, (1024,) * 5],
    },
}
BATCHES = {
    "smoke": [2, 300],
    "quick": [16, 256, 4096],
    "full": [1, 16, 64, 128, 256, 1024, 4096, 16384, 65536],
}
CLASSES = ("bf16", "e4m3_row", "e4m3_row_fast")
SMALL = 256  # rows below which launches, not work, decide
NAMED = ("torch bfloat16 eager", "torch bfloat16 compiled", "torch e4m3 row eager", "torch e4m3 row compiled")
AUTOTUNED = {"smoke": (), "quick": (), "full": (4096,)}
EARLY = 1024  # rows up to which octavo's launches start early too
AUTOTUNE = " compiled max-autotune"
MONOTONE = 1.05  # a time may be this many times that of more rows


class Fp8Layer(torch.nn.Module):
    """The layer around ``torch._scaled_mm``: x rounded with a scale a row, or one of all."""

    codes: torch.Tensor
    scale: torch.Tensor

    def __init__(self, layer: Layer, by_row: bool) -> None:
        super().__init__()
        self.by_row = by_row
        codes, scale = self.rounded(layer.linear.weight.detach())
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)
        own = copy.deepcopy(layer).bfloat16()
        self.bias, self.norm = own.linear.bias, own.norm

    def rounded(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """E4M3 codes and their scale, [M, 1] or one."""
        x = x.float()
        amax = x.abs().amax(1, keepdim=True) if self.by_row else x.abs().amax()
        scale = amax.clamp_min(1e-12) / 448
        return (x / scale).to(torch.float8_e4m3fn), scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        codes, scale = self.rounded(x)
        other = self.scale.T if self.by_row else self.scale
        z = torch._scaled_mm(
            codes, self.codes.T, scale, other, self.bias, out_dtype=torch.bfloat16, use_fast_accum=True
        )
        return functional.hardswish(self.norm(z))


def norm_of(norm: torch.nn.Module) -> ops.Norm:
    """torch's norm as octavo's layers take it."""
    weight, bias, eps = norm.weight, getattr(norm, "bias", None), norm.eps
    kind = "layer" if isinstance(norm, torch.nn.LayerNorm) else "rms"
    return ops.Norm(kind, weight, bias, 1e-5 if eps is None else eps)  # type: ignore[arg-type]


def chain_of(widths: Sequence[int], norm: str, device: str) -> list[Layer]:
    """Layers as a torch user writes them."""
    layers = [layer_of(n, k) for k, n in pairwise(widths)]
    if norm == "rms":
        for layer in layers:
            layer.norm = torch.nn.RMSNorm(layer.linear.out_features, eps=1e-5)  # type: ignore[assignment]
    return [layer.requires_grad_(False).to(device) for layer in layers]


def own_calls(layers: Sequence[Layer], device: str) -> dict[str, tuple[str, Callable[[torch.Tensor], torch.Tensor]]]:
    """octavo's ways through the chain: name -> class and function of x."""
    found: dict[str, tuple[str, Callable[[torch.Tensor], torch.Tensor]]] = {}
    for numerics in CLASSES:
        kernel = own_kernel(numerics, device)
        if kernel is None:
            continue
        norms = [norm_of(layer.norm) for layer in layers]
        parts = [(pack_as(layer.linear.weight.detach(), numerics), layer.linear.bias, norm)
                 for layer, norm in zip(layers, norms, strict=True)]  # fmt: skip

        def call(x: Any, parts: Any = parts, kernel: Any = kernel, codes: bool = False) -> torch.Tensor:
            for w, bias, norm in parts[:-1]:
                x = run_linear(x, w, bias, norm, "hardswish", kernel=kernel, out_format="e4m3" if codes else None)
            w, bias, norm = parts[-1]
            y: torch.Tensor = run_linear(x, w, bias, norm, "hardswish", out_dtype=torch.bfloat16, kernel=kernel)
            return y

        found[f"octavo {numerics}"] = numerics, call
        if numerics != "bf16":
            found[f"octavo {numerics}, codes between"] = numerics, lambda x, call=call: call(x, codes=True)
    return found


def early_name(name: str) -> str:
    return f"{name}, early launches"


def started_early(call: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """``call`` with launches that start early; a graph keeps that."""

    def run(x: torch.Tensor) -> torch.Tensor:
        with early_launches():
            return call(x)

    return run


def peer_modules(layers: Sequence[Layer]) -> dict[str, Callable[[], Callable[[torch.Tensor], torch.Tensor]]]:
    """name -> how to build it."""

    def bf16() -> torch.nn.Module:
        return torch.nn.Sequential(*(copy.deepcopy(layer).bfloat16() for layer in layers))

    def fp8(by_row: bool) -> torch.nn.Module:
        return torch.nn.Sequential(*(Fp8Layer(layer, by_row) for layer in layers))

    eager = {"bfloat16": bf16, "e4m3 row": lambda: fp8(True), "e4m3 tensor": lambda: fp8(False)}
    found: dict[str, Callable[[], Callable[[torch.Tensor], torch.Tensor]]] = {}
    for word, build in eager.items():
        found[f"torch {word} eager"] = build
        found[f"torch {word} compiled"] = lambda build=build: linear_peers.compiled(build())
        if word != "e4m3 tensor":
            found[f"torch {word}{AUTOTUNE}"] = lambda build=build: linear_peers.compiled(
                build(), "max-autotune-no-cudagraphs", dynamic=False
            )
    return found


class Chain:
    """One chain of layers: its contestants, built once."""

    def __init__(self, run: GpuRun, widths: Sequence[int], norm: str) -> None:
        self.run, self.widths, self.norm = run, widths, norm
        self.layers = chain_of(widths, norm, run.device)
        self.ours = own_calls(self.layers, run.device)
        self.modules: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {}
        self.absent: dict[str, str] = {}
        for name, build in peer_modules(self.layers).items():
            if run.is_smoke and "compiled" in name:
                self.absent[name] = "not in the smoke run: compiling takes seconds"
            elif AUTOTUNED[run.effort.name] or not name.endswith(AUTOTUNE):
                self.modules[name] = build()

    def contest(self, m: int) -> None:
        """One number of rows."""
        generator = torch.Generator(self.run.device).manual_seed(m)

        def fresh(i: int) -> torch.Tensor:
            x = torch.randn(m, self.widths[0], generator=generator, device=self.run.device)
            return x.bfloat16()

        x = rotating(fresh, 2 * m * self.widths[0], self.run.device)
        expected = x(0).float()
        for layer in self.layers:
            expected = layer(expected)
        flops = 2.0 * m * sum(k * n for k, n in pairwise(self.widths))

        def entry(name: str, numerics: str, call: Callable[[torch.Tensor], torch.Tensor], group: str) -> Entry:
            peers.agrees(call(x(0)), expected, "bf16" if numerics == "bf16" else "e4m3_chain")
            return Entry(
                name, lambda i: call(x(i)), io="bfloat16", group=group, flops=flops, facts={"numerics": numerics}
            )

        ours = [entry(name, numerics, call, "octavo") for name, (numerics, call) in self.ours.items()]
        if m <= EARLY:
            ours += [entry(early_name(name), numerics, started_early(call), "octavo early")
                     for name, (numerics, call) in self.ours.items()]  # fmt: skip
        rivals: list[Entry] = []
        absent = dict(self.absent)
        for name, module in self.modules.items():
            if name.endswith(AUTOTUNE) and m not in AUTOTUNED[self.run.effort.name]:
                continue
            numerics = "bf16" if "bfloat16" in name else "e4m3"
            peers.admit(rivals, absent, name, lambda n=name, c=numerics, f=module: entry(n, c, f, "torch"))  # type: ignore[misc]
        self.run.contest("linear", shape_of(m, self.widths, self.norm), ours, rivals, absent)


def shape_of(m: int, widths: Sequence[int], norm: str) -> dict[str, int | str]:
    return {"m": m, "widths": "-".join(map(str, widths)), "norm": norm}


def steepest_fall(times: Mapping[int, float]) -> float:
    """The largest ratio of a time to one of more rows: at most 1 where times never fall. ``times``: us by rows."""
    ordered = [us for _, us in sorted(times.items())]
    return max((a / b for a, b in combinations(ordered, 2)), default=0.0)


def monotone(run: GpuRun, most: int) -> None:
    """The bar on how far times of the best of ours fall as rows grow to ``most``, over all chains."""
    times: dict[tuple[str, str], dict[int, float]] = {}
    for contest in run.contests:
        best, shape = contest.best([e for e in contest.ours if e.group == "octavo"]), contest.shape
        if best is not None and shape["m"] <= most:
            times.setdefault((shape["widths"], shape["norm"]), {})[shape["m"]] = contest.median(best)
    falls = [steepest_fall(by_rows) for by_rows in times.values() if len(by_rows) > 1]
    if falls:
        found = Interval(max(falls), float(np.min(falls)), max(falls))
        run.measured("gpu_linear_norm_small_monotone", found, MONOTONE, at_most=True)


@torch.no_grad()
def body(run: GpuRun) -> None:
    """Every chain and batch, then the figures."""
    level = run.effort.name
    chains = [(norm, widths) for norm, of_norm in WIDTHS[level].items() for widths in of_norm]
    for at in np.random.default_rng(0).permutation(len(chains)):  # a budget that ends cuts no kind more
        norm, widths = chains[at]
        torch._dynamo.reset()
        if not run.has_time("linear", shape_of(0, widths, norm)):
            continue
        chain = Chain(run, widths, norm)
        for m in BATCHES[level]:
            if run.has_time("linear", shape_of(m, widths, norm)):
                chain.contest(m)
    named = NAMED[::2] if run.is_smoke else NAMED
    ours, rivals = where(group="octavo"), where(group="torch")
    run.finding("gpu_linear_norm_vs_best", ours, rivals, named, 1.5, lambda shape: shape["m"] >= SMALL)
    run.won("gpu_linear_norm_won", ours, rivals, 0.95, lambda shape: shape["m"] >= SMALL)
    run.finding("gpu_linear_norm_small_worst", ours, rivals, named, 0.95, lambda shape: shape["m"] < SMALL, worst=True)
    monotone(run, SMALL)
    for norm in WIDTHS[level]:
        run.finding(f"gpu_linear_norm_{norm}_vs_best", ours, rivals,
                    among=lambda shape, norm=norm: shape["m"] >= SMALL and shape["norm"] == norm)  # fmt: skip
    for numerics in CLASSES:
        name = f"octavo {numerics}"
        run.rivalry(f"gpu_linear_norm_{numerics}_early_vs_late", early_name(name), name)
        mine = where(group="octavo", numerics=numerics)
        run.finding(f"gpu_linear_norm_{numerics}_vs_best", mine, rivals, among=lambda shape: shape["m"] >= SMALL)


if __name__ == "__main__":
    sys.exit(gpu_run.main("gpu_linear_norm", body))
