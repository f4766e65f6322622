"""What each of LoKA's Mods costs in NE and brings in speed: a Wukong of plain torch layers on AdsWorld ``reference``.

The model is octavo's Wukong with every hidden layer as torch.nn.Linear, LayerNorm, SiLU, biases everywhere, as a user
would have it; tables stay octavo's. Arms: the model (``none``), one Mod at a time, all four together; each in FP32 and
under its own ``narrow`` plan (``loka_quality_runs.judged``), so that figures are of low precision on any machine.

* NE: ``loka_quality``'s paired training runs, a quarter of their rows. ``fp32``: with the Mod minus without, both in
  FP32; ``narrow``: with the Mod under its plan minus the unchanged model in FP32; ``precision``: with the Mod, its plan
  minus FP32. Every interval is 90% t over seeds.
* Speed: inference (samples/s) and a training step (examples/s), times the unchanged model in FP32, in FP32 and under
  ``plan``, the one by this machine's costs.

Findings, no gates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import harness
import loka_quality_figures as figures
import loka_quality_runs as runs
import numpy as np
import torch
from harness import Entry, where

from octavo import loka, models, nn
from octavo.config import RunConfig
from octavo.data import Batch, EventLog

SOURCE = "wukong"
MODS: dict[str, dict[str, Any]] = {
    "none": {},
    "no_bias": {"no_bias": True},
    "block_norm": {"block_norm": 256},
    "hard_swish": {"hard_swish": True},
    "fuse": {"fuse": True},
    "all": {"no_bias": True, "block_norm": 256, "hard_swish": True, "fuse": True},
}
CHOSEN = {"smoke": ("none", "all"), "quick": ("none", "block_norm", "all"), "full": tuple(MODS)}
ROWS = {name: max(rows // 4, 4096) for name, rows in runs.ROWS.items()}


def users_model(log: EventLog, config: RunConfig, mod: str) -> torch.nn.Module:
    """The Wukong in torch's layers, under a Mod."""
    model = models.build(log.schema, config.model)
    for path, module in list(model.named_modules()):
        peer = in_torch(module)
        if peer is not None:
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, peer)
    return loka.mods.apply(model, **MODS[mod]) if MODS[mod] else model


def in_torch(module: torch.nn.Module) -> torch.nn.Module | None:
    """octavo's layer as a user writes it, with its weights; None for other modules. Activations are SiLU."""
    if isinstance(module, nn.Norm):
        return _layer_norm(module.weight, module.bias, module.eps)
    if not isinstance(module, nn.Linear | nn.LinearNorm):
        return None
    linear = torch.nn.Linear(module.in_features, module.out_features, module.bias is not None)
    linear.weight, linear.bias = module.weight, module.bias
    if isinstance(module, nn.Linear):
        return linear
    norm = _layer_norm(module.norm_weight, module.norm_bias, module.eps)
    return torch.nn.Sequential(linear, norm, torch.nn.SiLU())


def _layer_norm(weight: torch.nn.Parameter, bias: torch.nn.Parameter, eps: float) -> torch.nn.LayerNorm:
    norm = torch.nn.LayerNorm(len(weight), eps)
    norm.weight, norm.bias = weight, bias
    return norm


def mod_plans(mod: str, rows: int, draws: int) -> runs.Found:
    """The plans of the model under a Mod by a warm run of its own: for training, and ``inference`` as ``plan``."""
    with runs.opened(SOURCE, runs.WARM, rows) as (log, config):
        probe = runs.warm(log, users_model(log, config, mod), config, len(log))
    reports = runs.judged(probe, draws, ("plan", "narrow"))
    served = runs.solved(reports, training=False)["plan"]
    plans = {**runs.training_plans(reports), "inference": runs.text_of(served)}
    return {name: np.array(text) for name, text in plans.items()}


def trained(seed: int, rows: int, plans: Mapping[str, str]) -> runs.Found:
    """What ``loka_quality_runs.train_paired`` returns: arms ``MOD fp32`` and ``MOD narrow``. ``plans``: by Mod."""
    with runs.opened(SOURCE, seed, rows) as (log, config):
        arms = {}
        for mod in plans:
            arms[f"{mod} fp32"] = runs.Arm(users_model(log, config, mod), config)
            low = loka.install(users_model(log, config, mod), runs.plan_of(plans[mod]), training=True)
            arms[f"{mod} narrow"] = runs.Arm(low, config)
        return runs.lockstep(arms, log.batches(config.training.batch_size))


