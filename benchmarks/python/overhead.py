"""What a call costs: a linear of M, N, K = 1, 64, 64 and the other calls of a served ranker for one sample, whose own
work is a fraction of a microsecond.

Routes to octavo from the raw compiled call to a recorded gradient, class bf16 with FP32 in and out, against torch's
linear, alone and with LayerNorm and hardswish. Each mode (without gradients, recording them) is a contest of its own.
Only forward calls are timed. Bars are for the layer with norm and activation against torch's eager chain: half its time
through ``octavo.ops``, a quarter prepared. Bags (eight tables, a row each), products of pairs and a Wukong layer's end
meet the torch operators that a user would write.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import harness
import peers
import torch
from harness import where
from linear_peers import Layer, compiled, layer_of
from linear_routes import core_call
from torch.nn import functional

import octavo.ops.linear_operator  # noqa: F401 - defines torch.ops.octavo.linear
from octavo import nn, ops
from octavo.ops.packing import pack_as

M, N, K = 1, 64, 64
TABLES = 8
NUMERICS = "bf16"
FUSED, PLAIN = "bias+layer+hardswish", "bias"
ROUTES = {"_core.linear": "core_linear", "ops.linear": "ops_linear", "ops.linear, out=": "ops_linear_out",
          "prepared": "prepared", "prepared, out=": "prepared_out", "torch.ops.octavo.linear": "operator",
          "nn": "nn"}  # fmt: skip
BARS = {"ops.linear": 2.0, "prepared": 4.0}  # torch's time over octavo's


def module_of(layer: Layer, fused: bool) -> torch.nn.Module:
    """octavo's module with the layer's parameters."""
    module = nn.LinearNorm(K, N) if fused else nn.Linear(K, N)
    state = {"weight": layer.linear.weight, "bias": layer.linear.bias}
    if fused:
        state |= {"norm_weight": layer.norm.weight, "norm_bias": layer.norm.bias}
    module.load_state_dict(state)
    module.numerics = NUMERICS
    return module.requires_grad_(False).eval()


def inference_routes(
    layer: Layer, x: torch.Tensor, w: ops.PackedWeight, norm: ops.Norm | None
) -> dict[str, Callable[[int], object]]:
    """octavo's routes without gradients."""
    bias, activation = layer.linear.bias, "hardswish" if norm else None
    y = torch.empty(M, N)
    operator = torch.ops.octavo.linear
    vectors = (None, None, None, 0.0, 256) if norm is None else (norm.kind, norm.weight, norm.bias, norm.eps, 256)
    module = module_of(layer, norm is not None)
    prepared = ops.prepare_linear(w, bias, norm, activation, rows=(M,))
    return {
        "_core.linear": core_call(x, w, bias, norm, NUMERICS),
        "ops.linear": lambda i: ops.linear(x, w, bias, norm, activation),
        "ops.linear, out=": lambda i: ops.linear(x, w, bias, norm, activation, out=y),
        "prepared": lambda i: prepared(x),
        "prepared, out=": lambda i: prepared(x, y),
        "torch.ops.octavo.linear": lambda i: operator(
            x, w.codes, w.scale, NUMERICS, True, bias, *vectors, activation, None, False, None
        ),
        "nn": lambda i: module(x),
    }


def torch_routes(run: harness.Run, layer: Layer, x: torch.Tensor, fused: bool) -> dict[str, Callable[[int], object]]:
    """torch in FP32."""
    if not fused:
        return {
            "F.linear": lambda i: functional.linear(x, layer.linear.weight, layer.linear.bias),
            "torch.nn.Linear": lambda i: layer.linear(x),
        }
    routes = {"F.linear + layer_norm + hardswish": lambda i: by_hand(layer, x), "torch modules": lambda i: layer(x)}
    if not run.is_smoke:
        fast = compiled(copy.deepcopy(layer))
        routes["torch compiled"] = lambda i: fast(x)
    return routes


