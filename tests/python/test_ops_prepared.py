"""Prepared layers: the values of ops.linear, what they refuse, what they notice."""

import gc
import weakref

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.nn import functional

from octavo import _core, ops
from octavo.ops import kernels
from octavo.ops.packing import pack_as

N, K = 40, 72


def _normal(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed + sum(size)))


def _layer(numerics: str = "bf16") -> tuple[ops.PackedWeight, torch.Tensor, ops.Norm]:
    w = pack_as(_normal(N, K) / K**0.5, numerics)
    return w, _normal(N, seed=1), ops.Norm("layer", 1 + 0.1 * _normal(N, seed=2), 0.1 * _normal(N, seed=3))


def _reference(x: torch.Tensor, w: ops.PackedWeight, bias: torch.Tensor, norm: ops.Norm) -> torch.Tensor:
    """FP64 on the weight's own values; x as the bf16 class rounds it."""
    z = x.bfloat16().double() @ w.dequantize().double().T + bias.double()
    assert norm.weight is not None
    assert norm.bias is not None
    return functional.hardswish(functional.layer_norm(z, (N,), norm.weight.double(), norm.bias.double(), norm.eps))


def _close(y: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert y.shape == expected.shape
    assert (y.double() - expected.double()).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("shape", [(K,), (1, K), (7, K), (3, 5, K), (2, 1, 3, K), (0, K)])
def test_values_are_those_of_fp64_in_any_shape(shape, isa) -> None:
    w, bias, norm = _layer()
    prepared = ops.prepare_linear(w, bias, norm, "hardswish", rows=(1,))
    x = _normal(*shape)
    for _ in range(2):  # the first call chooses, the second is compiled
        y = prepared(x)
        assert y.shape == (*shape[:-1], N)
        assert y.dtype == torch.float32
        if y.numel():
            _close(y, _reference(x, w, bias, norm))


@pytest.mark.parametrize("numerics", ["bf16", "e4m3_row", "e4m3_weight_only", "int8_dynamic"])
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("out_dtype", [None, torch.float32, torch.bfloat16])
def test_it_is_ops_linear(numerics, x_dtype, out_dtype) -> None:
    w, bias, norm = _layer(numerics)
    prepared = ops.prepare_linear(w, bias, norm, "silu", x_dtype=x_dtype, out_dtype=out_dtype)
    for m in (1, 9):
        x = _normal(m, K).to(x_dtype)
        expected = ops.linear(x, w, bias, norm, "silu", out_dtype=out_dtype)
        for _ in range(2):
            y = prepared(x)
            assert y.dtype == (out_dtype or x_dtype)
            assert torch.equal(y, expected)


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_residuals_and_outputs(before, dtype) -> None:
    w, bias, norm = _layer()
    prepared = ops.prepare_linear(w, bias, norm, "relu", residual_before_norm=before)
    x, residual = _normal(5, K), _normal(5, N, seed=9).to(dtype)
    expected = ops.linear(x, w, bias, norm, "relu", residual, residual_before_norm=before)
    wide = torch.full((5, N + 8), 7.0)
    for _ in range(2):
        out = wide[:, 3 : 3 + N]
        assert prepared(x, out, residual) is out
        assert torch.equal(out, expected)
        assert (wide[:, :3] == 7).all()
        assert (wide[:, 3 + N :] == 7).all()
        assert torch.equal(prepared(x, residual=residual), expected)
    assert not torch.equal(prepared(x), expected)


def test_strides() -> None:
    w, bias, norm = _layer()
    prepared = ops.prepare_linear(w, bias, norm, "hardswish", rows=(6,))
    wide = _normal(6, 2 * K)
    for x in (wide[:, :K], wide[:, ::2], wide[::2, 3 : 3 + K], _normal(K, 6).T, _normal(1, K).expand(6, K),
              _normal(3, 2, K).transpose(0, 1), wide.view(2, 3, 2 * K)[..., :K]):  # fmt: skip
        _close(prepared(x), _reference(x, w, bias, norm))


def test_kernels_are_resolved_per_bucket_of_rows() -> None:
    w, bias, norm = _layer()
    prepared = ops.prepare_linear(w, bias, norm, rows=(1, 16))
    assert [m for m, _ in _core.prepared_kernels(prepared)] == [1, 16]
    (name,) = set(_core.prepared_kernels(prepared).values())
    before = kernels.by_name(name).calls
    prepared(_normal(9, K))
    assert kernels.by_name(name).calls == before + 1
    prepared(_normal(20, K), residual=_normal(20, N))
    assert (32, True) in _core.prepared_kernels(prepared)


def test_what_a_call_refuses() -> None:
    w, bias, norm = _layer()
    prepared = ops.prepare_linear(w, bias, norm, rows=(2,))
    x = _normal(2, K)
    with pytest.raises(ValueError, match=r"x: shape \[2, 71\] does not fit weight \[40, 72\]"):
        prepared(x[:, 1:])
    with pytest.raises(ValueError, match=r"x: shape \[\]"):
        prepared(torch.tensor(1.0))
    with pytest.raises(TypeError, match="x: expected float32, found bfloat16"):
        prepared(x.bfloat16())
    with pytest.raises(TypeError, match="x: expected a torch.Tensor, found list"):
        prepared([1.0])
    with pytest.raises(TypeError, match="x: missing"):
        prepared()
    with pytest.raises(TypeError, match="found 'y'"):
        prepared(x, y=x)
    with pytest.raises(TypeError, match="found 'x' twice"):
        prepared(x, x=x)
    with pytest.raises(TypeError, match="takes x, out and residual"):
        prepared(x, None, None, None)
    with pytest.raises(ValueError, match=r"out: shape \[3, 40\]; expected \[2, 40\]"):
        prepared(x, torch.empty(3, N))
    with pytest.raises(TypeError, match="out: is torch.bfloat16 but out_dtype is torch.float32"):
        prepared(x, torch.empty(2, N, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="out: rows must be contiguous"):
        prepared(x, torch.empty(N, 2).T)
    with pytest.raises(ValueError, match=r"residual: shape \[2, 41\]; expected \[2, 40\]"):
        prepared(x, residual=torch.empty(2, N + 1))
    with pytest.raises(ValueError, match="x: is on meta"):
        prepared(x.to("meta"))
    with FakeTensorMode() as mode, pytest.raises(TypeError, match="x: a prepared call cannot be traced"):
        prepared(mode.from_tensor(x))


def test_what_preparing_refuses() -> None:
    w = _layer()[0]
    with pytest.raises(TypeError, match="w: expected a PackedWeight"):
        ops.prepare_linear(torch.zeros(2, 2))
    with pytest.raises(TypeError, match="x_dtype: expected torch.float32 or torch.bfloat16, found torch.float16"):
        ops.prepare_linear(w, x_dtype=torch.float16)
    with pytest.raises(ValueError, match="bias: has 41 elements; expected N = 40"):
        ops.prepare_linear(w, torch.zeros(N + 1))
    with pytest.raises(ValueError, match="activation: found 'tanh'"):
        ops.prepare_linear(w, activation="tanh")
    with pytest.raises(ValueError, match="vectors must be contiguous"):
        ops.prepare_linear(w, torch.zeros(N, 2)[:, 0])
    for rows, found in (((-1,), "-1"), ((4, 1.5), "1.5"), ("a", "'a'")):
        with pytest.raises(ValueError, match=f"rows: expected whole numbers >= 0, found {found}"):
            ops.prepare_linear(w, rows=rows)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="cannot create"):
        ops.PreparedLinear()


def test_gradients_are_refused_and_only_where_they_would_be_recorded() -> None:
    w, bias, norm = _layer()
    prepared = ops.prepare_linear(w, bias, norm)
    x = _normal(2, K).requires_grad_()
    with pytest.raises(RuntimeError, match="x: requires gradients, which prepared calls do not record"):
        prepared(x)
    with torch.no_grad():
        assert not prepared(x).requires_grad
    bias.requires_grad_()
    trained = ops.prepare_linear(w, bias, norm)
    with pytest.raises(RuntimeError, match="the layer: requires gradients"):
        trained(x.detach())
    with torch.inference_mode():
        assert trained(x).is_inference()


def test_changes_in_place_are_seen() -> None:
    w, bias, norm = _layer()
    prepared = ops.prepare_linear(w, bias, norm, "hardswish", rows=(3,))
    x = _normal(3, K)
    first = prepared(x)
    bias.add_(1.0)
    assert norm.weight is not None
    norm.weight.mul_(0.5)
    _close(prepared(x), _reference(x, w, bias, norm))
    w.codes.copy_(w.codes.flip(0))
    for _ in range(2):
        y = prepared(x)
        _close(y, _reference(x, w, bias, norm))
    assert not torch.equal(y, first)
    assert torch.equal(ops.linear(x, w, bias, norm, "hardswish"), y)


def test_a_vector_that_got_other_memory_is_noticed_by_ops_linear() -> None:
    w, bias, norm = _layer()
    x = _normal(3, K)
    for _ in range(2):
        _close(ops.linear(x, w, bias, norm, "hardswish"), _reference(x, w, bias, norm))
    bias.data = _normal(N, seed=77)
    assert norm.bias is not None
    _close(ops.linear(x, w, bias, norm, "hardswish"), _reference(x, w, bias, norm))
    norm.bias.data = _normal(N, seed=78)
    _close(ops.linear(x, w, bias, norm, "hardswish"), _reference(x, w, bias, norm))
    long = torch.cat([bias, bias])
    ops.linear(x, w, long[:N], norm)
    with pytest.raises(ValueError, match="bias: has 80 elements; expected N = 40"):
        ops.linear(x, w, long, norm)


def test_the_last_call_of_ops_linear_does_not_serve_another_layer() -> None:
    w, bias, norm = _layer()
    x = _normal(3, K)
    z = x.bfloat16().double() @ w.dequantize().double().T
    for _ in range(2):
        _close(ops.linear(x, w, bias, norm, "hardswish"), _reference(x, w, bias, norm))
        _close(ops.linear(x, w, None, norm, "hardswish"), _reference(x, w, torch.zeros(N), norm))
        _close(ops.linear(x, w), z)
        _close(ops.linear(x, w, activation="relu"), z.relu())
        _close(ops.linear(x, w, residual=z.float()), 2 * z)
        assert ops.linear(x, w, out_dtype=torch.bfloat16).dtype == torch.bfloat16
        assert ops.linear(x.bfloat16(), w).dtype == torch.bfloat16
        _close(ops.linear(x, w, bias), z + bias)
        _close(ops.linear(x, w, activation="".join(["re", "lu"])), z.relu())


def test_gradients_of_ops_linear_after_a_call_without() -> None:
    w, bias, norm = _layer()
    x = _normal(3, K)
    for _ in range(2):
        assert not ops.linear(x, w, bias, norm).requires_grad
    assert ops.linear(x.requires_grad_(), w, bias, norm).requires_grad
    x = x.detach()
    assert ops.linear(x, w, bias.requires_grad_(), norm).requires_grad
    master = pack_as(_normal(N, K).requires_grad_(), "bf16")
    with torch.no_grad():
        ops.linear(x, master)
        assert not ops.linear(x, master).requires_grad
    assert ops.linear(x, master).requires_grad


def test_a_quarantined_kernel_is_replaced_down_to_torch() -> None:
    w, bias, norm = _layer()
    prepared = ops.prepare_linear(w, bias, norm, "hardswish", out_dtype=torch.bfloat16, rows=(4,))
    x, quarantined = _normal(4, K), []
    try:
        while served := [name for name in _core.prepared_kernels(prepared).values() if name not in quarantined]:
            kernels.by_name(served[0]).quarantine("a test")
            kernels.new_generation()
            quarantined += served
            for _ in range(2):
                _close(prepared(x), _reference(x, w, bias, norm), 2**-7)
        torchs = kernels.by_name("torch.cpu.linear.bf16")
        calls = torchs.calls
        _close(prepared(x), _reference(x, w, bias, norm), 2**-7)
        assert torchs.calls == calls + 1
    finally:
        for name in quarantined:
            kernels.by_name(name).qualify()
        kernels.new_generation()
    prepared(x)
    assert set(_core.prepared_kernels(prepared).values()) == {quarantined[0]}


def test_nothing_keeps_a_weight_alive() -> None:
    w, bias, norm = _layer()
    x = _normal(1, K)
    for _ in range(2):
        ops.linear(x, w, bias, norm)
    codes = weakref.ref(w.codes)
    gc.disable()
    try:
        del w
        assert codes() is None
        w = _layer()[0]
        prepared = ops.prepare_linear(w, bias, norm, rows=(1,))
        codes = weakref.ref(w.codes)
        del w
        prepared(x)
        del prepared
        assert codes() is None
    finally:
        gc.enable()


def test_vmap_is_refused_by_torch_not_served_from_no_memory() -> None:
    w, _, _ = _layer()
    prepared = ops.prepare_linear(w, rows=(1,))
    with pytest.raises(RuntimeError, match="Cannot access data pointer"):
        torch.vmap(prepared)(_normal(2, 3, K))


def test_rows_are_a_sequence() -> None:
    with pytest.raises(TypeError, match=r"rows: expected a sequence of numbers of rows, found 64; write \(64,\)"):
        ops.prepare_linear(ops.pack_weight(torch.randn(4, 8)), rows=64)
