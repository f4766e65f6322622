"""A training step's layer: linear + bias + LayerNorm + hardswish forward, and the gradients of x and every parameter.

octavo's layers keep FP32 weights and give FP32 gradients; each call finds the weight changed, as after an optimizer
step, so packing it is part of the time. Backward in BF16 (``ops.linear``'s default). Peers: torch in BF16 throughout
(parameters and gradients too), in FP32, and FP32 parameters under autocast. Every call makes new gradients.

Huge pages for torch's allocator are off here, for everyone: with them each of a step's new matrices from 2 MiB up is
mapped and cleared again, which costs up to 0.8 ms a matrix.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable

os.environ["THP_MEM_ALLOC_ENABLE"] = "0"

import harness
import peers
import torch
from harness import where
from linear_peers import IO, Layer, layer_of, with_own_code

from octavo import nn

CLASSES = ("bf16", "int8_dynamic", "e4m3_row")
SIZES = {
    "smoke": [(32, 48)],
    "quick": [(64, 256), (512, 512), (1024, 1024)],
    "full": [(64, 256), (128, 512), (256, 512), (512, 512), (512, 1024), (1024, 1024), (37, 129), (200, 1000),
             (1000, 96)],
}  # fmt: skip
BATCHES = {"smoke": [3], "quick": [64, 1024], "full": [64, 256, 1024, 4096]}
BF16_PEERS = ("torch bfloat16 eager", "torch bfloat16 compiled", "torch autocast bfloat16 eager")

Gradients = tuple[torch.Tensor, ...]
Step = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, Gradients]]


def step_of(
    forward: Callable[[torch.Tensor], torch.Tensor], leaves: list[torch.Tensor], weight: torch.Tensor | None = None
) -> Step:
    """Forward and backward of a layer; ``weight`` counts as changed before each."""

    def step(x: torch.Tensor, grad: torch.Tensor) -> tuple[torch.Tensor, Gradients]:
        if weight is not None:
            torch.autograd.graph.increment_version(weight)
        y = forward(x)
        return y, torch.autograd.grad(y, [x, *leaves], grad)

    return step


def leaves_of(layer: Layer) -> list[torch.Tensor]:
    """Parameters in one order for all: weight, bias, norm weight, norm bias."""
    return [layer.linear.weight, layer.linear.bias, layer.norm.weight, layer.norm.bias]


def own_step(layer: Layer, numerics: str) -> Step:
    """octavo's module with the layer's parameters."""
    n, k = layer.linear.weight.shape
    module = nn.LinearNorm(k, n)
    with torch.no_grad():
        for mine, theirs in zip((module.weight, module.bias, module.norm_weight, module.norm_bias), leaves_of(layer),
                                strict=True):  # fmt: skip
            assert mine is not None
            mine.copy_(theirs)
    module.numerics = numerics
    leaves = [p for p in (module.weight, module.bias, module.norm_weight, module.norm_bias) if p is not None]
    return step_of(module, leaves, module.weight)


def autocast(layer: Layer) -> Callable[[torch.Tensor], torch.Tensor]:
    """The layer on FP32 parameters, its product in BF16."""

    def forward(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return layer(x)  # type: ignore[no-any-return]

    return forward


def peer_steps(layer: Layer, without_compiled: bool) -> dict[str, tuple[str, Callable[[], Step]]]:
    """name -> (type at the boundary, how to build it)."""

    def trainable(dtype: torch.dtype) -> Layer:
        return copy.deepcopy(layer).to(dtype).requires_grad_()

    def eager(dtype: torch.dtype) -> Step:
        own = trainable(dtype)
        return step_of(own, leaves_of(own))

    def compiled(dtype: torch.dtype) -> Step:
        own = with_own_code(trainable(dtype))
        return step_of(torch.compile(own, dynamic=True), leaves_of(own))  # type: ignore[arg-type]

    def mixed() -> Step:
        own = trainable(torch.float32)
        return step_of(autocast(own), leaves_of(own))

    table: dict[str, tuple[str, Callable[[], Step]]] = {"torch autocast bfloat16 eager": ("bfloat16", mixed)}
    for io, dtype in IO.items():
        table[f"torch {io} eager"] = (io, lambda dtype=dtype: eager(dtype))
        if not without_compiled:
            table[f"torch {io} compiled"] = (io, lambda dtype=dtype: compiled(dtype))
    return table


def agrees(found: tuple[torch.Tensor, Gradients], expected: tuple[torch.Tensor, Gradients], numerics: str) -> None:
    """Raise peers.Wrong unless y and every gradient are the reference within what the class may show."""
    for a, b in zip((found[0], *found[1]), (expected[0], *expected[1]), strict=True):
        peers.agrees(a.detach(), b.detach(), numerics)


def layer_contests(run: harness.Run, n: int, k: int) -> None:
    """One layer, every batch."""
    layer = layer_of(n, k)
    reference = copy.deepcopy(layer).requires_grad_()
    exact = step_of(reference, leaves_of(reference))
    own = {numerics: own_step(layer, numerics) for numerics in CLASSES}
    table = peer_steps(layer, run.is_smoke)
    rivals = {name: build() for name, (_, build) in table.items()}
    for m in BATCHES[run.effort.name]:
        g = torch.Generator().manual_seed(m)
        x, grad = torch.randn(m, k, generator=g), torch.randn(m, n, generator=g)
        inputs = {io: (x.to(dtype, copy=True).requires_grad_(), grad.to(dtype)) for io, dtype in IO.items()}
        expected = exact(*inputs["float32"])
        flops = 6.0 * m * n * k
        ours: list[harness.Entry] = []
        for numerics, step in own.items():
            for io in IO:
                agrees(step(*inputs[io]), expected, numerics)
                roof = run.roofs.multiply("bf16")
                ours.append(harness.Entry(
                    f"octavo {numerics} {io}", lambda i, step=step, given=inputs[io]: step(*given), io=io,
                    group="octavo",
                    facts={"numerics": numerics, "backward": "bf16"}, flops=flops, roof=roof))  # fmt: skip
        entries: list[harness.Entry] = []
        absent = {f"torch {io} compiled": "not in the smoke run: compiling takes seconds" for io in IO
                  if run.is_smoke}  # fmt: skip
        for name, step in rivals.items():
            io = table[name][0]

            def make(
                name: str = name,
                io: str = io,
                step: Step = step,
                given: tuple[torch.Tensor, torch.Tensor] = inputs[io],
                expected: tuple[torch.Tensor, Gradients] = expected,
            ) -> harness.Entry:
                agrees(step(*given), expected, "gradients")  # compiles, where it is compiled
                return harness.Entry(name, lambda i: step(*given), io=io, group="float")

            peers.admit(entries, absent, name, make)
        run.contest("linear_backward", {"m": m, "n": n, "k": k, "epilogue": "bias+layer+hardswish"}, ours, entries,
                    absent)  # fmt: skip


def body(run: harness.Run) -> None:
    """Every layer and batch, then the figures."""
    for n, k in SIZES[run.effort.name]:
        torch._dynamo.reset()
        layer_contests(run, n, k)
    rivals = where(group="float", io="bfloat16")
    mine = where(numerics="bf16", io="bfloat16")
    run.finding("linear_backward", mine, rivals, BF16_PEERS, bar=1.3)
    run.finding("linear_backward_worst", mine, rivals, BF16_PEERS, bar=1.0, worst=True)
    for numerics in CLASSES[1:]:
        run.finding(f"linear_backward_{numerics}", where(numerics=numerics, io="bfloat16"), rivals, BF16_PEERS)
    run.finding("linear_backward_float32", where(numerics="bf16", io="float32"), where(group="float", io="float32"))


if __name__ == "__main__":
    harness.main("linear_backward", body)
