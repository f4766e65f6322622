"""nn.Linear and nn.LinearNorm: FP32 as torch, other classes by ops.linear, weights packed once per change."""

import copy

import pytest
import torch

from octavo import nn, ops
from octavo.ops.packing import pack_as

X = torch.randn(7, 12, generator=torch.Generator().manual_seed(1))


def test_linear_is_torchs_in_fp32() -> None:
    torch.manual_seed(0)
    ours = nn.Linear(12, 9)
    torch.manual_seed(0)
    theirs = torch.nn.Linear(12, 9)
    assert torch.equal(ours(X), theirs(X))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())


@pytest.mark.parametrize("norm", ["layer", "rms", "block", "swish_rms", None])
@pytest.mark.parametrize("activation", ["hardswish", "gelu", None])
def test_linear_norm_is_torchs_chain_in_fp32(norm, activation) -> None:
    if norm == "swish_rms" and activation is not None:
        with pytest.raises(ValueError, match=f"activation: found '{activation}'; SwishRMSNorm is its own activation"):
            nn.LinearNorm(12, 300, norm, activation)
        return
    layer = nn.LinearNorm(12, 300, norm, activation)
    z = torch.nn.functional.linear(X, layer.weight, layer.bias)
    if norm == "layer":
        z = torch.nn.functional.layer_norm(z, (300,), layer.norm_weight, layer.norm_bias)
    elif norm in ("rms", "swish_rms"):
        z = z / (z.square().mean(-1, keepdim=True) + 1e-5).sqrt() * layer.norm_weight
        z = z * z.sigmoid() if norm == "swish_rms" else z
    elif norm == "block":
        a, b = z[:, :256], z[:, 256:]
        z = torch.cat([p / (p.square().mean(-1, keepdim=True) + 1e-5).sqrt() for p in (a, b)], -1)
    if activation:
        z = getattr(torch.nn.functional, activation)(z)
    assert torch.allclose(layer(X), z, atol=1e-6)
    assert (layer.norm_weight is None) == (norm in ("block", None))
    assert (layer.norm_bias is None) == (norm != "layer")


@pytest.mark.parametrize("numerics", ["bf16", "e4m3_row", "e4m3_weight_only", "int8_dynamic"])
def test_classes_run_ops_linear_and_follow_the_weight(numerics) -> None:
    layer = nn.LinearNorm(12, 9)
    layer.numerics = numerics
    with torch.no_grad():
        expected = ops.linear(X, pack_as(layer.weight, numerics), layer.bias, layer.norm_spec, "hardswish")
        assert torch.equal(layer(X), expected)
        packed = layer.packed()
        assert layer.packed() is packed
        layer.weight.mul_(3)
        expected = ops.linear(X, pack_as(layer.weight, numerics), layer.bias, layer.norm_spec, "hardswish")
        assert torch.equal(layer(X), expected)
        assert layer.packed() is packed  # in the memory of the old codes
    twin = copy.deepcopy(layer)
    assert twin.numerics == numerics
    assert torch.equal(twin(X), layer(X))
    twin.weight.data.zero_()
    assert twin.weight.data_ptr() != layer.weight.data_ptr()


@pytest.mark.parametrize("numerics", ["bf16", "e4m3_row", "int8_dynamic"])
def test_a_graph_whose_weight_changed_says_so(numerics) -> None:
    layer = nn.LinearNorm(12, 9)
    layer.numerics = numerics
    y = layer(X)
    with torch.no_grad():
        layer(X)  # the same weight: the graph stays whole
    y.sum().backward(retain_graph=True)
    with torch.no_grad():
        layer.weight.mul_(2)
    layer(X)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("numerics", ["bf16", "e4m3_row", "int8_dynamic"])
def test_what_does_not_change_the_weight_leaves_its_graph_whole(numerics) -> None:
    layer, other = nn.Linear(12, 9), torch.nn.Linear(3, 3)
    layer.numerics = numerics
    y = layer(X)
    other(torch.randn(2, 3)).sum().backward()
    torch.optim.SGD(other.parameters(), lr=0.1).step()
    layer(X)
    layer.weight.requires_grad_(False)
    layer(X)
    layer.weight.requires_grad_(True)
    y.sum().backward()
    assert layer.weight.grad is not None


@pytest.mark.parametrize("numerics", ["bf16", "e4m3_row", "int8_dynamic"])
def test_weights_of_one_call_have_codes_of_their_own(numerics) -> None:
    layer = nn.Linear(12, 9)
    layer.numerics = numerics
    weights = [torch.randn(9, 12, requires_grad=True) for _ in range(2)]
    y = sum(torch.func.functional_call(layer, {"weight": w}, (X,)) * (i + 1) for i, w in enumerate(weights))
    y.sum().backward()
    assert torch.equal(weights[1].grad, 2 * weights[0].grad)
    with torch.no_grad():
        for seed in range(20):  # freed at once: the next one lies where it lay
            w = torch.randn(9, 12, generator=torch.Generator().manual_seed(seed))
            expected = ops.linear(X, pack_as(w.clone(), numerics), layer.bias)
            assert torch.equal(torch.func.functional_call(layer, {"weight": w}, (X,)), expected)
            del w
    twice = torch.nn.utils.parametrizations.weight_norm(nn.Linear(12, 12))
    twice.numerics = numerics
    twice(twice(X)).sum().backward()


