"""octavo between torch ops, as in a real model: what each costs the other.

``octavo after torch``: ops.linear (linear + bias + LayerNorm + hardswish) right after torch's BF16 linear of the same
shape, against the same call right after another call of octavo's. ``torch after octavo``: torch's linear right after
octavo's, against torch's linear right after another torch linear of the same footprint. Only the second of each pair is
timed. A pool of its own would lose here: it and torch's spinning workers would share the cores.
"""

from __future__ import annotations

from collections.abc import Callable

import harness
import torch
from harness import Entry, where
from linear_peers import layer_of
from torch.nn import functional

from octavo import ops
from octavo.ops.packing import pack_as

CLASSES = ("int8_dynamic", "bf16", "e4m3_row")
SIZES = {"smoke": [(32, 48)], "quick": [(256, 512), (1024, 1024)], "full": [(256, 512), (512, 512), (1024, 1024)]}
BATCHES = {"smoke": [2], "quick": [64, 1024], "full": [8, 64, 256, 1024]}

Call = Callable[[], object]


def second(name: str, first: Call, timed: Call, group: str, numerics: str) -> Entry:
    """``timed`` right after ``first``, which is not timed."""
    return Entry(name, lambda state: timed(), prepare=lambda i: first(), io="bfloat16", group=group,
                 facts={"numerics": numerics})  # fmt: skip


def pair_contests(run: harness.Run, m: int, n: int, k: int) -> None:
    """Every class beside torch's BF16 linear, on one shape."""
    g = torch.Generator().manual_seed(m)
    x, other_x = (torch.randn(m, k, generator=g).bfloat16() for _ in range(2))
    layer, other = layer_of(n, k), layer_of(n, k)
    weight, other_weight = layer.linear.weight.bfloat16(), other.linear.weight.bfloat16()

    def torch_linear() -> object:
        return functional.linear(x, weight)

    def torch_other() -> object:
        return functional.linear(other_x, other_weight)

    for numerics in CLASSES:
        w, other_w = (pack_as(each.linear.weight, numerics) for each in (layer, other))
        norm = ops.Norm("layer", layer.norm.weight, layer.norm.bias)

        def octavo_linear(w: ops.PackedWeight = w, norm: ops.Norm = norm) -> object:
            return ops.linear(x, w, layer.linear.bias, norm, "hardswish")

        def octavo_other(w: ops.PackedWeight = other_w, norm: ops.Norm = norm) -> object:
            return ops.linear(other_x, w, layer.linear.bias, norm, "hardswish")

        shape = {"m": m, "n": n, "k": k, "numerics": numerics}
        mixed = second("octavo after torch", torch_other, octavo_linear, "octavo", numerics)
        alone = second("octavo after octavo", octavo_other, octavo_linear, "octavo alone", numerics)
        run.contest("linear", shape, [mixed], [alone])
        mixed = second("torch after octavo", octavo_other, torch_linear, "torch", numerics)
        alone = second("torch after torch", torch_other, torch_linear, "torch alone", numerics)
        run.contest("linear", shape, [mixed], [alone])


@torch.no_grad()
def body(run: harness.Run) -> None:
    """Every shape, then the figures: time alone over time beside the other, 1 = neither notices."""
    for n, k in SIZES[run.effort.name]:
        for m in BATCHES[run.effort.name]:
            pair_contests(run, m, n, k)
    for name, bar in (("octavo", 0.9), ("torch", 0.95)):
        run.finding(f"linear_mixed_{name}", where(group=name), where(group=f"{name} alone"), bar=bar)
        run.finding(f"linear_mixed_{name}_worst", where(group=name), where(group=f"{name} alone"), worst=True)


if __name__ == "__main__":
    harness.main("linear_mixed", body)
