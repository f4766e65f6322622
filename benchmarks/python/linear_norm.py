"""Linear + bias + LayerNorm + hardswish: octavo's numerics classes against torch, quantize_dynamic and torchao.

Each class runs as ``ops.linear(x, w, bias, norm, "hardswish")`` on a packed weight, x and y in FP32 or in BF16. Two
routes: allocating its output, as every peer does (the figures of the bars), and with ``out=`` preallocated. dispatch
measures its candidates first, as ``dispatch.plan`` does, and takes the fastest of the class; the row says which. The
roof of a class is its multiply-add loop (E4M3 products run at the BF16 rate on a CPU); FLOPs are 2 M N K, all else is
overhead.
"""

from __future__ import annotations

import harness
import peers
import torch
from harness import where
from linear_peers import IO, Layer, Rivals, layer_of

from octavo import ops
from octavo.ops.packing import pack_as

CLASSES = ("int8_dynamic", "e4m3_row", "e4m3_weight_only", "bf16")
SIZES = {
    "smoke": [(32, 48)],
    "quick": [(64, 256), (512, 512)],
    "full": [(64, 256), (256, 512), (512, 512), (512, 1024), (1024, 1024)],
}
BATCHES = {"smoke": [2], "quick": [1, 64, 1024], "full": [1, 8, 64, 256, 1024, 4096]}
ROUTE = "ops.linear"  # the one of the bars: it allocates its output, as the peers do
FLOATS = ("torch float32 eager", "torch float32 compiled", "torch bfloat16 eager", "torch bfloat16 compiled")


def without(effort: str) -> dict[str, str]:
    """Peers left out at this effort: part of the name -> reason."""
    if effort == "full":
        return {}
    left_out = {"torchao": "only in the full run: never the best peer here", "max-autotune": "only in the full run"}
    return left_out if effort == "quick" else {**left_out, "compiled": "not in the smoke run: compiling takes seconds"}


def own_entries(
    run: harness.Run, layer: Layer, weights: dict[str, ops.PackedWeight], x: torch.Tensor, expected: torch.Tensor
) -> list[harness.Entry]:
    """octavo's classes on one batch, both routes."""
    m, k = x.shape
    n = layer.linear.out_features
    io = str(x.dtype).removeprefix("torch.")
    norm = ops.Norm("layer", layer.norm.weight, layer.norm.bias, layer.norm.eps)
    bias = layer.linear.bias
    entries = []
    for numerics, w in weights.items():
        problem = ops.dispatch.Problem("linear", m, n, k, io, io, "bias+layer+hardswish", "cpu", numerics)
        ops.dispatch.measure(problem, budget_ms=1.0 if run.is_smoke else 10.0)
        y = torch.empty(m, n, dtype=x.dtype)

        def allocating(i: int, w: ops.PackedWeight = w) -> torch.Tensor:
            return ops.linear(x, w, bias, norm, "hardswish")

        def preallocated(i: int, w: ops.PackedWeight = w, y: torch.Tensor = y) -> torch.Tensor:
            return ops.linear(x, w, bias, norm, "hardswish", out=y)

        for route, call in ((ROUTE, allocating), (f"{ROUTE}, out=", preallocated)):
            peers.agrees(call(0), expected, numerics)
            name = f"octavo {numerics} {io}" + (" out=" if route.endswith("out=") else "")
            entries.append(harness.Entry(name, call, io=io, group="octavo", flops=2.0 * m * n * k,
                                         facts={"numerics": numerics, "route": route},
                                         roof=run.roofs.multiply(numerics)))  # fmt: skip
    return entries


def layer_contests(run: harness.Run, n: int, k: int) -> None:
    """One layer, every batch."""
    layer = layer_of(n, k)
    rivals = Rivals(layer, without(run.effort.name))
    weights = {numerics: pack_as(layer.linear.weight.detach(), numerics) for numerics in CLASSES}
    for m in BATCHES[run.effort.name]:
        x = torch.randn(m, k, generator=torch.Generator().manual_seed(m))
        inputs = {io: x.to(dtype) for io, dtype in IO.items()}
        expected = layer(x)
        ours = [entry for io in IO for entry in own_entries(run, layer, weights, inputs[io], expected)]
        entries, absent = rivals.against(inputs, expected)
        run.contest("linear", {"m": m, "n": n, "k": k, "epilogue": "bias+layer+hardswish"}, ours, entries, absent)


@torch.no_grad()
def body(run: harness.Run) -> None:
    """Every layer and batch, then the figures."""
    for n, k in SIZES[run.effort.name]:
        torch._dynamo.reset()
        layer_contests(run, n, k)
    for io in IO:
        floats = tuple(name for name in FLOATS if io in name)
        int8 = "quantize_dynamic x86" if io == "float32" else f"_int_mm {io} compiled"
        for numerics in CLASSES:
            run.finding(f"linear_{numerics}_{io}_vs_best_float_same_io", where(numerics=numerics, io=io, route=ROUTE),
                        where(group="float", io=io), floats)  # fmt: skip
        mine = where(numerics="int8_dynamic", io=io, route=ROUTE)
        run.finding(f"linear_int8_dynamic_{io}_vs_best_int8_same_io", mine, where(group="int8", io=io), (int8,))
    run.finding("linear_int8_dynamic_vs_quantize_dynamic", where(numerics="int8_dynamic", io="float32", route=ROUTE),
                where(name="quantize_dynamic x86"), ("quantize_dynamic x86",))  # fmt: skip
    run.finding("linear_best_class_vs_best_peer", where(route=ROUTE), where(), (*FLOATS, "quantize_dynamic x86"))


if __name__ == "__main__":
    harness.main("linear_norm", body)