def by_hand(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    """The layer with no module call."""
    z = functional.linear(x, layer.linear.weight, layer.linear.bias)
    return functional.hardswish(functional.layer_norm(z, (N,), layer.norm.weight, layer.norm.bias, layer.norm.eps))


def contest(run: harness.Run, fused: bool, gradients: bool) -> None:
    """One epilogue in one mode."""
    layer = layer_of(N, K)
    norm = ops.Norm("layer", layer.norm.weight, layer.norm.bias, layer.norm.eps) if fused else None
    w = pack_as(layer.linear.weight, NUMERICS)
    x = torch.randn(M, K, generator=torch.Generator().manual_seed(0)).requires_grad_(gradients)
    expected = (layer(x) if fused else layer.linear(x)).detach()
    bias, activation = layer.linear.bias, "hardswish" if fused else None
    mode = "grad" if gradients else "inference"
    if gradients:
        routes: dict[str, Callable[[int], object]] = {"ops.linear": lambda i: ops.linear(x, w, bias, norm, activation)}
    else:
        routes = inference_routes(layer, x, w, norm)
    ours = []
    for route, call in routes.items():
        y = call(0)
        if isinstance(y, torch.Tensor):
            peers.agrees(y.detach(), expected, NUMERICS)
        facts = {"numerics": NUMERICS, "route": route, "mode": mode, "fused": fused}
        ours.append(harness.Entry(f"octavo {route}", call, io="float32", group=route, facts=facts))
    peers_of = torch_routes(run, layer, x, fused)
    rivals = [
        harness.Entry(name, call, io="float32", group="compiled" if "compiled" in name else "eager")
        for name, call in peers_of.items()
    ]
    epilogue = FUSED if fused else PLAIN
    run.contest("linear", {"m": M, "n": N, "k": K, "epilogue": epilogue, "mode": mode}, ours, rivals)


def other_calls(run: harness.Run) -> None:
    """Bags, products of pairs and the end of a Wukong layer, for one sample and without gradients."""
    generator = torch.Generator().manual_seed(1)
    bags = nn.EmbeddingBags([nn.Table(f"t{i}", rows=1000, dim=16) for i in range(TABLES)]).eval()
    rows, offsets = torch.randint(1000, (TABLES,), generator=generator), torch.arange(TABLES + 1)
    tables, starts = list(bags.buffers()), torch.zeros(1, dtype=torch.int64)
    x, low, high = (torch.randn(1, n, 16, generator=generator) for n in (8, 3, 5))
    above, below = torch.tril_indices(8, 8, -1).unbind()
    weight, bias = torch.rand(16, generator=generator), torch.rand(16, generator=generator)
    norm = ops.Norm("layer", weight, bias)

    def bags_of_torch(i: int) -> torch.Tensor:
        pooled = [
            functional.embedding_bag(rows[t : t + 1], table, starts, mode="sum") for t, table in enumerate(tables)
        ]
        return torch.cat(pooled, 1)

    calls: dict[str, tuple[str, Callable[[int], torch.Tensor], Callable[[int], torch.Tensor]]] = {
        "bags": ("bag_forward", lambda i: bags(rows, offsets), bags_of_torch),
        "pairwise_dots": ("pairwise_dots", lambda i: ops.pairwise_dots(x, pairs="lower"),
                          lambda i: torch.bmm(x, x.mT)[:, above, below]),
        "add_norm": ("add_norm", lambda i: ops.add_norm([low, high], x, norm),
                     lambda i: functional.layer_norm(torch.cat([low, high], 1) + x, (16,), weight, bias)),
    }  # fmt: skip
    for route, (op, ours, theirs) in calls.items():
        torch.testing.assert_close(ours(0), theirs(0))
        mine = harness.Entry(f"octavo {route}", ours, io="float32", group=route, facts={"route": route})
        rivals = [harness.Entry("torch", theirs, io="float32", group="eager")]
        if not run.is_smoke:
            fast = torch.compile(lambda theirs=theirs: theirs(0))
            rivals.append(harness.Entry("torch compiled", lambda i, fast=fast: fast(), io="float32", group="compiled"))
        run.contest(op, {"samples": 1, "call": route}, [mine], rivals)
        run.finding(f"overhead_{route}_vs_torch", where(route=route), where(group="eager"))
        run.finding(f"overhead_{route}_vs_torch_compiled", where(route=route), where(group="compiled"))


def body(run: harness.Run) -> None:
    """Both epilogues in both modes, the other calls, then the figures."""
    for fused in (False, True):
        with torch.no_grad():
            contest(run, fused, gradients=False)
        contest(run, fused, gradients=True)
    with torch.no_grad():
        other_calls(run)
    eager = where(group="eager")
    for route, slug in ROUTES.items():
        fused = where(route=route, mode="inference", fused=True)
        run.finding(f"overhead_{slug}_vs_torch", fused, eager, bar=BARS.get(route))
        run.finding(f"overhead_{slug}_plain_vs_torch", where(route=route, mode="inference", fused=False), eager)
    for fused, slug in ((True, ""), (False, "_plain")):
        mine = where(route="ops.linear", mode="grad", fused=fused)
        run.finding(f"overhead_ops_linear_with_gradients{slug}_vs_torch", mine, eager)


if __name__ == "__main__":
    harness.main("overhead", body)
