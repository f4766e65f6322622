"""Mods of plain torch models: values of each alone and of all, what is reported, taking them back."""

import copy

import pytest
import torch
from mods_support import Branching, Ranker, inputs, trained
from torch.nn import functional

from octavo import loka, nn
from octavo.loka import mods

ALL = {"no_bias": True, "block_norm": 16, "hard_swish": True, "fuse": True, "group": True}
EACH = [{name: value} for name, value in ALL.items()] + [
    ALL, {"fuse": True, "swish_rms": True}, {"fuse": True, "norm_first": True}
]  # fmt: skip


EPS = torch.finfo(torch.float32).eps  # of torch's RMS norm


def _blocks(x: torch.Tensor, block: int, eps: float = 1e-5) -> torch.Tensor:
    parts = [p / (p.square().mean(-1, keepdim=True) + eps).sqrt() for p in x.split(block, -1)]
    return torch.cat(parts, -1)


def _ranker(model: Ranker, x: torch.Tensor, bias: bool = True, block: int | None = None, hard: bool = False):
    """Ranker by hand in FP64, with the Mods."""
    p = {name: value.detach().double() for name, value in model.named_parameters()}
    x = x.double()

    def linear(x, name):
        return functional.linear(x, p[f"{name}.weight"], p[f"{name}.bias"] if bias or name == "out" else None)

    def swish(z, function):
        return z * (z + 3).clamp(0, 6) / 6 if hard else function(z)

    z = linear(x, "first")
    if block is None:
        z = functional.layer_norm(z, (37,), p["norm.weight"], p["norm.bias"] if bias else None)
        x = swish(z, functional.gelu)
        z = functional.rms_norm(linear(x, "second"), (64,), p["rms.weight"], EPS)
    else:
        x = swish(_blocks(z, block), functional.gelu)
        z = _blocks(linear(x, "second"), block, EPS)
    x = swish(linear(swish(z, functional.silu), "third"), functional.silu)
    return linear(torch.cat([linear(x, name) for name in ("query", "key", "value")], 1), "out").squeeze(1)


