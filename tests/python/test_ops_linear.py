"""ops.linear against FP64 on dequantized operands: every class, epilogue, shape, dtype and instruction set."""

import itertools

import pytest
import torch

from octavo import _core, ops
from octavo.ops.checks import BF16_TOLERANCE, FP32_TOLERANCE, check_linear, relative_to_largest
from octavo.ops.linear_call import run
from octavo.ops.packing import pack_as
from octavo.ops.reference import linear_reference

CLASSES = ("bf16", "e4m3_row", "e4m3_weight_only", "int8_dynamic", "e4m3_block")


def _normal(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def _norm(kind: str | None, n: int) -> ops.Norm | None:
    if kind is None:
        return None
    weight = None if kind == "block" else 1 + 0.2 * _normal(n, seed=5)
    return ops.Norm(kind, weight, 0.2 * _normal(n, seed=6) if kind == "layer" else None)


def test_every_cpu_kernel_passes_qualification(isa) -> None:
    rows = [k for k in _core.kernels() if k.op == _core.Op.linear and k.supported and k.device == _core.Device.cpu]
    rows = [k for k in rows if k.library in ("octavo", "torch")]  # other tests register wrong ones
    assert {k.numerics.name for k in rows if k.library == "octavo"} == set(CLASSES)
    for kernel in rows:
        if kernel.state != "trusted":
            assert check_linear(kernel) == "", kernel.name


@pytest.mark.parametrize("numerics", CLASSES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 5), (5, 64, 0), (17, 61, 127), (64, 256, 96), (130, 300, 513)])
def test_shapes(isa, numerics, shape) -> None:
    m, n, k = shape
    w = pack_as(_normal(n, k, seed=1), numerics)
    x, bias = _normal(m, k, seed=2), _normal(n, seed=3)
    ref = linear_reference(x, w.dequantize().double(), numerics, bias)
    assert relative_to_largest(ops.linear(x, w, bias), ref) <= FP32_TOLERANCE
    y = ops.linear(x.bfloat16(), w, bias)
    assert y.dtype == torch.bfloat16
    ref = linear_reference(x.bfloat16(), w.dequantize().double(), numerics, bias)
    problem = ops.dispatch.Problem("linear", m, n, k, "bfloat16", "bfloat16", "bias", numerics=numerics)
    kernel = _core.kernel(ops.dispatch.choose(problem).kernel)
    roundings = 2 if kernel.product == _core.DType.bf16 else 1  # torch's BF16 kernel rounds the product as well
    assert relative_to_largest(y, ref) <= roundings * BF16_TOLERANCE


@pytest.mark.parametrize("numerics", CLASSES)
@pytest.mark.parametrize(
    ("norm", "activation"),
    [
        *itertools.product((None, "layer", "rms", "block"), (None, "relu", "silu", "gelu", "hardswish", "sigmoid")),
        ("swish_rms", None),
    ],
)
@pytest.mark.parametrize("residual", [None, "before", "after"])
def test_epilogues_of_every_kernel(numerics, norm, activation, residual) -> None:
    m, n, k = 13, 270, 70
    w = pack_as(_normal(n, k, seed=1) / k**0.5, numerics)
    x, bias = _normal(m, k, seed=2), _normal(n, seed=3)
    r = None if residual is None else _normal(m, n, seed=4)
    arguments = (bias, _norm(norm, n), activation, r, residual == "before")
    ref = linear_reference(x, w.dequantize().double(), numerics, *arguments)
    for kernel in _core.kernels():
        if kernel.op == _core.Op.linear and kernel.numerics.name == numerics and kernel.library == "octavo":
            if not kernel.supported or kernel.device != _core.Device.cpu:
                continue
            y = run(x, w, *arguments, kernel=kernel)
            assert relative_to_largest(y, ref) <= FP32_TOLERANCE, kernel.name
            half = run(x, w, *arguments, out_dtype=torch.bfloat16, kernel=kernel)
            assert relative_to_largest(half, ref) <= BF16_TOLERANCE, kernel.name


