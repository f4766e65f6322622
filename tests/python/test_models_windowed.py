"""Heads of several windows whose probabilities cannot fall with the window."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models_support import KINDS, SCHEMA, events, model_config, scramble
from training_support import finished, small_config

from octavo import models
from octavo.config import build_config
from octavo.data import AdsWorld, Label, preset
from octavo.evaluation import ne
from octavo.models.windowed import monotone, window_chains
from octavo.training import Trainer
from octavo.training.slices import predict

LABELS = (Label("click"), Label("sale", delay="sale_delay", windows=("7d", "1d", "30d")), Label("like"))
WINDOWED = dataclasses.replace(SCHEMA, labels=LABELS)
CHAIN = ("sale@1d", "sale@7d", "sale@30d")


def test_chains_are_by_length_of_window() -> None:
    assert window_chains(LABELS) == (CHAIN,)
    assert window_chains((Label("a"), Label("b", delay="d", windows=("1d",)))) == ()


@settings(max_examples=200, deadline=None)
@given(st.floats(-60, 60), st.floats(-60, 60), st.floats(-60, 60))
def test_it_is_p_plus_the_rest_times_q(z: float, g: float, h: float) -> None:
    logits = {"sale@1d": z, "sale@7d": g, "sale@30d": h, "click": 0.5}
    found = monotone({name: torch.tensor([value], dtype=torch.float64) for name, value in logits.items()}, (CHAIN,))
    assert float(found["click"]) == 0.5
    assert float(found["sale@1d"]) == z
    log_miss = 0.0  # ln P(not within): a product of survivals, as a hazard model has it
    for name in CHAIN:
        log_miss -= np.logaddexp(0, logits[name])
        expected = math.log(-math.expm1(log_miss)) - log_miss
        assert float(found[name]) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-100, 100, width=32), min_size=3, max_size=3))
def test_float32_never_falls_and_its_gradients_are_finite(values: list[float]) -> None:
    leaves = [torch.tensor([value], requires_grad=True) for value in values]
    found = monotone(dict(zip(CHAIN, leaves, strict=True)), (CHAIN,))
    rising = [float(found[name].detach()) for name in CHAIN]
    assert rising == sorted(rising)
    sum(found.values()).sum().backward()  # type: ignore[union-attr]
    for leaf in leaves:
        assert leaf.grad is not None
        assert math.isfinite(float(leaf.grad))


def test_gradients_are_those_of_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    leaves = [
        torch.randn(7, generator=generator, dtype=torch.float64, requires_grad=True).mul(3).detach().requires_grad_()
        for _ in CHAIN
    ]
    assert torch.autograd.gradcheck(
        lambda *z: tuple(monotone(dict(zip(CHAIN, z, strict=True)), (CHAIN,)).values()), leaves
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("heads", [{"tower": [6]}, {"kind": "mmoe", "experts": 3, "expert": [7]}], ids=["one", "mmoe"])
def test_every_model_has_them(kind: str, heads: dict[str, Any]) -> None:
    config = {"embedding_dim": 5, "heads": {**heads, "windows": "monotone"}}
    rising = scramble(models.build(WINDOWED, model_config(kind, **config))).eval()
    config["heads"] = heads
    free = scramble(models.build(WINDOWED, model_config(kind, **config))).eval()
    free.load_state_dict(rising.state_dict())
    batch = dataclasses.replace(events(64), labels={})
    with torch.no_grad():
        own, other = rising(batch), free(batch)
        again = rising.logits(rising.embed(batch))
    expected = monotone(other, (CHAIN,))
    assert all(torch.equal(own[head], expected[head]) for head in WINDOWED.heads)
    assert all(torch.equal(own[head], again[head]) for head in WINDOWED.heads)
    assert bool((own["sale@7d"] >= own["sale@1d"]).all())
    assert bool((own["sale@30d"] >= own["sale@7d"]).all())
    assert bool((other["sale@7d"] < own["sale@7d"]).all())


def test_the_streaming_trainer_learns_windows_as_they_become_known(tmp_path: Path) -> None:
    """AdsWorld's late conversions: heads of 1 and 6 hours, each trained when its window has closed."""
    calm = preset("delay").traffic.model_copy(update={"impressions_per_day": 3000.0})
    world = AdsWorld(preset("delay").model_copy(update={"traffic": calm}), seed=4)
    log = world.write(tmp_path / "log", days=4).with_labels(
        Label("click", delay="click_delay", windows=("1h",)),
        Label("conversion", delay="conversion_delay", anchor="click", windows=("1h", "6h", "24h")),
    )
    chain = ("conversion@1h", "conversion@6h", "conversion@24h")
    config = small_config(training__labels="known", training__holdout=0.2)
    heads = build_config({"model": {"heads": {"windows": "monotone"}}}).model.heads
    config = config.model_copy(update={"model": config.model.model_copy(update={"heads": heads})})
    trainer = finished(Trainer(config, log, tmp_path / "run"))
    assert trainer.model.chains == (chain,)
    found = predict(trainer.model, log, trainer.train_end, len(log))
    z = np.stack([np.asarray(found.logits[head]) for head in chain])
    assert (np.diff(z, axis=0) >= 0).all()
    before = predict(models.build(log.schema, config.model), log, trainer.train_end, len(log))
    for head in chain:
        assert ne(found.logits[head], found.labels[head], logits=True) < 0.5 * ne(
            before.logits[head], found.labels[head], logits=True
        )
