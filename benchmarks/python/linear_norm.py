"""Linear + bias + LayerNorm + hardswish: octavo's numerics classes against torch, quantize_dynamic and torchao.

Each class runs as ``ops.linear(x, w, bias, norm, "hardswish")`` on a packed weight, x and y in FP32 or in BF16; the
output is allocated, as every peer's is. dispatch measures its candidates first, as ``dispatch.plan`` does, and takes
the fastest of the class; the row says which. ``_core`` rows time the kernel alone for the share of its roof: the
class's multiply-add loop (E4M3 products run at the BF16 rate on a CPU). FLOPs are 2 M N K, all else is overhead.
``weights``: ``warm`` repeats one layer; ``cold`` fills the caches with other data before every call, for peers too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import harness
import peers
import torch
from harness import Entry, where
from linear_peers import IO, Layer, Rivals, layer_of
from linear_routes import chill, core_call

from octavo import ops
from octavo.ops.packing import pack_as

CLASSES = ("int8_dynamic", "e4m3_row", "e4m3_weight_only", "bf16")
SIZES = {
    "smoke": [(32, 48)],
    "quick": [(64, 256), (512, 512), (37, 129)],
    "full": [(64, 256), (128, 512), (256, 512), (512, 512), (512, 1024), (1024, 1024),
             (37, 129), (200, 1000), (1000, 96)],
}  # fmt: skip
BATCHES = {"smoke": [2], "quick": [1, 64, 1024], "full": [1, 8, 64, 256, 1024, 4096]}
COLD_SIZES = {"smoke": [(32, 48)], "quick": [(512, 512)], "full": [(512, 512), (1024, 1024)]}
COLD_BATCHES = {"smoke": [2], "quick": [1, 64], "full": [1, 8, 64]}
EPILOGUE = "bias+layer+hardswish"
ROUTE, KERNEL = "ops.linear", "_core"
FLOATS = ("torch float32 eager", "torch float32 compiled", "torch bfloat16 eager", "torch bfloat16 compiled")
MIN_SQNR_DB = 20.0  # of the layer's output, against FP32


def without(effort: str) -> dict[str, str]:
    """Peers left out at this effort: part of the name -> reason."""
    if effort == "full":
        return {}
    left_out = {"torchao": "only in the full run: never the best peer here", "max-autotune": "only in the full run"}
    return left_out if effort == "quick" else {**left_out, "compiled": "not in the smoke run: compiling takes seconds"}


def own_entries(
    run: harness.Run, layer: Layer, weights: dict[str, ops.PackedWeight], x: torch.Tensor, expected: torch.Tensor
) -> list[Entry]:
    """octavo's classes on one batch."""
    m, k = x.shape
    n = layer.linear.out_features
    io = str(x.dtype).removeprefix("torch.")
    norm = ops.Norm("layer", layer.norm.weight, layer.norm.bias, layer.norm.eps)
    bias = layer.linear.bias
    entries = []
    for numerics, w in weights.items():
        problem = ops.dispatch.Problem("linear", m, n, k, io, io, EPILOGUE, "cpu", numerics)
        ops.dispatch.measure(problem, budget_ms=1.0 if run.is_smoke else 10.0)

        def public(i: int, w: ops.PackedWeight = w) -> torch.Tensor:
            return ops.linear(x, w, bias, norm, "hardswish")

        routes: dict[str, Callable[[int], torch.Tensor]] = {ROUTE: public}
        if io == "bfloat16":
            routes[KERNEL] = core_call(x, w, bias, norm, numerics)
        for route, call in routes.items():
            y = call(0)
            peers.agrees(y, expected, numerics)
            facts = {"numerics": numerics, "route": route, "sqnr_db": round(ops.errors.sqnr_db(y.float(), expected), 1)}
            name = f"octavo {numerics} {io}" + ("" if route == ROUTE else f" {route}")
            entries.append(Entry(name, call, io=io, group="octavo", flops=2.0 * m * n * k, facts=facts,
                                 roof=run.roofs.multiply(numerics)))  # fmt: skip
    return entries


def layer_contests(run: harness.Run, n: int, k: int) -> None:
    """One layer, every batch, with warm weights and with cold ones."""
    layer = layer_of(n, k)
    rivals = Rivals(layer, without(run.effort.name))
    weights = {numerics: pack_as(layer.linear.weight.detach(), numerics) for numerics in CLASSES}
    for m in BATCHES[run.effort.name]:
        x = torch.randn(m, k, generator=torch.Generator().manual_seed(m))
        inputs = {io: x.to(dtype) for io, dtype in IO.items()}
        expected = layer(x)
        ours = [entry for io in IO for entry in own_entries(run, layer, weights, inputs[io], expected)]
        entries, absent = rivals.against(inputs, expected)
        shape = {"m": m, "n": n, "k": k, "epilogue": EPILOGUE}
        run.contest("linear", {**shape, "weights": "warm"}, ours, entries, absent)
        if (n, k) in COLD_SIZES[run.effort.name] and m in COLD_BATCHES[run.effort.name]:
            sides = ([cold(e, inputs) for e in side if e.facts.get("route") != KERNEL] for side in (ours, entries))
            run.contest("linear", {**shape, "weights": "cold"}, *sides, absent)


