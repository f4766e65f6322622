"""Mods of octavo's models, of compiled and of exported ones."""

import copy

import pytest
import torch
from models_support import KINDS, SCHEMA, events, model_config, scramble
from mods_support import Branching, Click, Ranker, click_inputs, inputs, trained

from octavo import models, nn
from octavo.loka import mods

ALL = {"no_bias": True, "block_norm": 4, "hard_swish": True, "fuse": True, "group": True}


def _model(kind: str, **changes: object) -> torch.nn.Module:
    settings = {"norm": "layer", "activation": "silu", "bias": True, **changes}
    return scramble(models.build(SCHEMA, model_config(kind, **settings))).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_octavos_models_become_what_their_configuration_could_say(kind) -> None:
    """Mods of a model built with layer norm, SiLU and biases give the model that is built with the others."""
    model, batch = _model(kind), events(17)
    changed = mods.apply(model, no_bias=True, block_norm=256, hard_swish=True, keep=["heads.*"])
    built = _model(kind, norm="block", activation="hardswish", bias=False)
    state = changed.state_dict()
    kept = [name for name in state if name.endswith("out.bias") and name not in built.state_dict()]
    assert kept == (["units.0.out.bias"] if kind == "din" else [])  # one output: not told from a prediction layer
    for name in kept:
        state[name].zero_()
    built.load_state_dict({name: state[name] for name in built.state_dict()})
    expected, found = built(batch), changed(batch)
    for task, logits in found.items():
        assert torch.allclose(logits, expected[task], rtol=1e-5, atol=1e-6), task
        assert not torch.allclose(logits, model(batch)[task], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_all_mods_of_octavos_models_come_and_go(kind) -> None:
    model, batch = _model(kind), events(17)
    exact = mods.apply(model, fuse=True, group=True)
    changed = mods.apply(model, **ALL, tables="int8", keep=["heads.*"])
    assert {table.dtype for m in changed.modules() if isinstance(m, nn.EmbeddingBags) for table in m.tables} == {"int8"}
    assert all(m.norm != "layer" for m in changed.modules() if isinstance(m, nn.LinearNorm))
    rounded = mods.undo(mods.apply(model, tables="int8"))
    by_mods, undone = mods.apply(rounded, **ALL, keep=["heads.*"])(batch), mods.undo(changed)(batch)
    for task, logits in model(batch).items():
        assert torch.allclose(exact(batch)[task], logits, rtol=1e-4, atol=1e-5)
        assert torch.allclose(changed(batch)[task], by_mods[task], rtol=1e-4, atol=1e-5)
        assert torch.equal(undone[task], rounded(batch)[task])
        assert torch.equal(mods.undo(exact)(batch)[task], logits)


CASES = [(Ranker, lambda: (inputs(33),)), (Click, lambda: click_inputs(33))]


@pytest.mark.parametrize(("kind", "arguments"), CASES)
@pytest.mark.parametrize("numerics", ["fp32", "int8_dynamic"])
def test_modified_models_export(kind, arguments, numerics) -> None:
    changed = mods.apply(trained(kind()), **ALL, tables="e4m3")
    for layer in changed.modules():
        if isinstance(layer, nn.LinearNorm):
            layer.numerics = numerics
            layer.weight.requires_grad_(False)
    x = arguments()
    with torch.no_grad():
        expected = changed(*x)
        program = torch.export.export(changed, x)
        found = program.module()(*x)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [Ranker, Click])
def test_modified_models_compile(kind) -> None:
    changed = mods.apply(trained(kind()), **ALL, tables="e4m3")
    compiled = torch.compile(changed, backend="aot_eager", fullgraph=True)
    for rows in (33, 12):
        x = click_inputs(rows) if kind is Click else (inputs(rows),)
        with torch.no_grad():
            assert torch.allclose(compiled(*x), changed(*x), rtol=1e-5, atol=1e-5)
    assert mods.changes(compiled) == mods.changes(changed)


def test_compiled_models_train() -> None:
    changed = mods.apply(trained(Ranker()).train(), fuse=True)
    other, x = copy.deepcopy(changed), inputs(20)
    assert type(other) is type(changed)
    compiled = torch.compile(changed, backend="aot_eager")
    compiled.eval()(x).square().mean().backward()
    other.eval()(x).square().mean().backward()
    for (name, parameter), theirs in zip(changed.named_parameters(), other.parameters(), strict=True):
        assert torch.allclose(parameter.grad, theirs.grad, rtol=1e-4, atol=1e-6), name


def test_a_copy_can_be_undone_apart() -> None:
    model, x = trained(Branching()), inputs()
    changed = mods.apply(model, no_bias=True, fuse=True)
    twin = copy.deepcopy(changed)
    with torch.no_grad():
        twin.tower[0].weight.zero_()
    back = mods.undo(twin, inplace=True)
    assert back is twin
    assert not back.tower[0].weight.any()
    assert torch.equal(mods.undo(changed)(x), model(x))
