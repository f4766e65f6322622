"""Probe on models: what it watches and when, what it takes for a layer's gradient, state, merging, refusals."""

from __future__ import annotations

import copy
import logging
import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from octavo import loka, nn
from octavo.loka.candidates import chosen_candidates, own_candidate
from octavo.loka.layers import fingerprint
from octavo.loka.sites import parts_of, picked_rows
from octavo.ops.dispatch import Requirement


def _model(seed: int = 0) -> torch.nn.Sequential:
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Linear(12, 20), torch.nn.ReLU(), nn.LinearNorm(20, 16), nn.Linear(16, 16), torch.nn.Linear(16, 3)
    )


def _step(model: torch.nn.Module, seed: int, m: int = 64) -> torch.Tensor:
    x = torch.randn(m, 12, generator=torch.Generator().manual_seed(seed)) + 2
    model(x).square().sum(1).mean().backward()
    return x


def _hooks(model: torch.nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def _assert_same(a: loka.Probe, b: loka.Probe) -> None:
    for name, tensor in a.state_dict().items():
        torch.testing.assert_close(tensor, b.state_dict()[name], rtol=1e-9, atol=1e-12, msg=name)


def test_only_every_nth_step_has_hooks() -> None:
    model = _model()
    with loka.Probe(model, every=3) as probe:
        seen = []
        for step in range(7):
            seen.append(_hooks(model))
            _step(model, step)
            probe.step()
        assert seen == [0, 0, 4, 0, 0, 4, 0]
        assert (probe.steps, probe.observed) == (7, 2)
        assert all(site.input.rows == site.gradient.rows == 128 for site in probe.sites.values())
        _step(model, 7)
        probe.step()
        assert _hooks(model) == 4
    assert _hooks(model) == 0
    with pytest.raises(RuntimeError, match="probe: is closed"):
        probe.step()


def test_inputs_and_gradients_are_the_products() -> None:
    """Against autograd: the gradient of z = x W^T + b, of a layer with a norm inside too."""
    model = _model()
    probe = loka.Probe(model, every=1)
    x = _step(model, 1)
    probe.step()
    probe.close()
    zs, inputs = [], []
    for layer in model:
        if isinstance(layer, torch.nn.ReLU):
            x = layer(x)
            continue
        inputs.append(x)
        zs.append(functional.linear(x, layer.weight, layer.bias))
        zs[-1].retain_grad()
        x = zs[-1]
        if isinstance(layer, nn.LinearNorm):
            x = functional.hardswish(functional.layer_norm(x, (16,), layer.norm_weight, layer.norm_bias, layer.eps))
    x.square().sum(1).mean().backward()
    assert list(probe.sites) == ["0", "2", "3", "4"]
    for site, z, given in zip(probe.sites.values(), zs, inputs, strict=True):
        assert z.grad is not None
        torch.testing.assert_close(site.input.mean, given.double().mean(0), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(site.gradient.mean, z.grad.double().mean(0), rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(site.gradient.covariance(), z.grad.double().T.cov(), rtol=1e-4, atol=1e-8)
        assert (site.m, site.dtype) == (64, "float32")
    assert probe.sites["2"].epilogue == "bias+layer+hardswish"


def test_rows_are_picked_and_calls_may_be_many() -> None:
    layer = torch.nn.Linear(2, 1)
    probe = loka.Probe(torch.nn.Sequential(layer), every=1, most_rows=4)
    model = probe.model
    rows = torch.arange(10.0)[:, None].expand(10, 2)
    model(rows.reshape(2, 5, 2)).sum().backward()
    model(rows[:0])
    model(rows[:3].bfloat16().float())
    probe.step()
    site = probe.sites["0"]
    assert (site.input.rows, site.gradient.rows, site.m) == (7, 4, 10)
    picks = picked_rows(10, 4, 0)
    assert picks is not None
    assert float(site.input.mean[0]) == pytest.approx((float(picks.sum()) + 0 + 1 + 2) / 7)


def test_the_largest_call_is_what_costs_are_of() -> None:
    """Not the remainder that a log ends with, in whatever order ranks are merged."""
    model, other = _model(), _model()
    with loka.Probe(model, every=1) as probe, loka.Probe(other, every=1) as twin:
        for rows in (32, 32, 3):
            _step(model, 0, rows)
            probe.step()
        _step(other, 0, 5)
        twin.step()
    assert {site.m for site in probe.sites.values()} == {32}
    twin.merge(probe)
    probe.merge(loka.Probe(_model()))
    assert {site.m for one in (probe, twin) for site in one.sites.values()} == {32}


def test_picked_rows_reach_all_and_fall_in_with_no_period() -> None:
    counts = torch.zeros(64)
    for seed in range(2000):
        picks = picked_rows(64, 8, seed)
        assert picks is not None
        assert (picks // 8).tolist() == list(range(8))
        counts[picks] += 1
    assert float((counts / 250 - 1).abs().max()) < 0.3
    assert picked_rows(8, 8, 0) is None


def test_a_shared_weight_is_one_site() -> None:
    model = torch.nn.ModuleList([torch.nn.Linear(4, 4), torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)])
    model[1].weight = model[0].weight
    probe = loka.Probe(model, every=1)
    assert list(probe.sites) == ["0", "2"]
    for layer in model[:2]:
        layer(torch.ones(5, 4)).sum().backward()
    probe.step()
    assert probe.sites["0"].input.rows == 10
    assert probe.unreached == ("2",)
    report = probe.evaluate(draws=4, measure_costs=False)
    assert [site.path for site in report.sites] == ["0"]
    assert report.settings["unreached"] == ["2"]


def test_state_goes_on_and_merges(tmp_path: Path) -> None:
    model = _model()
    whole, first, second = (loka.Probe(model, every=1, weights="matrix_normal", weights_every=2) for _ in range(3))
    probes = [whole, first]
    for step in range(8):
        _step(model, step)
        if step == 4:
            first.close()
            second.load_state_dict(first.state_dict())
            probes = [whole, second]
        for probe in probes:
            probe.step()
    # A probe has hooks while others step: `second` saw all steps until it took the state of `first`.
    _assert_same(whole, second)
    path = tmp_path / "probe.safetensors"
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(whole.state_dict(), path)
    loaded = loka.Probe(_model(1), every=1, weights="matrix_normal")
    loaded.load_state_dict(safetensors.load_file(path))
    _assert_same(whole, loaded)
    for probe in (whole, second, loaded):
        probe.close()


def test_ranks_merge_into_what_one_would_have_seen() -> None:
    model = _model()
    one, ranks = loka.Probe(model, every=1), []
    batches = [_step(model, seed) for seed in range(3)]
    one.step()
    one.close()
    for x in batches:
        rank = loka.Probe(copy.deepcopy(model), every=1)
        rank.model(x).square().sum(1).mean().backward()
        rank.step()
        rank.close()
        ranks.append(rank)
    ranks[0].merge(ranks[1])
    ranks[0].merge(ranks[2].state_dict())
    for mine, theirs in zip(one.sites.values(), ranks[0].sites.values(), strict=True):
        for (_, a), (_, b) in zip(parts_of(mine), parts_of(theirs), strict=True):
            assert isinstance(a, loka.Statistics)
            assert isinstance(b, loka.Statistics)
            assert a.rows == b.rows == 192
            torch.testing.assert_close(a.covariance(), b.covariance(), rtol=1e-5, atol=1e-7)
    assert (ranks[0].steps, ranks[0].observed) == (1, 3)


def test_other_models_and_settings_are_refused() -> None:
    probe = loka.Probe(_model(), every=1)
    other = torch.nn.Sequential(torch.nn.Linear(12, 21), torch.nn.Linear(21, 3))
    with pytest.raises(ValueError, match=r"state: is of another model \(1, 2, 3, 4\)"):
        probe.merge(loka.Probe(other))
    with pytest.raises(ValueError, match="state: is not the state_dict of a Probe"):
        probe.load_state_dict({})
    for other, words in (
        (loka.Probe(_model(), tails=False), r"nothing else and lacks 0/gradient/row_amax.*the same tails and weights"),
        (loka.Probe(_model(), weights="matrix_normal"), r"set up otherwise: it has 0/weight/\w+, .* and lacks nothing"),
    ):
        before = probe.state_dict()
        for take in (probe.load_state_dict, probe.merge):
            with pytest.raises(ValueError, match=words):
                take(other.state_dict())
        assert all(torch.equal(before[name], tensor) for name, tensor in probe.state_dict().items())
    with pytest.raises(ValueError, match=r"model: has no torch.nn.Linear"):
        loka.Probe(torch.nn.ReLU())
    with pytest.raises(ValueError, match="every: expected a whole number of at least 1, found 0"):
        loka.Probe(_model(), every=0)
    with pytest.raises(ValueError, match=r"most_rows: expected a whole number of at least 1, found 1\.5"):
        loka.Probe(_model(), most_rows=1.5)
    with pytest.raises(TypeError, match="model: expected a torch.nn.Module, found str"):
        loka.Probe("model")
    with pytest.raises(TypeError, match="other: expected a Probe or its state_dict, found int"):
        loka.Probe(_model()).merge(3)
    with pytest.raises(TypeError, match=r"candidates: expected several, found the string 'bf16'; give \['bf16'\]"):
        chosen_candidates("bf16")
    with pytest.raises(ValueError, match="weights: found 'mean'"):
        loka.Probe(_model(), weights="mean")
    with pytest.raises(ValueError, match="run the model once"):
        loka.Probe(torch.nn.Sequential(torch.nn.LazyLinear(3)))


def test_layers_of_one_shape_with_another_epilogue_are_another_model() -> None:
    plain = torch.nn.Sequential(torch.nn.Linear(12, 16), torch.nn.ReLU())
    fused = torch.nn.Sequential(nn.LinearNorm(12, 16, "layer", "silu"), torch.nn.Identity())
    probe = loka.Probe(plain)
    with pytest.raises(ValueError, match="the same paths with other shapes or epilogues"):
        probe.merge(loka.Probe(fused))
    before = {**loka.Probe(plain).state_dict(), "fingerprint": _bytes(fingerprint(plain, epilogues=False))}
    probe.merge(before)  # of an octavo that did not know better


def _bytes(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)


class _Named(torch.nn.Linear):
    def reset_parameters(self) -> None:
        torch.nn.init.zeros_(self.weight)
        torch.nn.init.zeros_(self.bias)


class _Own(torch.nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 1


def test_layers_that_no_plan_can_be_installed_in_are_named_and_left_alone(caplog) -> None:
    normed = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(12, 12))
    model = torch.nn.Sequential(_Named(12, 12), _Own(12, 12), normed, torch.nn.Linear(12, 3))
    with caplog.at_level(logging.WARNING, "octavo.loka"), loka.Probe(model, every=1) as probe:
        _step(model, 0)
        probe.step()
    assert list(probe.sites) == ["0", "3"]
    assert "probe: 1 is left alone: it is a _Own, whose forward is its own" in caplog.text
    assert "probe: 2 is left alone: it is parametrized" in caplog.text
    plan = loka.solve(probe.evaluate(draws=4), Requirement(), min_speedup=1e-9, training=True)
    loka.install(model, plan)
    assert isinstance(model[0], nn.Linear)
    with pytest.raises(ValueError, match=r"model: has no torch.nn.Linear"):
        loka.Probe(torch.nn.Sequential(normed))


def test_a_step_without_the_model_is_an_error() -> None:
    probe = loka.Probe(_model(), every=2)
    with pytest.raises(RuntimeError, match=r"none of 0 steps was observed \(every=2\)"):
        probe.evaluate()
    probe.step()
    with pytest.raises(RuntimeError, match="none of the model's linear layers was called"):
        probe.step()


def test_nan_and_infinite_activations_are_counted() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 3))
    probe = loka.Probe(model, every=1)
    x = torch.randn(32, 4)
    x[3, 1], x[5, 2] = math.nan, -math.inf
    model(x).square().mean().backward()
    probe.step()
    report = probe.evaluate(draws=4, measure_costs=False)
    seen = report.settings["statistics"]["0"]["input"]
    assert (seen["rows"], seen["nan_rows"], seen["infinite_rows"]) == (30, 1, 1)
    assert all({"saturation", "nan"} <= set(finding.concerns) for finding in report.at("0"))
    assert all(math.isfinite(e.value) for finding in report.findings for e in finding.errors.values())
    broken = loka.Probe(model, every=1)
    model(torch.full((3, 4), math.nan))
    broken.step()
    assert broken.evaluate(draws=4, measure_costs=False).findings == ()


def test_a_compiled_model_runs_eagerly_where_it_is_watched() -> None:
    calls = []

    def backend(graph: torch.fx.GraphModule, _: object) -> object:
        def run(*args: torch.Tensor) -> object:
            calls.append(1)
            return graph.forward(*args)

        return run

    model = _model()
    compiled = torch.compile(model, backend=backend)
    with torch.no_grad():
        compiled(torch.ones(8, 12))
    assert calls
    probe = loka.Probe(compiled, every=2)
    before = len(calls)
    for number, rows in ((0, 0), (1, 64), (2, 64), (3, 128)):
        _step(compiled, number)
        probe.step()
        assert probe.sites["0"].input.rows == rows
    probe.close()
    assert list(probe.sites) == ["0", "2", "3", "4"]
    assert len(calls) - before == 2


def test_the_report_is_whole() -> None:
    model = _model()
    with loka.Probe(model, every=1) as probe:
        for step in range(3):
            _step(model, step)
            probe.step()
    report = probe.evaluate(draws=6)
    assert report.model == probe.fingerprint
    assert loka.Report.from_json(report.to_json()) == report
    classes = {
        "forward": {"bf16", "e4m3_weight_only", "e4m3_row", "int8_dynamic"},
        "grad_input": {"bf16", "e4m3_row", "int8_dynamic"},
        "grad_weight": {"bf16", "e4m3_row"},
    }
    for site in report.sites:
        for direction, names in classes.items():
            found = report.at(site.path, direction)
            assert {finding.numerics for finding in found} == names
            for finding in found:
                assert finding.draws == 6
                assert finding.speedup > 0
                assert ("speed" in finding.concerns) == (finding.speedup < 1.05)
                assert all(e.low <= e.value <= e.high for e in finding.errors.values())
    assert set(report.at("2")[0].errors) == set(loka.ERRORS)
    assert "post_norm" not in report.at("2", "grad_input")[0].errors
    assert report == loka.Report.from_json(report.to_json())
    again = probe.evaluate(draws=6, measure_costs=False)
    assert [f.errors for f in again.findings] == [f.errors for f in report.findings]


def test_drawing_stops_when_the_requirement_is_decided() -> None:
    model = _model()
    with loka.Probe(model, every=1) as probe:
        _step(model, 0, 512)
        probe.step()
    assert probe.sites["0"].input.rows == 128
    decided = probe.evaluate(["int8_dynamic"], 64, requirement=Requirement(max_rel_l1=0.5), measure_costs=False)
    assert {finding.draws for finding in decided.findings} == {8}
    value = decided.at("0")[0].errors["rel_l1"].value
    close = probe.evaluate(["int8_dynamic"], 32, requirement=Requirement(max_rel_l1=value), measure_costs=False)
    assert close.at("0")[0].draws > 8
    failed = probe.evaluate(
        ["int8_dynamic"], 64, requirement=Requirement(max_rel_l1=value, min_sqnr_db=99.0), measure_costs=False
    )
    assert failed.at("0")[0].draws == 8
    for arguments, message in (
        ({"candidates": ["int4"]}, "candidates: found 'int4'"),
        ({"candidates": [3]}, "candidates: expected names"),
        ({"candidates": ["bf16", "bf16"]}, "candidates: two of one direction"),
        ({"draws": 1}, "draws: expected at least 2"),
        ({"inputs": "uniform"}, "inputs: found 'uniform'"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            probe.evaluate(**arguments)
    wrong = loka.Candidate("mine", lambda operands: operands.x)
    with pytest.raises(ValueError, match=r"candidates: mine returned \[256, 12\] at 0, forward"):
        probe.evaluate([wrong])
    broken = loka.Candidate("broken", lambda operands: operands.x / [][0])
    with pytest.raises(IndexError) as raised:
        probe.evaluate([broken])
    assert raised.value.__notes__ == ["candidates: broken failed at 0, forward"]


def test_classes_without_a_kernel_in_a_direction_are_left_out() -> None:
    assert own_candidate("int8_dynamic", "grad_weight") is None
    assert own_candidate("e4m3_weight_only", "grad_input") is None
