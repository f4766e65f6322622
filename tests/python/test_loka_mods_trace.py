"""What is not fused and why, and that nothing is frozen in silence."""

import re

import pytest
import torch
from mods_support import Branching, inputs, trained
from torch.nn import functional

from octavo import nn
from octavo.loka import mods


class _Base(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm, self.out = torch.nn.Linear(13, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 1)


class Optional(_Base):
    def forward(self, x, scale=None):
        x = functional.relu(self.norm(self.fc(x)))
        return self.out(x if scale is None else x * scale)


class Asking(_Base):
    def forward(self, x):
        x = x["x"] if isinstance(x, dict) else x
        return self.out(functional.relu(self.norm(self.fc(x))))


class Counting(_Base):
    seen = 0

    def forward(self, x):
        self.seen = self.seen + 1
        return self.out(functional.relu(self.norm(self.fc(x))))


class Noisy(_Base):
    def forward(self, x):
        return self.out(functional.relu(self.norm(self.fc(x)))) + torch.rand(1)


class Moody(_Base):
    def forward(self, x):
        x = self.fc(x)
        if self.training:
            x = self.norm(x)
        return self.out(functional.relu(x))


class Averaging(_Base):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x):
        x = functional.relu(self.norm(self.fc(x)))
        self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        return self.out(x - self.mean)


REFUSED = [(Optional, "compares an argument or a variable with None"), (Asking, r"asks isinstance\(\)"),
           (Counting, "sets seen"), (Noisy, "draws random numbers|of its own"),
           (Moody, "different things in training and in evaluation"),
           (Averaging, "sets mean"), (Branching, "cannot be traced")]  # fmt: skip


@pytest.mark.parametrize(("kind", "why"), REFUSED, ids=lambda value: getattr(value, "__name__", ""))
def test_a_graph_that_would_freeze_something_is_refused(kind, why) -> None:
    model, x = trained(kind()), inputs()
    changed = mods.apply(model, fuse=True)
    (refused,) = [change for change in mods.changes(changed) if change.site == ""]
    assert (refused.mod, refused.after, refused.before) == ("fuse", None, f"{kind.__name__}.forward")
    assert re.search(why, refused.note), refused.note
    assert type(changed) is kind
    torch.manual_seed(0)
    expected = model(x)
    torch.manual_seed(0)
    assert torch.equal(changed(x), expected)
    assert getattr(changed, "seen", 1) == 1  # tracing left no marks
    assert not hasattr(changed, "_tensor_constant0")


class Methods(_Base):
    """``embed`` is used by forward and by others."""

    def embed(self, x):
        return functional.relu(self.norm(self.fc(x)))

    def forward(self, x):
        return functional.hardswish(self.out(self.embed(x)))


class TwoUsers(Methods):
    def project(self, x):
        return self.fc(x)


def test_the_method_that_has_the_chain_is_rewritten() -> None:
    model, x = trained(Methods()), inputs()
    changed = mods.apply(model, fuse=True)
    assert isinstance(changed.fc, nn.LinearNorm)
    assert isinstance(changed.out, nn.LinearNorm)
    assert torch.equal(changed(x), model(x))
    assert torch.equal(changed.embed(x), model.embed(x))


class Scaled(_Base):
    temperature = 1.0

    def forward(self, x):
        return self.out(functional.relu(self.norm(self.fc(x)))) / self.temperature


def test_values_that_a_new_method_keeps_are_reported() -> None:
    model, x = trained(Scaled()), inputs()
    model.temperature = 3.0
    changed = mods.apply(model, fuse=True)
    assert torch.equal(changed(x), model(x))
    last = mods.changes(changed)[-1]
    assert (last.before, last.after) == ("Scaled.forward", "made anew from its graph")
    assert last.note == "keeps the present values of temperature; undo before you change them"


def test_a_layer_that_other_methods_use_stays() -> None:
    model, x = trained(TwoUsers()), inputs()
    changed = mods.apply(model, fuse=True)
    assert type(changed.fc) is torch.nn.Linear
    assert torch.equal(changed(x), model(x))
    assert torch.equal(changed.project(x), model.project(x))


