"""Samples a second of whole rankers, embeddings included: octavo under LoKA's plan against torch and octavo in BF16.

Four trained models (``loka_speed_models``), each at every batch it serves. octavo is what one would deploy: layers by
the plan (``loka.solve`` on a Probe's report, costs at that batch; ``loka.install``), tables with INT8 rows. ``octavo
bf16`` has every layer and table in BF16. torch has the same weights in its own modules, all tables in one bag: FP32
and BF16, eager, compiled behind the tables with frozen weights, scripted and frozen; and in INT8 ``quantize_dynamic``
(x86) with float and with byte rows, and torchao. A row says what a candidate's logits cost in NE on held-out events;
whose NE is off by more than a hundredth is no contestant.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import harness
import linear_peers
import peers
import torch
from harness import Entry, where
from loka_speed_models import (
    SERVED_ROWS,
    SIZES,
    TASK,
    Study,
    classes_of,
    quality_facts,
    served_logits,
)
from loka_speed_torch import ByteRows, FloatRows, Served, Whole, frozen_script, stacked_rows, towers_of

from octavo import loka
from octavo.data import Batch
from octavo.ops import dispatch

FURTHEST_NE = 0.01  # a candidate further from FP32 did other work
NAMED = ("torch float32 eager", "torch float32 compiled", "torch bfloat16 eager", "torch bfloat16 compiled")


@dataclass(frozen=True)
class Rival:
    """torch in one set-up, and what it costs in NE."""

    group: str
    dtype: torch.dtype
    call: Served
    facts: dict[str, float]


class Rivals:
    """torch's candidates for one model, built once."""

    def __init__(self, study: Study, reference: torch.Tensor, smoke: bool) -> None:
        self.absent: dict[str, str] = {}
        self.found: dict[str, Rival] = {}
        self._study, self._reference = study, reference
        tables, device = len(study.size.rows), study.events.device

        def own_towers() -> torch.nn.Module:
            return towers_of(study.kind, study.model, tables, study.size.dim).to(device)

        rows, towers = stacked_rows(study.model), own_towers().eval()
        whole = Whole(FloatRows(rows, tables), towers).requires_grad_(False)
        half = Whole(FloatRows(rows.bfloat16(), tables), own_towers().bfloat16()).eval().requires_grad_(False)

        def scripted(module: Whole, dtype: torch.dtype) -> Served:
            return frozen_script(module, self.inputs(study.held_out, dtype))

        def compiled(module: Whole) -> Whole:
            return Whole(module.rows, linear_peers.compiled(copy.deepcopy(module.towers)))

        f32, bf16 = torch.float32, torch.bfloat16
        recipes: dict[str, tuple[str, torch.dtype, Callable[[], Any]]] = {
            "torch float32 eager": ("float", f32, lambda: whole),
            "torch float32 compiled": ("float", f32, lambda: compiled(whole)),
            "torch float32 scripted": ("float", f32, lambda: scripted(whole, f32)),
            "torch bfloat16 eager": ("float", bf16, lambda: half),
            "torch bfloat16 compiled": ("float", bf16, lambda: compiled(half)),
            "torch bfloat16 scripted": ("float", bf16, lambda: scripted(half, bf16)),
            "quantize_dynamic x86": ("int8", f32, lambda: Whole(whole.rows, linear_peers.quantized_dynamic(towers))),
            "quantize_dynamic x86, byte rows": (
                "int8", f32, lambda: Whole(ByteRows(rows, tables), linear_peers.quantized_dynamic(towers))),
            "torchao int8 eager": ("int8", f32, lambda: Whole(whole.rows, linear_peers.torchao_int8(towers))),
            "torchao int8 compiled": (
                "int8", f32, lambda: Whole(whole.rows, linear_peers.compiled(linear_peers.torchao_int8(towers)))),
        }  # fmt: skip
        for name, (group, dtype, build) in recipes.items():
            if device == "cuda" and group == "int8":
                continue  # of x86
            if smoke and "compiled" in name:
                self.absent[name] = "not in the smoke run: compiling takes seconds"
                continue
            peers.admit([], self.absent, name, lambda n=name, g=group, d=dtype, b=build: self._agreeing(n, g, d, b))  # type: ignore[misc]

    def inputs(self, batch: Batch, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        """What a torch user's loader hands over."""
        return (batch.dense.to(dtype), *self._study.events.stacked(batch))

    def _agreeing(self, name: str, group: str, dtype: torch.dtype, build: Callable[[], Any]) -> Entry:
        call, held_out = build(), self._study.held_out
        with torch.inference_mode():
            logits = call(*self.inputs(held_out, dtype))
        facts = quality_facts(logits, self._reference, held_out)
        if abs(facts["ne_difference"]) > FURTHEST_NE:
            raise peers.Wrong(f"NE is {facts['ne_difference']:+.2%} off FP32's")
        self.found[name] = Rival(group, dtype, call, facts)
        return Entry(name, call)

    def entries(self, batches: list[Batch]) -> list[Entry]:
        """A candidate for each, fed with its own inputs."""
        fed = {dtype: [self.inputs(batch, dtype) for batch in batches] for dtype in (torch.float32, torch.bfloat16)}
        return [
            Entry(name, torch_call(rival.call, fed[rival.dtype]), io="float32", group=rival.group)
            for name, rival in self.found.items()
        ]


def torch_call(served: Served, fed: list[tuple[torch.Tensor, ...]]) -> Callable[[int], torch.Tensor]:
    """The i-th call."""

    def call(i: int) -> torch.Tensor:
        with torch.inference_mode():
            return served(*fed[i % len(fed)])

    return call


def octavo_entry(name: str, model: torch.nn.Module, batches: list[Batch], facts: dict[str, Any]) -> Entry:
    """A served model of octavo's."""

    def call(i: int) -> torch.Tensor:
        with torch.inference_mode():
            logits: torch.Tensor = model(batches[i % len(batches)])[TASK]
            return logits

    return Entry(name, call, io="float32", group=name, facts=facts, items=len(batches[0]))


def contest(run: harness.Run, study: Study, rivals: Rivals, reference: torch.Tensor, events: int) -> None:
    """One model at one batch."""
    batches = study.events.batches(events, max(4, min(64, 16_384 // events)))
    plan = study.plan(batches[0])
    uniform = dispatch.uniform_plan(study.model.eval(), batches[0], "bf16")
    ours = []
    for name, chosen, rows in (("octavo plan", plan, SERVED_ROWS), ("octavo bf16", uniform, "bf16")):
        model = loka.install(study.with_rows(rows), chosen, training=False)
        logits = served_logits(model, study.held_out)
        facts = {"classes": classes_of(chosen), "rows": rows, **quality_facts(logits, reference, study.held_out)}
        ours.append(octavo_entry(name, model, batches, facts))
    shape = {"model": study.kind, "batch": events, "tables": len(study.size.rows), "dim": study.size.dim}
    others = {name: rival.facts["ne_difference"] for name, rival in rivals.found.items()}
    ours[0] = replace(ours[0], facts={**ours[0].facts, "peers_ne_difference": others})
    run.contest("loka_inference", shape, ours, rivals.entries(batches), rivals.absent)


def body(run: harness.Run) -> None:
    """Every model at every batch, then the figures."""
    size = SIZES[run.effort.name]
    for kind in size.kinds:
        study = Study(kind, size)
        reference = served_logits(study.model.eval(), study.held_out)
        rivals = Rivals(study, reference, run.is_smoke)
        for events in size.batches:
            contest(run, study, rivals, reference, events)
        del study, rivals
        torch.compiler.reset()
        gc.collect()
    named = NAMED[::2] if run.is_smoke else NAMED  # which compiles nothing
    ours, floats = where(group="octavo plan"), where(group="float")
    run.finding("loka_inference_vs_best_float", ours, floats, named, 2.0)
    run.finding("loka_inference_vs_best_float_worst", ours, floats, named, 1.1, worst=True)
    run.finding("loka_inference_vs_best_any", ours, where(), named, 1.4)
    run.finding("loka_inference_vs_best_any_worst", ours, where(), named, 1.1, worst=True)
    for kind in size.kinds:

        def of_kind(shape: Any, kind: str = kind) -> bool:
            return bool(shape["model"] == kind)

        run.rivalry(f"loka_inference_{kind}_vs_octavo_bf16", "octavo plan", "octavo bf16", 1.0, of_kind)
        run.finding(f"loka_inference_{kind}_vs_best_float", ours, floats, among=of_kind)
        run.finding(f"loka_inference_{kind}_vs_best_any", ours, where(), among=of_kind)
    run.rivalry("loka_inference_vs_octavo_bf16", "octavo plan", "octavo bf16")


if __name__ == "__main__":
    harness.main("loka_inference", body)
