"""Training in BF16 and by a plan: which kernels run, what stays FP32, what a resumed run does."""

from __future__ import annotations

import pytest
import torch
from training_support import assert_same_bits, demo_log, everything, finished, small_config

from octavo import ops
from octavo.data import EventLog
from octavo.ops import kernels
from octavo.training import Trainer, numerics


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> EventLog:
    return demo_log(tmp_path_factory.mktemp("numerics") / "log", 3000)


def forward_classes(run) -> set[str]:
    before = ops.dispatch.counters()
    run()
    ran = {k for k, n in ops.dispatch.counters().items() if n > before.get(k, 0) and ".linear." in k}
    return {kernels.by_name(k).numerics.name for k in ran}


def test_bf16_trains_on_bf16_kernels_with_fp32_masters(log, tmp_path) -> None:
    trainer = Trainer(small_config(training__precision="bf16"), log, tmp_path / "bf16")
    steps = trainer.run()
    next(steps)  # qualifies the kernels
    assert forward_classes(lambda: list(steps)) == {"bf16"}
    plain = finished(Trainer(small_config(), log, tmp_path / "fp32"))
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    a, b = (t.progressive.cumulative()["click"].ne for t in (trainer, plain))
    assert a != b
    assert a == pytest.approx(b, abs=2e-3)


def test_a_plan_is_made_on_early_batches_and_made_again(log, tmp_path) -> None:
    config = small_config(training__precision="plan", training__plan_every=10, plan__min_sqnr_db=10)
    trainer = Trainer(config, log, tmp_path)
    plans = []
    for _ in trainer.run():
        if trainer.plan is not None and (not plans or plans[-1] is not trainer.plan):
            plans.append(trainer.plan)
            assert trainer.updates in (21, 31)
    assert len(plans) == 2
    layers = numerics.linear_layers(trainer.model)
    assert {entry.site: entry.numerics for entry in trainer.plan} == {s: x.numerics for s, x in layers.items()}
    sqnr = [e.predicted_sqnr_db for e in trainer.plan if e.numerics != "fp32"]
    assert all(db >= 10 for db in sqnr)


@pytest.mark.parametrize("precision", ["bf16", "plan"])
def test_resuming_gives_the_same_bits(log, tmp_path, precision) -> None:
    config = small_config(training__precision=precision, training__plan_every=8, plan__min_sqnr_db=10)
    whole = finished(Trainer(config, log, tmp_path / "whole"))
    trainer = Trainer(config, log, tmp_path / "run")
    for _ in trainer.run():
        if trainer.step == 25:
            break
    resumed = finished(Trainer(config, log, tmp_path / "run"))
    assert_same_bits(everything(resumed), everything(whole))
    if precision == "plan":
        assert resumed.plan == whole.plan


def test_layers_that_share_a_weight_follow_one_entry() -> None:
    from octavo import nn

    model = torch.nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    plan = ops.dispatch.uniform_plan(model, torch.randn(4, 8), "bf16")
    numerics.follow(model, plan)
    assert [layer.numerics for layer in model] == ["bf16", "bf16"]
