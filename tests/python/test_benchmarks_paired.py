"""The arithmetic behind ``loka_quality``, ``loka_comm`` and ``loka_mods``: figures, what is kept, naive FP8."""

import copy
import importlib
from pathlib import Path

import numpy as np
import pytest
import torch

from octavo import nn

FOLDER = Path(__file__).parents[2] / "benchmarks" / "python"


def test_figures_of_paired_runs_are_in_percent_and_by_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    figures = importlib.import_module("loka_quality_figures")
    rng = np.random.default_rng(0)
    seeds = []
    for shift in (0.0, 0.1, 0.2):
        labels = (rng.random((1, 4000)) < 0.3).astype(np.float32)
        fp32 = np.full((1, 4000), np.log(0.3 / 0.7), np.float32)
        seeds.append({"fp32": fp32, "a": fp32 + np.float32(shift), "labels": labels, "user": np.arange(4000) % 50})
    each = figures.by_seed(seeds, "a", 0)
    assert each[0] == 0
    p = 1 / (1 + np.exp(-np.float64(seeds[2]["a"][0, 0])))
    y, q = seeds[2]["labels"].mean(), 0.3
    own, base = (-y * np.log(v) - (1 - y) * np.log(1 - v) for v in (p, q))
    assert each[2] == pytest.approx(100 * (own - base) / base, rel=1e-4)
    found = figures.over_seeds(each)
    half = 2.919986 * np.std(each, ddof=1) / np.sqrt(3)  # t of 2 degrees of freedom, 95%
    assert (found.figure, found.high - found.figure) == pytest.approx((np.mean(each), half), rel=1e-5)
    wide = figures.over_clusters(seeds, "a", 0, 200)
    assert wide.low < wide.figure < wide.high
    assert wide.figure == pytest.approx(found.figure, rel=0.05)
    assert figures.verdict(figures.Interval(0, -0.01, 0.02)) == "inside the margin"
    assert figures.verdict(figures.Interval(0.1, 0.05, 0.2)) == "outside"
    assert figures.verdict(figures.Interval(0.1, -0.01, 0.2)) == "not resolved"


def test_naive_fp8_rounds_all_three_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    tensorwise = importlib.import_module("tensorwise")
    torch.manual_seed(0)
    plain = nn.LinearNorm(24, 17, "layer", "hardswish")
    naive = tensorwise.install(torch.nn.Sequential(copy.deepcopy(plain)))[0]
    x = torch.randn(5, 3, 24, requires_grad=True)
    x_naive = x.detach().clone().requires_grad_()
    y, z = plain(x), naive(x_naive)
    grad = torch.randn_like(y)
    y.backward(grad)
    z.backward(grad)
    for exact, found in ((y.detach(), z.detach()), (x.grad, x_naive.grad), (plain.weight.grad, naive.weight.grad)):
        error = float((found - exact).abs().sum() / exact.abs().sum())
        assert 0.01 < error < 0.2
    weight = plain.weight.detach()
    eight = tensorwise.rounded(weight, "e4m3")
    scale = weight.abs().max() / 448
    expected = (weight / scale).to(torch.float8_e4m3fn).float() * scale
    assert torch.allclose(eight, expected, rtol=1e-6, atol=0)


def test_a_job_is_made_once_for_its_settings_and_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    runs = importlib.import_module("loka_quality_runs")
    monkeypatch.setattr(runs, "KEPT", tmp_path)
    made = []

    def job(seed: int) -> dict[str, np.ndarray]:
        made.append(seed)
        return {"seed": np.array(seed)}

    assert [int(runs.kept(job, {"seed": seed}, True)["seed"]) for seed in (1, 2, 1)] == [1, 2, 1]
    assert made == [1, 2]
    runs.kept(job, {"seed": 1}, False)
    monkeypatch.setattr(runs, "_digest", lambda caller: "other code")
    runs.kept(job, {"seed": 1}, True)
    assert made == [1, 2, 1, 1]
    assert not list(tmp_path.glob("*.tmp"))


def test_arms_in_lockstep_are_arms_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of an arm beside it changes nothing; one ulp is one ulp; logits are those before the update."""
    monkeypatch.syspath_prepend(str(FOLDER))
    runs = importlib.import_module("loka_quality_runs")
    both, alone = (runs.train_paired("dcnv2", 0, 512, arms, {}) for arms in (["fp32", "aa", "naive"], ["fp32"]))
    assert np.array_equal(both["fp32"], alone["fp32"])
    assert both["labels"].shape == both["aa"].shape == (2, 512)
    assert 0 < np.abs(both["aa"] - both["fp32"]).max() < 1e-3
    assert np.abs(both["naive"] - both["fp32"]).max() > 1e-3
    with runs.opened("dcnv2", 0, 512) as (log, config):
        model = runs.models.build(log.schema, config.model)
        first = next(log.batches(config.training.batch_size))
        with torch.no_grad():
            logits = model(first)["click"].numpy()
    assert np.allclose(logits, both["fp32"][0, : len(logits)], rtol=0, atol=1e-6)
