"""LoKA's whole rankers on a GPU: the contests of ``loka_inference`` and ``loka_training`` there.

The models, their events, the Probe and the plans are those scripts' own, with everything on the device and costs timed
on it; a class's errors are judged by the CPU's kernels, which round alike. Served models run in CUDA graphs, training
steps are called. Peers are torch's in FP32 and BF16, eager and compiled; INT8 and FBGEMM's modules are the CPU's.
"""

from __future__ import annotations

import gc
import sys
from dataclasses import replace

import gpu_run
import loka_inference
import loka_training
import torch
from gpu_run import GpuRun
from harness import Entry, where
from loka_speed_models import SIZES, Study, served_logits

INFERENCE, TRAINING = 1.4, 1.2
SIZES_HERE = {
    "smoke": replace(SIZES["smoke"], kinds=("dcnv2",), train_steps=6, draws=8),
    "quick": replace(SIZES["full"], kinds=("dcnv2", "mlp"), batches=(1024,), train_steps=24, draws=16),
    "full": replace(SIZES["full"], batches=(256, 4096), train_batch=4096, train_steps=24, draws=16),
}


def body(run: GpuRun) -> None:
    """Every model, served at every batch and trained, then the figures."""
    size = SIZES_HERE[run.effort.name]
    for kind in size.kinds:
        if not run.has_time("loka_inference", {"model": kind}):
            continue
        study = Study(kind, size, run.device)
        reference = served_logits(study.model.eval(), study.held_out)
        rivals = loka_inference.Rivals(study, reference, run.is_smoke)
        for events in size.batches:
            if run.has_time("loka_inference", {"model": kind, "batch": events}):
                loka_inference.contest(run, study, rivals, reference, events)
        del rivals
        if run.has_time("loka_training", {"model": kind, "batch": size.train_batch}):
            loka_training.contest(run, study)
        del study
        torch.compiler.reset()
        gc.collect()

    def served(entry: Entry) -> bool:
        return entry.captures and entry.name == "octavo plan"

    def trained(entry: Entry) -> bool:
        return not entry.captures and entry.name == "octavo plan"

    named = loka_inference.NAMED[:: 1 + run.is_smoke]
    run.finding("gpu_model_inference_vs_best_torch", served, where(), named, INFERENCE)
    run.finding("gpu_model_inference_worst", served, where(), named, worst=True)
    setups = [f"torch {dtype} {mode}" for dtype in ("float32", "bfloat16") for mode in ("eager", "compiled")]
    run.finding("gpu_model_training_vs_best_torch", trained, where(), setups[:: 1 + run.is_smoke], TRAINING)
    run.finding("gpu_model_training_worst", trained, where(), setups[:: 1 + run.is_smoke], worst=True)


if __name__ == "__main__":
    sys.exit(gpu_run.main("gpu_model", body))
