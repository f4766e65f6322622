"""Copies of a watched model are not watched; BF16 models are served with their biases."""

import copy
import io

import pytest
import torch

from octavo import loka, nn
from octavo.ops.dispatch import Plan, Requirement

ANY = Requirement(max_post_norm=0.1)


def _model(bias: bool = True) -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(32, 64, bias=bias), torch.nn.ReLU(), torch.nn.Linear(64, 32, bias=bias))


def _watched(model: torch.nn.Module) -> loka.Probe:
    """A Probe that watches the next call."""
    probe = loka.Probe(model, every=1)
    for _ in range(2):
        model(torch.randn(128, 32)).pow(2).sum().backward()
        probe.step()
    return probe


def _plan(probe: loka.Probe) -> Plan:
    return loka.solve(probe.evaluate(draws=2, rows=32), ANY, min_speedup=1e-3)


def test_a_served_copy_does_not_feed_the_probe() -> None:
    model = _model()
    probe = _watched(model)
    served = loka.install(model, _plan(probe), training=False)
    probe.close()
    seen = probe.sites["0"].input.rows
    served(torch.full((50, 32), 7.0))
    assert probe.sites["0"].input.rows == seen
    x = torch.randn(8, 32)
    with torch.no_grad():
        exported = torch.export.export(served, (x,)).module()
        assert torch.equal(exported(x), served(x))


def test_a_watched_model_is_saved_and_copied() -> None:
    model = _model()
    probe = _watched(model)
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    loaded = torch.load(stream, weights_only=False)
    seen, x = probe.sites["0"].input.rows, torch.randn(8, 32)
    for other in (loaded, copy.deepcopy(model), loka.mods.apply(model, no_bias=True)):
        other(x)
    assert probe.sites["0"].input.rows == seen
    model(x)
    assert probe.sites["0"].input.rows > seen


@pytest.mark.parametrize("numerics", ["bf16", "int8_dynamic", "e4m3_row"])
def test_a_bf16_model_with_biases_is_served(numerics) -> None:
    from octavo.ops import dispatch

    model = torch.nn.Sequential(*_model(), torch.nn.LayerNorm(32)).bfloat16().eval()
    x = torch.randn(64, 32).bfloat16()
    served = nn.convert(model, dispatch.uniform_plan(model, x, numerics))
    with torch.no_grad():
        y, expected = served(x), model(x)
    assert y.dtype == torch.bfloat16
    assert (y - expected).float().abs().mean() < 0.1 * expected.float().abs().mean()
    assert model[0].bias.dtype == torch.bfloat16


def test_a_bf16_model_with_norms_inside_its_layers_is_served() -> None:
    from octavo.ops import dispatch

    torch.manual_seed(0)
    model = torch.nn.Sequential(nn.LinearNorm(32, 64), nn.LinearNorm(64, 16)).eval()
    x = torch.randn(64, 32)
    with torch.no_grad():
        expected = model(x)
        served = nn.convert(model.bfloat16(), dispatch.uniform_plan(model, x.bfloat16(), "int8_dynamic"))
        assert (served(x.bfloat16()).float() - expected).abs().mean() < 0.1 * expected.abs().mean()
