"""The check of batches of layers: every kernel's layers pass, also one by one; wrong ones are named."""

import pytest
import torch

from octavo import _core
from octavo.ops import kernels
from octavo.ops.batch_checks import batch_failure

LAYERS = ["cpu.generic.linear.bf16", "cpu.generic.linear.e4m3_row"]


@pytest.mark.parametrize("name", LAYERS)
def test_right_layers_pass(name) -> None:
    assert batch_failure(kernels.by_name(name)) == ""


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("value", [1000.0, float("nan")])
def test_one_wrong_number_is_found(monkeypatch, layer, value) -> None:
    serve = _core.serve_group

    def wrong(layers: tuple, xs: tuple, outs: tuple) -> list[torch.Tensor]:
        found = serve(layers, xs, outs)
        found[layer][-1, -1] = value
        return found

    monkeypatch.setattr(_core, "serve_group", wrong)
    failure = batch_failure(kernels.by_name(LAYERS[0]))
    assert f"layer {layer}" in failure
    assert "expected error <=" in failure
