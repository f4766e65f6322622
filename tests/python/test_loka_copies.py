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


def test_torchs_fused_encoder_layer_does_not_go_round_the_plan() -> None:
    torch.manual_seed(0)
    model = torch.nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
    x = torch.randn(16, 8, 32)
    with loka.Probe(model, every=1) as probe:
        for _ in range(2):
            model(x).pow(2).sum().backward()
            probe.step()
    served = loka.install(model, _plan(probe), training=False)
    low = [entry.numerics for entry in _plan(probe) if entry.numerics != "fp32"]
    model.eval()
    with torch.inference_mode():
        difference = (served(x) - model(x)).abs().max()
    assert low
    assert 1e-5 < difference < 0.5


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")  # torch's own path
def test_an_encoder_takes_a_padding_mask_under_a_plan() -> None:
    from octavo.ops import dispatch

    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
    model, x = torch.nn.TransformerEncoder(layer, 2).eval(), torch.randn(4, 8, 32)
    mask = torch.arange(8) >= torch.tensor([8, 5, 3, 8])[:, None]
    with torch.no_grad():
        sites = [s.path for s in dispatch.sites(model.train(), x)]
        assert sites == ["layers.0.linear1", "layers.0.linear2", "layers.1.linear1", "layers.1.linear2"]
        served = nn.convert(model, dispatch.uniform_plan(model, x, "bf16"))
        y, expected = served(x, src_key_padding_mask=mask), model.eval()(x, src_key_padding_mask=mask)
    assert (y - expected)[~mask].abs().max() < 0.1


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