@pytest.mark.parametrize(("asked", "means"), [
    ({"no_bias": True}, {"bias": False}), ({"block_norm": 16}, {"block": 16}), ({"hard_swish": True}, {"hard": True}),
    ({"fuse": True}, {}), ({"group": True}, {}), (ALL, {"bias": False, "block": 16, "hard": True}),
])  # fmt: skip
def test_values_are_those_of_the_definition(asked, means) -> None:
    model, x = trained(Ranker()), inputs()
    found = mods.apply(model, **asked)(x)
    expected = _ranker(model, x, **means)
    assert torch.allclose(found.double(), expected, rtol=1e-5, atol=1e-5)
    if means:
        assert not torch.allclose(found, model(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", [Ranker, Branching])
def test_fusing_keeps_every_bit_and_every_parameter(kind) -> None:
    model, x = trained(kind()), inputs()
    fused = mods.apply(model, fuse=True)
    assert type(fused) is not kind or kind is Branching  # a class of its own where functional calls were fused
    assert isinstance(fused, kind)
    assert torch.equal(fused(x), model(x))
    layers = [m for m in fused.modules() if isinstance(m, nn.LinearNorm)]
    assert [(m.norm, m.activation) for m in layers] == (
        [("layer", "gelu"), ("rms", "silu"), (None, "silu")] if kind is Ranker else [("layer", "relu"), (None, "gelu")]
    )
    own, theirs = fused.state_dict(), model.state_dict()
    where = mods.names(fused)
    assert set(where) == set(theirs)
    assert len(own) == len(theirs)
    for name, tensor in theirs.items():
        assert torch.equal(own[where[name]], tensor)
    in_place = mods.apply(model, fuse=True, inplace=True)
    assert in_place is model
    assert torch.equal(in_place(x), fused(x))


def test_fused_layers_share_the_parameters_in_place() -> None:
    model = trained(Ranker())
    before = {id(parameter) for parameter in model.parameters()}
    mods.apply(model, fuse=True, inplace=True)
    assert {id(parameter) for parameter in model.parameters()} == before


@pytest.mark.parametrize("asked", EACH, ids=lambda asked: "+".join(asked))
@pytest.mark.parametrize("kind", [Ranker, Branching])
def test_undo_gives_back_the_model(kind, asked) -> None:
    model, x = trained(kind()), inputs()
    changed = mods.apply(model, **asked)
    back = mods.undo(changed)
    assert type(back) is kind
    assert str(back) == str(model)
    assert list(back.state_dict()) == list(model.state_dict())
    assert torch.equal(back(x), model(x))
    with pytest.raises(ValueError, match="model: no Mods were applied to it"):
        mods.changes(back)
    assert mods.changes(changed)  # the copy was taken back, not this


def test_undo_has_the_present_parameters() -> None:
    model, x = trained(Ranker()), inputs()
    plain = copy.deepcopy(model)
    changed = mods.apply(mods.apply(model, fuse=True), group=True)
    for one in (plain, changed):
        optimizer = torch.optim.SGD(one.parameters(), lr=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            one(x).square().mean().backward()
            optimizer.step()
    back = mods.undo(changed)
    assert not torch.equal(back(x), model(x))
    for name, tensor in plain.state_dict().items():
        assert torch.allclose(back.state_dict()[name], tensor, rtol=1e-4, atol=1e-6), name
    where = mods.names(changed)
    assert where["norm.weight"] == "first.norm_weight"
    assert where["key.weight"] == "query_key_value.weight[16:40]"
    loaded = mods.apply(model, no_bias=True, fuse=True)
    loaded.load_state_dict({name: t + 1 for name, t in loaded.state_dict().items()}, assign=True)
    back = mods.undo(loaded)
    assert torch.equal(back.second.weight, model.second.weight + 1)
    assert torch.equal(back.rms.weight, model.rms.weight + 1)
    assert torch.equal(back.second.bias, model.second.bias)  # dropped: as it was


def test_training_goes_through_a_rewritten_forward() -> None:
    model, x = trained(Ranker()).train(), inputs(2000)
    changed = mods.apply(model, fuse=True)
    torch.manual_seed(1)
    expected = model(x)
    torch.manual_seed(1)
    assert torch.equal(changed(x), expected)
    assert not torch.equal(changed.eval()(x), expected)
    assert torch.equal(changed(x), model.eval()(x))


def test_changes_say_what_was_lost() -> None:
    model = trained(Ranker())
    found = {(c.site, c.mod, c.before): c for c in mods.changes(mods.apply(model, **ALL))}
    bias = float(model.first.bias.detach().abs().max())
    assert found["first", "no_bias", "bias"].note == f"values change: largest |bias| {bias:.3g}"
    assert found["out", "no_bias", "bias"].after is None
    assert found["out", "no_bias", "bias"].note == "a prediction layer (one output)"
    gain = float((model.rms.weight.detach() - 1).abs().max())
    norm = found["rms", "block_norm", "RMSNorm"]
    assert (norm.after, norm.note) == ("BlockNorm(16)", f"values change: largest |weight - 1| {gain:.3g}")
    assert found["", "hard_swish", "gelu()"].after == "hardswish()"
    fused = found["second", "fuse", "Linear -> block -> hardswish"]
    assert str(fused) == (
        "second [fuse] Linear -> block -> hardswish -> LinearNorm(block, hardswish): same values in FP32"
    )
    assert found["query_key_value", "group", "3 layers of one input: query, key, value"].after == "Linear(49)"


def test_kept_modules_are_not_touched() -> None:
    model, x = trained(Branching()), inputs()
    changed = mods.apply(model, no_bias=True, block_norm=8, hard_swish=True, fuse=True, keep=["tower*"])
    assert str(changed.tower) == str(model.tower)
    assert all(not change.site.startswith("tower") for change in mods.changes(changed))
    assert changed.inner.bias is None
    expected = nn.BlockNorm(8)(functional.linear(x, model.inner.weight))
    assert torch.allclose(changed.norm(changed.inner(x)), expected)


def test_the_norm_may_be_put_first() -> None:
    linear, act, norm = torch.nn.Linear(13, 6), torch.nn.ReLU(), torch.nn.LayerNorm(6)
    model, x = trained(torch.nn.Sequential(linear, act, norm, torch.nn.Linear(6, 1))), inputs()
    untouched = mods.apply(model, fuse=True)
    assert (untouched[0].norm, untouched[0].activation) == (None, "relu")
    changed = mods.apply(model, fuse=True, norm_first=True)
    assert torch.equal(changed(x), model[3](act(norm(linear(x)))))
    assert [c.mod for c in mods.changes(changed)] == ["norm_first", "fuse"]


def test_swish_rms_is_exact_after_an_rms_norm() -> None:
    model = trained(torch.nn.Sequential(torch.nn.Linear(13, 6), torch.nn.RMSNorm(6, 1e-5), torch.nn.SiLU()))
    changed = mods.apply(model, fuse=True, swish_rms=True)
    assert changed[0].norm == "swish_rms"
    assert torch.equal(changed(inputs()), model(inputs()))
    assert mods.changes(changed)[-1].note == "same values"
    hard = mods.apply(changed, hard_swish=True)
    assert torch.equal(hard(inputs()), functional.hardswish(model[:2](inputs())))
    blocks = mods.apply(changed, block_norm=4)
    assert torch.allclose(blocks(inputs()), functional.silu(_blocks(model[0](inputs()), 4)), atol=1e-6)
    assert torch.equal(mods.undo(blocks)(inputs()), model(inputs()))


@pytest.mark.parametrize("width", [1, 5, 64, 257])
def test_a_block_norm_as_wide_as_the_layer_is_an_rms_norm(width) -> None:
    x = 3 * inputs(11, width)
    rms = torch.nn.RMSNorm(width, 1e-5, elementwise_affine=False)
    assert torch.equal(nn.BlockNorm(width)(x), rms(x))
    assert torch.equal(nn.BlockNorm(width + 7)(x), rms(x))
    assert nn.BlockNorm(4)(x[:, :0]).shape == (11, 0)


@pytest.mark.parametrize("numerics", ["fp32", "bf16", "e4m3_row", "int8_dynamic"])
def test_a_row_does_not_depend_on_its_batch(numerics) -> None:
    """Methods 1e (7): Mods compute each row from that row alone."""
    model = mods.apply(trained(Ranker()), **{**ALL, "group": False})
    for layer in model.modules():
        if isinstance(layer, nn.LinearNorm):
            layer.numerics = numerics
    x = inputs(67)
    with torch.no_grad():
        whole = model(x)
        pieces = torch.cat([model(x[i : i + size]) for i, size in ((0, 1), (1, 2), (3, 33), (36, 31))])
    assert torch.allclose(whole, pieces, rtol=1e-5, atol=1e-6)


def test_shared_weights_stay_shared() -> None:
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = torch.nn.Linear(13, 13), torch.nn.Linear(13, 13)
            self.second.weight = self.first.weight
            self.twice = torch.nn.Linear(13, 13)
            self.also = self.twice
            self.norm, self.other = torch.nn.LayerNorm(13), torch.nn.LayerNorm(13)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.second(self.norm(self.first(x))))
            return self.other(self.twice(x)) + self.also(x)

    model, x = trained(Tied()), inputs()
    changed = mods.apply(model, fuse=True)
    assert torch.equal(changed(x), model(x))
    assert changed.second.weight is changed.first.weight
    assert type(changed.twice) is torch.nn.Linear
    notes = {change.site: change.note for change in mods.changes(changed)}
    assert notes["first"] == "same values in FP32"
    assert str(mods.undo(changed)) == str(model)
    assert mods.undo(changed).second.weight is not None


def test_bad_input_is_named() -> None:
    model = Ranker()
    with pytest.raises(ValueError, match="mods: none asked for; pass one or more of no_bias"):
        mods.apply(model)
    with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module, found int"):
        mods.apply(3, fuse=True)
    with pytest.raises(ValueError, match=r"model: is itself a Linear; wrap it in torch.nn.Sequential"):
        mods.apply(torch.nn.Linear(2, 2), no_bias=True)
    with pytest.raises(ValueError, match=r"keep: no module matches 'heads.\*'; the model has first, norm"):
        mods.apply(model, fuse=True, keep=["heads.*"])
    with pytest.raises(ValueError, match="block_norm: expected a positive number of columns or None, found -4"):
        mods.apply(model, block_norm=-4)
    with pytest.raises(ValueError, match="norm_first: places the norm inside fused layers; pass fuse=True"):
        mods.apply(model, norm_first=True)
    with pytest.raises(ValueError, match="swish_rms: replaces norm and activation"):
        mods.apply(model, swish_rms=True, hard_swish=True)
    with pytest.raises(ValueError, match="tables: found 'fp8'; expected one of 'fp16'"):
        mods.apply(model, tables="fp8")
    with pytest.raises(ValueError, match="model: is wrapped in OptimizedModule; apply Mods to the model inside"):
        mods.apply(torch.compile(model), fuse=True)
    assert loka.mods is mods