class Own(torch.nn.Module):
    """Functional norms with parameters of the module's own, lists of layers, intermediate results with two users."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(13, 13) for _ in range(3))
        self.gain, self.shift = torch.nn.Parameter(torch.ones(13)), torch.nn.Parameter(torch.zeros(13))
        self.kept = torch.nn.Linear(13, 13)
        self.register_buffer("offset", torch.ones(13))

    def forward(self, x, *, factor=2.0):
        x = functional.layer_norm(self.layers[0](x), (13,), self.gain, self.shift).relu()
        for layer in self.layers[1:]:
            x = x + torch.sigmoid(functional.rms_norm(layer(x), (13,), eps=1e-3)) * factor
        y = self.kept(x)
        return torch.relu(y) + y - self.offset * 2


def test_functional_norms_are_fused_with_their_parameters() -> None:
    model, x = trained(Own()), inputs()
    changed = mods.apply(model, fuse=True)
    assert torch.equal(changed(x), model(x))
    assert torch.equal(changed(x, factor=0.5), model(x, factor=0.5))
    assert [(layer.norm, layer.activation, layer.eps) for layer in changed.layers] == [
        ("layer", "relu", 1e-5), ("rms", "sigmoid", 1e-3), ("rms", "sigmoid", 1e-3)
    ]  # fmt: skip
    assert type(changed.kept) is torch.nn.Linear
    assert mods.names(changed)["gain"] == "layers.0.norm_weight"
    with torch.no_grad():
        changed.offset.fill_(7.0)  # read when it runs, not when it was traced
        model.offset.fill_(7.0)
    assert torch.equal(changed(x), model(x))
    back = mods.undo(changed)
    assert list(back.state_dict()) == list(model.state_dict())
    assert torch.equal(back(x), model(x))
    blocks = mods.apply(model, block_norm=5, fuse=True)
    assert [(layer.norm, layer.block) for layer in blocks.layers] == [("block", 5)] * 3


@pytest.mark.parametrize("asked", [{"fuse": True}, {"group": True}])
def test_hooks_parametrizations_and_libraries_are_left_alone(asked) -> None:
    def chain() -> torch.nn.Sequential:
        return torch.nn.Sequential(torch.nn.Linear(13, 13), torch.nn.ReLU())

    hooked, weighted, half = chain(), chain(), chain().bfloat16()
    seen = []
    hooked[0].register_forward_hook(lambda *_: seen.append(1))
    torch.nn.utils.parametrizations.weight_norm(weighted[0])
    library = torch.nn.TransformerEncoderLayer(13, 1, 16, 0.0, batch_first=True)
    model = torch.nn.ModuleDict({"a": hooked, "b": weighted, "c": half, "d": library})
    model = torch.nn.Sequential(torch.nn.ModuleDict({"all": model}))
    changed = mods.apply(model, **asked)
    assert str(changed) == str(model)
    if "fuse" in asked:
        notes = {change.site: change.note for change in mods.changes(changed)}
        assert notes["0.all.a.0"].startswith("it has hooks")
        assert notes["0.all.c.0"] == "its weight is bfloat16; fuse in FP32"


class Attention(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (torch.nn.Linear(12, 12) for _ in range(3))
        self.encoder = torch.nn.TransformerEncoderLayer(12, 2, 16, 0.0, batch_first=True)

    def forward(self, x):
        q, k, v = (part.unflatten(-1, (2, 6)).transpose(1, 2) for part in (self.q(x), self.k(x), self.v(x)))
        mixed = torch.softmax(q @ k.transpose(-1, -2), -1) @ v
        return self.encoder(mixed.transpose(1, 2).reshape(x.shape))


def test_heads_of_attention_are_merged_and_torchs_own_encoder_is_said_to_be_left() -> None:
    model, x = Attention().eval(), torch.randn(3, 5, 12)
    changed = mods.apply(model, group=True, hard_swish=True)
    assert torch.allclose(changed(x), model(x), rtol=1e-5, atol=1e-6)
    found = {change.site: change for change in mods.changes(changed)}
    assert found["q_k_v"].after == "Linear(36)"
    assert found["encoder"].after is None
    assert found["encoder"].note == "a module of torch's own, whose code reads its parts; no Mod looks inside"


def test_batch_norm_is_refused_with_a_reason() -> None:
    chain = torch.nn.Sequential(torch.nn.Linear(13, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
    model = trained(chain)
    changed = mods.apply(model, block_norm=4, fuse=True)
    (change,) = mods.changes(changed)
    assert (change.site, change.after) == ("1", None)
    assert change.note.startswith("normalises over the batch")
    wide = torch.nn.Sequential(torch.nn.LayerNorm((3, 4)), torch.nn.Linear(4, 1))
    (change,) = mods.changes(mods.apply(wide, block_norm=4))
    assert change.note == "normalises over several dimensions; blocks are of the last"


class Heads(torch.nn.Module):
    """Layers of one input that can be merged, and some that cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (torch.nn.Linear(13, n) for n in (8, 3, 5))
        self.plain = torch.nn.ModuleList(torch.nn.Linear(13, 2, bias=False) for _ in range(2))
        self.seen = torch.nn.ModuleList(torch.nn.Linear(13, 2) for _ in range(3))
        self.experts = torch.nn.ModuleList(nn.LinearNorm(13, 8, "block", block=4) for _ in range(5))
        self.layered = torch.nn.ModuleList(nn.LinearNorm(13, 8, "layer") for _ in range(3))

    def forward(self, x):
        mixed = torch.stack([e(x) for e in self.experts], 1).view(-1, 40)
        layered = torch.cat([layer(x) for layer in self.layered], 1)
        seen = [layer(x).view(-1) for layer in self.seen]  # a view of a piece would fail
        rest = torch.cat([self.b(x), self.c(x) * 2, *(layer(x) for layer in self.plain), torch.relu(self.a(x))], 1)
        return torch.cat([mixed.flatten(), layered.flatten(), *seen, rest.flatten()])


def test_layers_of_one_input_are_merged() -> None:
    model, x = trained(Heads()), inputs()
    changed = mods.apply(model, group=True)
    assert torch.allclose(changed(x), model(x), rtol=1e-5, atol=1e-6)
    made = {change.site: change.after for change in mods.changes(changed) if change.after is not None}
    assert made == {"b_c_a": "Linear(16)", "experts_0_to_experts_4": "LinearNorm(40)"}
    left = {change.site: change.note for change in mods.changes(changed) if change.after is None}
    assert list(left) == ["seen.0", "seen.1", "seen.2"]
    assert left["seen.0"].startswith("its result goes to view")
    where = mods.names(changed)
    assert where["experts.1.weight"] == "experts_0_to_experts_4.weight[8:16]"
    state = changed.state_dict()
    for name in ("experts.1.weight", "a.bias", "b.weight"):
        merged, _, rows = where[name].partition("[")
        begin, end = rows.rstrip("]").split(":")
        assert torch.equal(state[merged][int(begin) : int(end)], model.state_dict()[name])
    back = mods.undo(changed)
    assert list(back.state_dict()) == list(model.state_dict())
    assert torch.equal(back(x), model(x))