@pytest.mark.parametrize("fused", [True, None])
def test_steps_of_optimizers_that_write_past_the_version_are_noticed(fused) -> None:
    class Plain(torch.optim.Optimizer):
        def step(self, closure=None) -> None:
            for p in self.param_groups[0]["params"]:
                p.data.sub_(p.grad)

    layer = nn.Linear(12, 9)
    layer.numerics = "int8_dynamic"
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0, fused=True) if fused else Plain(layer.parameters(), {})
    layer(X).sum().backward()
    optimizer.step()
    with torch.no_grad():
        assert torch.equal(layer(X), ops.linear(X, pack_as(layer.weight, "int8_dynamic"), layer.bias))


@pytest.mark.parametrize("numerics", ["bf16", "e4m3_row", "int8_dynamic"])
def test_a_weight_packed_in_inference_mode_trains_afterwards(numerics) -> None:
    layer = nn.LinearNorm(12, 9)
    layer.numerics = numerics
    with torch.inference_mode():
        before = layer(X).clone()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5, fused=True)
    for _ in range(3):
        optimizer.zero_grad()
        layer(X).square().sum().backward()
        optimizer.step()
        fresh = copy.deepcopy(layer)
        with torch.inference_mode():
            assert torch.equal(layer(X), fresh(X))
    with torch.inference_mode():
        assert not torch.equal(layer(X), before)


def test_parameters_that_get_other_data_are_read_anew() -> None:
    layer = nn.LinearNorm(12, 9)
    layer.numerics = "bf16"
    with torch.no_grad():
        before = layer(X)
        for vector in (layer.bias, layer.norm_weight, layer.norm_bias):
            vector.data = torch.full((9,), 0.5)
        assert not torch.equal(layer(X), before)
        expected = ops.linear(X, layer.packed(), torch.full((9,), 0.5), layer.norm_spec, "hardswish")
        assert torch.equal(layer(X), expected)


def test_training_in_low_precision_moves_the_master_weight() -> None:
    torch.manual_seed(3)
    layer = nn.LinearNorm(12, 9, "rms", "silu")
    layer.numerics = "e4m3_row"
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    target = torch.randn(7, 9)
    losses = []
    for _ in range(60):
        loss = (layer(X) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_inference_mode_and_compile() -> None:
    layer = nn.Linear(12, 9)
    layer.numerics = "int8_dynamic"
    layer.requires_grad_(False)
    expected = layer(X)
    with torch.inference_mode():
        assert torch.equal(layer(X), expected)
    with torch.inference_mode():
        fresh = nn.Linear(12, 9)
        fresh.load_state_dict(layer.state_dict())
        fresh.numerics = "int8_dynamic"  # packed in inference mode: such tensors have no version counter
        assert torch.equal(fresh(X), expected)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    assert torch.equal(compiled(X), expected)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="norm: found 'batch'"):
        nn.LinearNorm(3, 4, norm="batch")
    with pytest.raises(ValueError, match="activation: found 'tanh'"):
        nn.LinearNorm(3, 4, activation="tanh")
    with pytest.raises(ValueError, match="numerics: found 'fp16'"):
        nn.Linear(3, 4).numerics = "fp16"


@pytest.mark.parametrize("fused", [False, True])
def test_weights_are_packed_again_after_every_optimizer_step(fused: bool) -> None:
    """torch's fused optimizers write parameters without a new version."""
    layer = nn.LinearNorm(24, 16)
    layer.numerics = "bf16"
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1, fused=fused)
    x = torch.randn(8, 24)
    for _ in range(2):
        layer(x).sum().backward()
        optimizer.step()
        expected = ops.pack_weight(layer.weight.detach(), "bf16").codes
        assert torch.equal(layer.packed().codes, expected)
        with torch.no_grad():
            assert torch.equal(layer.packed().codes, expected)
    frozen = nn.LinearNorm(24, 16).requires_grad_(False)
    frozen.numerics = "bf16"
    kept = frozen.packed()
    optimizer.step()
    assert frozen.packed() is kept


def test_a_compiled_layer_sees_its_weight_change() -> None:
    torch._dynamo.reset()
    layer = nn.LinearNorm(12, 8)
    layer.numerics = "bf16"
    compiled = torch.compile(layer, backend="aot_eager")
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    for _ in range(2):
        y = compiled(X)
        assert torch.equal(y, layer(X))
        y.sum().backward()
        optimizer.step()


def test_layers_that_were_never_called_export() -> None:
    layers = torch.nn.Sequential(nn.LinearNorm(16, 32), nn.Linear(32, 4)).eval().requires_grad_(False)
    for layer in layers:
        layer.numerics = "int8_dynamic"
    x = torch.randn(4, 16)
    exported = torch.export.export(layers, (x,))
    assert torch.equal(exported.module()(x), layers(x))