@pytest.mark.parametrize("numerics", CLASSES)
def test_strides_leading_dimensions_and_out(isa, numerics) -> None:
    w = pack_as(_normal(24, 20, seed=1), numerics)
    x = _normal(6, 50, seed=2)
    expected = ops.linear(x[::2, 7:27].contiguous(), w)
    assert torch.equal(ops.linear(x[::2, 7:27], w), expected)
    assert torch.equal(ops.linear(x[::2, 7:27].T.contiguous().T, w), expected)
    assert torch.equal(ops.linear(x[:, :20].reshape(2, 3, 20), w), ops.linear(x[:, :20], w).reshape(2, 3, 24))
    assert torch.equal(ops.linear(x[0, :20], w), ops.linear(x[:1, :20], w)[0])
    wide = torch.full((3, 40), -7.0)
    out = wide[:, 8:32]
    assert ops.linear(x[::2, 7:27], w, out=out) is out
    assert torch.equal(out, expected)
    assert bool((wide[:, :8] == -7).all())
    assert bool((wide[:, 32:] == -7).all())


@pytest.mark.parametrize("numerics", CLASSES)
def test_empty_sizes(isa, numerics) -> None:
    bias = _normal(4, seed=3)
    assert ops.linear(torch.empty(0, 5), pack_as(_normal(4, 5), numerics)).shape == (0, 4)
    assert ops.linear(_normal(3, 5), pack_as(torch.empty(0, 5), numerics)).shape == (3, 0)
    y = ops.linear(torch.empty(3, 0), pack_as(torch.empty(4, 0), numerics), bias, activation="relu")
    assert torch.equal(y, bias.relu().expand(3, 4))


@pytest.mark.parametrize("numerics", CLASSES)
def test_bitwise_deterministic_for_any_thread_count(isa, numerics) -> None:
    w = pack_as(_normal(200, 300, seed=1), numerics)
    x = _normal(150, 300, seed=2)
    first = ops.linear(x, w, norm=ops.Norm("layer"), activation="silu")
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert torch.equal(ops.linear(x, w, norm=ops.Norm("layer"), activation="silu"), first)
    finally:
        torch.set_num_threads(before)


def test_not_finite_input(isa) -> None:
    x = _normal(3, 40, seed=2)
    x[0, 3], x[1, 5] = torch.nan, torch.inf
    for numerics in CLASSES:
        y = ops.linear(x, pack_as(_normal(8, 40, seed=1).abs() + 0.1, numerics))
        assert bool(y[0].isnan().all()), numerics
        assert bool(y[2].isfinite().all()), numerics
        if numerics in ("e4m3_row", "e4m3_block", "int8_dynamic"):  # saturates to the largest that shares its scale
            assert bool(y[1].isfinite().all()), numerics
        else:
            assert bool((y[1] == torch.inf).all()), numerics


def test_changed_weight_is_packed_again() -> None:
    layers = pack_as(_normal(16, 32, seed=1), "bf16")
    x = _normal(4, 32, seed=2)
    before = ops.linear(x, layers)
    layers.codes.mul_(2)
    assert torch.equal(ops.linear(x, layers), 2 * before)


def test_strided_vectors_are_read_at_every_call() -> None:
    w, x = pack_as(_normal(8, 6, seed=1), "bf16"), _normal(3, 6, seed=2)
    wide = torch.zeros(16)
    norm = ops.Norm("rms", torch.ones(16)[::2])
    for value in (1.0, 2.0):
        wide.fill_(value)
        norm.weight.fill_(value)
        assert torch.allclose(ops.linear(x, w, wide[::2]), ops.linear(x, w) + value, atol=1e-6)
        assert torch.allclose(ops.linear(x, w, norm=norm), value * ops.linear(x, w, norm=ops.Norm("rms")), atol=1e-5)


def test_calls_are_told_apart_by_what_they_compute() -> None:
    w, x, g = pack_as(_normal(8, 6, seed=1), "bf16"), _normal(3, 6, seed=2), torch.ones(8)
    made = [ops.Norm("layer", g), ops.Norm("rms", g), ops.Norm("layer", g, eps=1.0), ops.Norm("block", block=4)]
    for norm in made + made:
        ref = linear_reference(x, w.dequantize().double(), "bf16", norm=norm)
        assert relative_to_largest(ops.linear(x, w, norm=norm), ref) <= FP32_TOLERANCE


def test_counters_say_which_kernel_ran(isa) -> None:
    w = pack_as(_normal(64, 64), "int8_dynamic")
    problem = ops.dispatch.Problem("linear", 32, 64, 64, numerics="int8_dynamic")
    name = ops.dispatch.choose(problem).kernel
    before = ops.dispatch.counters().get(name, 0)
    ops.linear(_normal(32, 64), w)
    assert ops.dispatch.counters()[name] == before + 1
    assert name.startswith("cpu.")


