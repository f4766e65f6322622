"""Everyone on AVX2: embeddings against torch and FBGEMM, linear layers as dispatch runs them against torch.

The limits are set before anything is loaded: octavo's generic kernels compiled for AVX2, ATen's and oneDNN's and
FBGEMM's AVX2 code (MKL's where it listens). ``linear under dispatch`` is the layer as ``ops.dispatch`` would have it
run: candidates measured, torch's own rows among them, the fastest class with SQNR >= 20 dB; where torch's FP32 wins the
layer is torch's. Embeddings are ``embedding_forward``'s and ``embedding_backward``'s contests on fewer shapes.
"""

from __future__ import annotations

import os

os.environ.update(
    OCTAVO_ISA="avx2", ATEN_CPU_CAPABILITY="avx2", ONEDNN_MAX_CPU_ISA="AVX2", FBGEMM_ENABLE_INSTRUCTIONS="AVX2",
    MKL_ENABLE_INSTRUCTIONS="AVX2",
)  # fmt: skip

import embedding_backward
import embedding_forward
import harness
import peers
import torch
from embedding_peers import WIDTH, Case
from harness import Entry, where
from linear_peers import IO, Layer, Rivals, layer_of

from octavo import _core, nn, ops
from octavo.ops.packing import pack_as

TABLES = {
    "smoke": [(2, 500, 16)],
    "quick": [(8, 200_000, 64)],
    "full": [(8, 10_000, 64), (8, 200_000, 64), (8, 200_000, 16), (8, 200_000, 128)],
}
LENGTHS = {"smoke": (20,), "quick": (20, 1), "full": (20, 1)}
TRAINED = {
    "smoke": [Case(2, 500, 16, 5, batch=16)],
    "quick": [Case(8, 200_000, 64, 20)],
    "full": [Case(8, 200_000, 64, 20), Case(8, 200_000, 64, 1), Case(8, 200_000, 16, 20), Case(8, 200_000, 128, 20)],
}
SIZES = {
    "smoke": [(32, 48)],
    "quick": [(64, 256), (512, 512), (37, 129)],
    "full": [(64, 256), (128, 512), (256, 512), (512, 512), (1024, 1024), (37, 129), (200, 1000)],
}
BATCHES = {"smoke": [2], "quick": [1, 64, 1024], "full": [1, 8, 64, 256, 1024]}
EPILOGUE = "bias+layer+hardswish"
MIN_SQNR_DB = 20.0
EAGER = ("torch float32 eager", "torch bfloat16 eager")
WITHOUT = dict.fromkeys(("compiled", "torchao", "_mm"), "torch's own layers are the peers of dispatch")


def dispatched(layer: Layer, x: torch.Tensor, smoke: bool) -> Entry:
    """The layer on x by the kernel dispatch chooses."""
    m, k = x.shape
    n, io = layer.linear.out_features, str(x.dtype).removeprefix("torch.")
    problem, demand = (
        ops.dispatch.Problem("linear", m, n, k, io, io, EPILOGUE),
        ops.dispatch.Requirement(min_sqnr_db=MIN_SQNR_DB),
    )
    ops.dispatch.measure(problem, demand, budget_ms=1.0 if smoke else 20.0)
    decision = ops.dispatch.choose(problem, demand)
    if decision.numerics == "fp32":
        own = nn.LinearNorm(k, n)
        own.weight, own.bias = layer.linear.weight, layer.linear.bias
        own.norm_weight, own.norm_bias = layer.norm.weight, layer.norm.bias
        row = _core.kernel(decision.kernel)

        def call(i: int) -> torch.Tensor:
            row.count()
            return own(x) if x.dtype == torch.float32 else own(x.float()).to(x.dtype)

    else:
        w = pack_as(layer.linear.weight, decision.numerics)
        w.preferred = {max(m, 1): decision.kernel}
        bias, norm = layer.linear.bias, ops.Norm("layer", layer.norm.weight, layer.norm.bias, layer.norm.eps)

        def call(i: int) -> torch.Tensor:
            return ops.linear(x, w, bias, norm, "hardswish")

    facts = {"numerics": decision.numerics, "route": "ops.dispatch"}
    return Entry(f"octavo dispatch {io}", call, io=io, group="dispatch", flops=2.0 * m * n * k, facts=facts)


def linear_contests(run: harness.Run, n: int, k: int) -> None:
    """One layer, every batch, one contest for each type at the boundary."""
    layer = layer_of(n, k)
    rivals = Rivals(layer, WITHOUT)
    for m in BATCHES[run.effort.name]:
        x = torch.randn(m, k, generator=torch.Generator().manual_seed(m))
        inputs = {io: x.to(dtype) for io, dtype in IO.items()}
        expected = layer(x)
        entries, absent = rivals.against(inputs, expected)
        for io, own in inputs.items():
            entry = dispatched(layer, own, run.is_smoke)
            peers.agrees(entry.call(0), expected, entry.facts["numerics"] if io == "float32" else "e4m3")
            shape = {"m": m, "n": n, "k": k, "epilogue": EPILOGUE, "io": io}
            run.contest("linear", shape, [entry], [p for p in entries if p.io == io], absent)


def body(run: harness.Run) -> None:
    """Embeddings, then layers, then the figures."""
    for tables, rows, dim in TABLES[run.effort.name]:
        embedding_forward.grid_point(run, tables, rows, dim, LENGTHS[run.effort.name])
    absent = embedding_backward.check(run.is_smoke)
    for case in TRAINED[run.effort.name]:
        embedding_backward.contest(run, case, absent)
    with torch.no_grad():
        for n, k in SIZES[run.effort.name]:
            linear_contests(run, n, k)
    forward = where(route="nn.EmbeddingBags")
    for width, word, named in (("fp32", "fp32", ("torch float32", "fbgemm fp32")),
                               ("int8", "8bit", ("torch byte", "fbgemm int8"))):  # fmt: skip
        io = where(io=WIDTH[width])
        run.finding(f"isa_avx2_embedding_forward_{word}", lambda e, io=io: forward(e) and io(e), io, named, 1.0)
    for peer, word in ((embedding_backward.FBGEMM, "fbgemm"), (embedding_backward.TORCH, "torch")):
        run.finding(
            f"isa_avx2_embedding_backward_vs_{word}", where(group="bag_backward"), where(name=peer), (peer,), 1.0
        )
    for io, eager in zip(IO, EAGER, strict=True):
        mine, floats = where(group="dispatch", io=io), where(group="float", io=io)
        run.finding(f"isa_avx2_linear_{io}_vs_torch_worst", mine, floats, (eager,), 0.95, worst=True)
        run.finding(f"isa_avx2_linear_{io}_vs_torch", mine, floats, (eager,))
    mine, dynamic = where(group="dispatch", io="float32"), where(name="quantize_dynamic x86")
    run.finding("isa_avx2_linear_vs_quantize_dynamic_worst", mine, dynamic, ("quantize_dynamic x86",), 0.95, worst=True)
    run.finding("isa_avx2_linear_vs_quantize_dynamic", mine, dynamic, ("quantize_dynamic x86",))


if __name__ == "__main__":
    harness.main("isa", body)