def cold(entry: Entry, inputs: Mapping[str, torch.Tensor]) -> Entry:
    """The entry with everything but x out of the caches before each call."""

    def prepare(i: int) -> int:
        chill(*inputs.values())
        return i

    return replace(entry, prepare=prepare)


def best_class(entry: Entry) -> bool:
    """Classes a user with the requirement of the gate may get."""
    return entry.facts.get("route") == ROUTE and entry.facts["sqnr_db"] >= MIN_SQNR_DB


def shapes(weights: str = "warm", **bounds: int) -> Callable[[Mapping[str, Any]], bool]:
    """Contests with those weights and M, N, K within ``min_m``, ``max_m``, ``min_n``, ``min_k``."""

    def among(shape: Mapping[str, Any]) -> bool:
        fits = (shape[b[4:]] >= v if b.startswith("min") else shape[b[4:]] <= v for b, v in bounds.items())
        return bool(shape["weights"] == weights and all(fits))

    return among


def gates(run: harness.Run) -> None:
    """The figures with a bar."""
    floats, any_peer, warm = where(group="float"), where(), shapes()
    named = (*FLOATS, "quantize_dynamic x86")
    run.finding("linear_norm_vs_best_float", best_class, floats, FLOATS, 3.0, warm)
    run.finding("linear_norm_vs_best_float_worst", best_class, floats, FLOATS, 1.0, warm, worst=True)
    run.finding("linear_norm_vs_best_float_large", best_class, floats, FLOATS, 1.8, shapes(min_m=1024))
    run.finding(
        "linear_norm_vs_best_float_large_worst", best_class, floats, FLOATS, 1.8, shapes(min_m=1024), worst=True
    )
    run.finding("linear_norm_vs_best_peer", best_class, any_peer, named, 2.0, warm)
    run.finding("linear_norm_vs_best_peer_worst", best_class, any_peer, named, 1.2, warm, worst=True)
    run.finding("linear_norm_vs_best_peer_m256", best_class, any_peer, named, 1.5, shapes(min_m=256))
    e4m3, bf16 = where(numerics="e4m3_row", route=ROUTE), where(group="float", io="bfloat16")
    run.finding("linear_e4m3_row_vs_best_bf16_large", e4m3, bf16, FLOATS[2:], 1.05, shapes(min_m=1024))
    run.finding(
        "linear_e4m3_row_vs_best_bf16_large_worst", e4m3, bf16, FLOATS[2:], 0.95, shapes(min_m=1024), worst=True
    )
    run.finding("linear_e4m3_row_vs_best_bf16_small", e4m3, bf16, FLOATS[2:], 4.0, shapes(max_m=8))
    run.finding("linear_e4m3_row_vs_scaled_mm", e4m3, where(group="e4m3"), (), 8.0, warm)
    large = shapes(min_m=256, min_n=512, min_k=512)
    for numerics, bar in (("int8_dynamic", 0.88), ("bf16", 0.90)):
        kernel = where(numerics=numerics, route=KERNEL)
        run.share(f"linear_{numerics}_share_of_peak", kernel, bar, large)
        run.share(f"linear_{numerics}_share_of_peak_worst", kernel, None, large, worst=True)
    run.finding("linear_norm_cold_vs_best_peer", best_class, any_peer, named, among=shapes("cold"))


@torch.no_grad()
def body(run: harness.Run) -> None:
    """Every layer and batch, then the figures."""
    for n, k in SIZES[run.effort.name]:
        torch._dynamo.reset()
        layer_contests(run, n, k)
    gates(run)
    warm = shapes()
    for io in IO:
        floats = tuple(name for name in FLOATS if io in name)
        int8 = "quantize_dynamic x86" if io == "float32" else f"_int_mm {io} compiled"
        for numerics in CLASSES:
            run.finding(f"linear_{numerics}_{io}_vs_best_float_same_io", where(numerics=numerics, io=io, route=ROUTE),
                        where(group="float", io=io), floats, among=warm)  # fmt: skip
        mine = where(numerics="int8_dynamic", io=io, route=ROUTE)
        run.finding(f"linear_int8_dynamic_{io}_vs_best_int8_same_io", mine, where(group="int8", io=io), (int8,),
                    among=warm)  # fmt: skip
    run.finding("linear_int8_dynamic_vs_quantize_dynamic", where(numerics="int8_dynamic", io="float32", route=ROUTE),
                where(name="quantize_dynamic x86"), ("quantize_dynamic x86",), among=warm)  # fmt: skip


if __name__ == "__main__":
    harness.main("linear_norm", body)