W = pack_as(_normal(6, 4), "bf16")
BAD = [
    (dict(x=[1.0]), TypeError, "x: expected a torch.Tensor, found list"),
    (dict(x=_normal(2, 4).double()), TypeError, "x: expected float32 or bfloat16, found float64"),
    (
        dict(x=_normal(2, 5)),
        ValueError,
        r"x: shape \[2, 5\] does not fit weight \[6, 4\]; the last dimension must be K = 4",
    ),
    (dict(x=torch.tensor(1.0)), ValueError, r"x: shape \[\] does not fit"),
    (dict(x=_normal(2, 4).to("meta")), ValueError, "x: is on meta"),
    (dict(w=_normal(6, 4)), TypeError, "w: expected a PackedWeight from octavo.ops.pack_weight, found Tensor"),
    (dict(bias=_normal(5)), ValueError, "bias: has 5 elements; expected N = 6"),
    (dict(bias=_normal(6).bfloat16()), TypeError, "bias: expected float32, found bfloat16"),
    (dict(bias=_normal(1, 6)), ValueError, r"bias: expected 1 dimension\(s\), found shape \[1, 6\]"),
    (dict(norm="layer"), TypeError, "norm: expected an octavo.ops.Norm, found str"),
    (dict(norm=ops.Norm("layer", _normal(5))), ValueError, "norm.weight: has 5 elements; expected N = 6"),
    (
        dict(norm=ops.Norm("swish_rms"), activation="relu"),
        ValueError,
        "activation: found 'relu'; SwishRMSNorm is its own",
    ),
    (dict(activation="tanh"), ValueError, "activation: found 'tanh'; expected one of 'relu'"),
    (dict(residual=_normal(3, 6)), ValueError, r"residual: shape \[3, 6\]; expected \[2, 6\]"),
    (dict(out_dtype=torch.float16), TypeError, "out_dtype: expected"),
    (dict(out=torch.empty(2, 7)), ValueError, r"out: shape \[2, 7\]; expected \[2, 6\]"),
    (dict(out=torch.empty(6, 2).T), ValueError, "out: rows must be contiguous"),
    (dict(out=torch.empty(2, 6), out_dtype=torch.bfloat16), TypeError, "out: is torch.float32 but out_dtype"),
]


@pytest.mark.parametrize(
    ("change", "error", "message"), BAD, ids=[m.split(":")[0] + str(i) for i, (_, _, m) in enumerate(BAD)]
)
def test_bad_arguments_name_themselves(change, error, message) -> None:
    arguments = dict(x=_normal(2, 4), w=W) | change
    with pytest.raises(error, match=message):
        ops.linear(**arguments)


def test_bad_norms_and_weights() -> None:
    with pytest.raises(ValueError, match="norm.kind: found 'batch'"):
        ops.Norm("batch")
    with pytest.raises(TypeError, match="norm.eps: expected a number, found 'a'"):
        ops.Norm("layer", eps="a")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="norm.eps: expected a finite number >= 0, found nan"):
        ops.Norm("layer", eps=float("nan"))
    with pytest.raises(ValueError, match=r"norm.block: expected a positive whole number of columns, found 1.5"):
        ops.Norm("block", block=1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="block norm has no parameters"):
        ops.Norm("block", torch.ones(4))
    with pytest.raises(ValueError, match="norm.bias: RMS norm has no bias"):
        ops.Norm("rms", torch.ones(4), torch.ones(4))
    with pytest.raises(ValueError, match="norm.bias: RMS norm has no bias"):
        ops.Norm("swish_rms", torch.ones(4), torch.ones(4))
    with pytest.raises(ValueError, match=r"weight: expected 2 dimension\(s\), found shape \[4\]"):
        ops.pack_weight(torch.ones(4))
    with pytest.raises(ValueError, match="activations: 'bf16' with format 'int8' is not a numerics class"):
        ops.pack_weight(torch.ones(4, 4), "int8", "bf16")
    with pytest.raises(TypeError, match="weight: expected float32 or bfloat16, found int8"):
        ops.pack_weight(torch.ones(4, 4, dtype=torch.int8))


def test_classes_by_format_and_activations() -> None:
    weight = _normal(5, 7)
    names = {
        pair: ops.pack_weight(weight, *pair).numerics for pair in itertools.product(("e4m3", "bf16"), ("same", "bf16"))
    }
    assert names == {
        ("e4m3", "same"): "e4m3_row",
        ("e4m3", "bf16"): "e4m3_weight_only",
        ("bf16", "same"): "bf16",
        ("bf16", "bf16"): "bf16",
    }
    assert ops.pack_weight(weight, "int8").numerics == "int8_dynamic"