def quality(run: harness.Run, seeds: Sequence[runs.Found]) -> None:
    """Rows and findings of every Mod."""
    mods = CHOSEN[run.effort.name]
    compared = {
        "fp32": ("none fp32", [f"{mod} fp32" for mod in mods if mod != "none"]),
        "narrow": ("none fp32", [f"{mod} narrow" for mod in mods]),
    }
    for name, (base, arms) in compared.items():
        found = figures.trained(run, f"loka_mods {name}", {"model": SOURCE, "than": base}, seeds, arms, base)
        for (task, arm), figure in found.items():
            run.measured(f"loka_mods_ne_{task}_{arm.replace(' ', '_')}", figure, verdict=figures.verdict(figure))
    for mod in mods:
        base, arms = f"{mod} fp32", [f"{mod} narrow"]
        found = figures.trained(run, "loka_mods precision", {"model": SOURCE, "than": base}, seeds, arms, base)
        for (task, _), figure in found.items():
            run.measured(f"loka_mods_ne_{task}_{mod}_precision", figure)


def speed(run: harness.Run, plans: Mapping[str, Mapping[str, str]]) -> None:
    """Two contests, whole model with tables and, in training, optimizers; the unchanged model in FP32 is the peer."""
    with runs.opened(SOURCE, 0, 8 * runs.BATCH) as (log, config):
        batches = list(log.batches(runs.BATCH))
        entries: dict[str, list[Entry]] = {"inference": [], "training": []}
        for mod in plans:
            for numerics in ("fp32", "plan"):
                served, taught = (users_model(log, config, mod).eval(), users_model(log, config, mod))
                if numerics == "plan":
                    served = loka.install(served, runs.plan_of(plans[mod]["inference"]), training=False)
                    loka.install(taught, runs.plan_of(plans[mod]["plan"]), training=True)
                calls = {"inference": inferred(served, batches), "training": stepped(runs.Arm(taught, config), batches)}
                facts = {"mod": mod, "numerics": numerics}
                for what, call in calls.items():
                    entries[what].append(Entry(f"{mod} {numerics}", call, io="float32", facts=facts, items=runs.BATCH))
    for what, (base, *ours) in entries.items():
        run.contest(f"loka_mods {what}", {"what": what, "batch": runs.BATCH}, ours, [base])
        for one in ours:
            run.finding(
                f"loka_mods_{what}_{one.name.replace(' ', '_')}", where(**one.facts), where(name=base.name),
                among=lambda shape, what=what: shape["what"] == what,
            )  # fmt: skip


def inferred(model: torch.nn.Module, batches: Sequence[Batch]) -> Callable[[int], object]:
    """Predicts a batch a call."""

    def call(turn: int) -> object:
        with torch.inference_mode():
            return model(batches[turn % len(batches)])

    return call


def stepped(arm: runs.Arm, batches: Sequence[Batch]) -> Callable[[int], object]:
    """Trains on a batch a call."""
    return lambda turn: arm.take(batches[turn % len(batches)])


def body(run: harness.Run) -> None:
    """Plans, speed on all threads, then NE."""
    keep, rows, mods = not run.is_smoke, ROWS[run.effort.name], CHOSEN[run.effort.name]
    shared = {"rows": rows, "draws": runs.DRAWS[run.effort.name]}
    warm = runs.side_by_side([(mod_plans, {"mod": mod, **shared}) for mod in mods], keep)
    plans = {mod: {name: str(text) for name, text in found.items()} for mod, found in zip(mods, warm)}
    speed(run, plans)
    narrow = {mod: own["narrow"] for mod, own in plans.items()}
    jobs = [(trained, {"seed": seed, "rows": rows, "plans": narrow}) for seed in range(runs.SEEDS[run.effort.name])]
    quality(run, runs.side_by_side(jobs, keep))


if __name__ == "__main__":
    harness.main("loka_mods", body)
