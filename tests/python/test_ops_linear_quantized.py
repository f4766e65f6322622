"""Eight-bit rows into and out of ops.linear: the bits of quantizing before and after."""

import pytest
import torch

from octavo import _core, nn, ops
from octavo.ops.linear_call import run
from octavo.ops.packing import pack_as

CLASSES = ("bf16", "e4m3_row", "e4m3_weight_only", "int8_dynamic")
TAKES = {"e4m3_row": "e4m3", "int8_dynamic": "int8"}
OTHER = {"e4m3": "int8", "int8": "e4m3"}


def _normal(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed + sum(size)))


def _kernels(numerics: str) -> list[_core.Kernel]:
    rows = [k for k in _core.kernels() if k.op == _core.Op.linear and k.numerics.name == numerics and k.takes_codes]
    assert len(rows) >= 2
    return [k for k in rows if k.supported]


def _same(a: ops.QuantizedTensor, b: ops.QuantizedTensor) -> bool:
    """The same codes and scales, NaN included."""
    scales = torch.equal(a.scale.nan_to_num(nan=-1.0), b.scale.nan_to_num(nan=-1.0))
    return scales and a.format == b.format and torch.equal(a.data.view(torch.uint8), b.data.view(torch.uint8))


@pytest.mark.parametrize("numerics", TAKES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quantized_rows_give_the_bits_of_their_floats(isa, numerics, dtype) -> None:
    format = TAKES[numerics]
    for m, n, k in (
        (0, 5, 7),
        (1, 1, 1),
        (1, 70, 33),
        (4, 64, 64),
        (7, 37, 129),
        (13, 130, 515),
        (100, 65, 1027),
        (3, 4, 0),
    ):
        x = (_normal(m, k) * torch.exp2(torch.arange(m) % 7 - 3.0)[:, None]).to(dtype)
        w, bias = pack_as(_normal(n, k, seed=1), numerics), _normal(n, seed=2)
        if m > 2 and k > 2:
            x[0], x[1, 2], x[2, 1] = 0, torch.inf, torch.nan
        q = ops.quantize(x, format)
        for kernel in _kernels(numerics):
            expected = run(x, w, bias, ops.Norm("rms"), "relu", out_dtype=torch.float32, kernel=kernel)
            y = run(q, w, bias, ops.Norm("rms"), "relu", kernel=kernel)
            assert y.dtype == torch.float32
            assert torch.equal(y.nan_to_num(nan=-1e30), expected.nan_to_num(nan=-1e30)), (kernel.name, m, n, k)
            half = run(q, w, bias, kernel=kernel, out_dtype=torch.bfloat16)
            assert torch.equal(half.isnan(), y.isnan())


@pytest.mark.parametrize("numerics", CLASSES)
@pytest.mark.parametrize("format", ["e4m3", "int8"])
def test_quantized_outputs_are_those_of_quantize(isa, numerics, format) -> None:
    for m, n, k in ((0, 5, 7), (1, 1, 1), (2, 300, 40), (13, 37, 129), (50, 130, 515), (3, 0, 4), (2, 67, 0)):
        w, bias, x = pack_as(_normal(n, k, seed=1), numerics), _normal(n, seed=2), _normal(m, k)
        residual = _normal(m, n, seed=4)
        weight = 1 + 0.1 * _normal(n, seed=5)
        for norm, activation, r, before in (
            (None, None, None, False),
            (None, "relu", None, False),
            (ops.Norm("layer", weight, bias), "hardswish", residual, True),
            (ops.Norm("rms", weight), "gelu", residual.bfloat16(), False),
            (ops.Norm("block", block=50), "silu", residual, False),
            (ops.Norm("swish_rms", weight), None, None, False),
            (None, "sigmoid", residual, False),
        ):
            for kernel in _kernels(numerics):
                y = run(x, w, bias, norm, activation, r, before, kernel=kernel)
                q = run(x, w, bias, norm, activation, r, before, kernel=kernel, out_format=format)
                assert q.shape == (m, n)
                assert q.scaling == "row"
                assert _same(q, ops.quantize(y, format)), (kernel.name, m, n, k, norm, activation)


@pytest.mark.parametrize("format", ["e4m3", "int8"])
def test_what_is_not_finite_is_quantized_as_quantize_does(isa, format) -> None:
    w = pack_as(_normal(40, 30, seed=1).abs(), "bf16")
    x = _normal(6, 30)
    x[0], x[1, 3], x[2, 4], x[3, 5] = 0, torch.nan, torch.inf, -torch.inf
    residual = torch.zeros(6, 40)
    residual[4, 7], residual[5, 39] = torch.inf, torch.nan
    q = ops.linear(x, w, residual=residual, out_format=format)
    expected = ops.quantize(ops.linear(x, w, residual=residual), format)
    assert _same(q, expected)
    assert q.scale.isnan().tolist() == [False, format == "int8", False, False, False, format == "int8"]


@pytest.mark.parametrize("numerics", TAKES)
def test_two_layers_chained_in_eight_bits(isa, numerics) -> None:
    format = TAKES[numerics]
    first, second = pack_as(_normal(70, 45, seed=1), numerics), pack_as(_normal(33, 70, seed=2), numerics)
    bias, norm = _normal(70, seed=3), ops.Norm("layer", 1 + 0.1 * _normal(70, seed=4), _normal(70, seed=5))
    for shape in ((45,), (1, 45), (9, 45), (3, 2, 45), (200, 45)):
        x = _normal(*shape)
        hidden = ops.linear(ops.quantize(x, format), first, bias, norm, "hardswish", out_format=format)
        assert hidden.shape == (*shape[:-1], 70)
        assert hidden.scale.shape == shape[:-1]
        y = ops.linear(hidden, second, activation="sigmoid")
        unfused = ops.linear(x, first, bias, norm, "hardswish")
        assert _same(hidden, ops.quantize(unfused, format))
        assert torch.equal(y, ops.linear(unfused, second, activation="sigmoid"))


def test_strides_of_codes_and_scales(isa) -> None:
    w, q = pack_as(_normal(20, 12), "int8_dynamic"), ops.quantize(_normal(8, 12, seed=2), "int8")
    expected = ops.linear(q, w)
    wide = torch.zeros(8, 30, dtype=torch.int8)
    wide[:, 5:17] = q.data
    scales = torch.stack([q.scale, q.scale + 1], 1)
    assert torch.equal(ops.linear(ops.QuantizedTensor(wide[:, 5:17], scales[:, 0], "int8", "row"), w), expected)
    turned = q.data.T.contiguous().T
    assert torch.equal(ops.linear(ops.QuantizedTensor(turned, q.scale, "int8", "row"), w), expected)
    assert torch.equal(ops.linear(ops.QuantizedTensor(q.data[::2], q.scale[::2], "int8", "row"), w), expected[::2])
    out = torch.empty(8, 20, dtype=torch.bfloat16)
    assert ops.linear(q, w, out=out) is out
    assert torch.equal(out, expected.bfloat16())


def test_same_bits_on_any_number_of_threads(isa) -> None:
    w, x = pack_as(_normal(200, 300, seed=1), "e4m3_row"), ops.quantize(_normal(150, 300, seed=2), "e4m3")
    first = ops.linear(x, w, norm=ops.Norm("layer"), activation="silu", out_format="e4m3")
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert _same(ops.linear(x, w, norm=ops.Norm("layer"), activation="silu", out_format="e4m3"), first)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("numerics", TAKES)
def test_one_scale_for_all_rows(isa, numerics) -> None:
    """Of x, as tensor scaling gives it, and of a weight: every row has it."""
    format = TAKES[numerics]
    q = ops.quantize(_normal(70, 33), format, "tensor")
    w = ops.PackedWeight(q.data, q.scale, numerics)
    assert torch.equal(w.dequantize(), q.dequantize())
    for shape in ((33,), (1, 33), (9, 33), (3, 2, 33), (0, 33)):
        x = ops.quantize(_normal(*shape, seed=1), format, "tensor")
        rows = ops.QuantizedTensor(x.data, x.scale.reshape(()).expand(shape[:-1]), format, "row")
        y = ops.linear(x, w, activation="silu")
        assert torch.equal(y, ops.linear(rows, w, activation="silu"))
        exact = torch.nn.functional.silu(x.dequantize().double() @ q.dequantize().double().T)
        assert torch.allclose(y.double(), exact, atol=1e-5 * float(exact.abs().max()) if exact.numel() else 0)
    traced = torch.compile(lambda x: ops.linear(ops.QuantizedTensor(x.data, x.scale, format, "tensor"), w),
                           backend="eager")  # fmt: skip
    x = ops.quantize(_normal(9, 33, seed=1), format, "tensor")
    assert torch.equal(traced(x), ops.linear(x, w))


def test_scales_that_do_not_fit_a_weight_are_refused() -> None:
    q = ops.quantize(_normal(200, 300))
    with pytest.raises(ValueError, match=r"scale: is \[199\]; codes \[200, 300\] of class e4m3_row have row scales"):
        ops.PackedWeight(q.data, q.scale[:199], "e4m3_row")
    with pytest.raises(ValueError, match=r"e4m3_block have block_128x128 scales, \[2, 3\]$"):
        ops.PackedWeight(q.data, q.scale, "e4m3_block")
    with pytest.raises(ValueError, match=r"scale: is \[2, 3\]; .* of class e4m3_row have row scales, \[200\] or \[1\]"):
        ops.PackedWeight(q.data, torch.ones(2, 3), "e4m3_row")


def test_calls_with_floats_and_codes_take_turns() -> None:
    w, x = pack_as(_normal(20, 12), "e4m3_row"), _normal(8, 12, seed=2)
    q, y = ops.quantize(x), ops.linear(x, w)
    for _ in range(3):
        assert torch.equal(ops.linear(x, w), y)
        assert torch.equal(ops.linear(q, w), y)
        assert ops.linear(q, w, out_dtype=torch.bfloat16).dtype == torch.bfloat16
        assert _same(ops.linear(q, w, out_format="int8"), ops.quantize(y, "int8"))


def test_what_is_refused() -> None:
    w, x = pack_as(_normal(6, 4), "int8_dynamic"), _normal(2, 4)
    with pytest.raises(
        TypeError, match="x: is quantized e4m3; a weight of class int8_dynamic takes float32, bfloat16 or"
    ):
        ops.linear(ops.quantize(x), w)
    with pytest.raises(TypeError, match="x: is quantized int8; a weight of class bf16 takes float32 or bfloat16"):
        ops.linear(ops.quantize(x, "int8"), pack_as(_normal(6, 4), "bf16"))
    with pytest.raises(TypeError, match="class e4m3_weight_only takes float32 or bfloat16"):
        ops.linear(ops.quantize(x), pack_as(_normal(6, 4), "e4m3_weight_only"))
    with pytest.raises(ValueError, match="x: has block_1x128 scaling; class int8_dynamic takes .*scaling='row'"):
        ops.linear(ops.quantize(x, "int8", "block_1x128"), w)
    with pytest.raises(ValueError, match="x: has row scaling; class e4m3_block takes .*scaling='block_1x128'"):
        ops.linear(ops.quantize(x), pack_as(_normal(6, 4), "e4m3_block"))
    q = ops.quantize(x, "int8")
    with pytest.raises(ValueError, match=r"x: shape \[2, 3\] does not fit weight \[6, 4\]"):
        ops.linear(ops.QuantizedTensor(q.data[:, 1:], q.scale, "int8", "row"), w)
    with pytest.raises(ValueError, match=r"x.scale: is \[1\] on cpu; row scaling of \[2, 4\] has \[2\]"):
        ops.linear(ops.QuantizedTensor(q.data, q.scale[:1], "int8", "row"), w)
    with pytest.raises(TypeError, match="x.data: expected int8, found float32"):
        ops.linear(ops.QuantizedTensor(x, q.scale, "int8", "row"), w)
    with pytest.raises(TypeError, match="x: expected float32 or bfloat16, found int8"):
        ops.linear(q.data, w)
    with pytest.raises(ValueError, match="out_format: found 'e5m2'; expected one of 'e4m3', 'int8'"):
        ops.linear(x, w, out_format="e5m2")
    with pytest.raises(ValueError, match="out_dtype: cannot be combined with out_format"):
        ops.linear(x, w, out_dtype=torch.float32, out_format="int8")
    with pytest.raises(ValueError, match="out: cannot be combined with out_format"):
        ops.linear(x, w, out=torch.empty(2, 6), out_format="int8")
    for name, arguments in (("x", dict(x=q)), ("out_format", dict(x=x, out_format="int8"))):
        bias = torch.zeros(6, requires_grad=True)
        with pytest.raises(ValueError, match=f"{name}: eight-bit rows record no gradients"):
            ops.linear(w=w, bias=bias, **arguments)
        with torch.no_grad():
            ops.linear(w=w, bias=bias, **arguments)


@pytest.mark.parametrize("numerics", TAKES)
@pytest.mark.parametrize("out_format", [None, "e4m3", "int8"])
def test_operator_is_well_formed(numerics, out_format) -> None:
    w, q = pack_as(_normal(8, 12), numerics), ops.quantize(_normal(2, 3, 12), TAKES[numerics])
    arguments = (
        q.data,
        w.codes,
        w.scale,
        numerics,
        True,
        _normal(8),
        "rms",
        torch.ones(8),
        None,
        1e-5,
        256,
        "relu",
        None,
        False,
    )
    schema = ("test_schema",) if numerics == "int8_dynamic" and out_format != "e4m3" else ()  # torch cannot compare FP8
    torch.library.opcheck(
        torch.ops.octavo.linear_quantized.default, (*arguments, q.scale, None, out_format),
        test_utils=(*schema, "test_faketensor", "test_aot_dispatch_dynamic"),
    )  # fmt: skip


@pytest.mark.parametrize("numerics", TAKES)
def test_a_compiled_chain_equals_eager(numerics) -> None:
    format = TAKES[numerics]
    first, second = pack_as(_normal(8, 12), numerics), pack_as(_normal(5, 8), numerics)
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: object) -> object:
        graphs.append(graph)
        return graph.forward

    def f(x: torch.Tensor) -> torch.Tensor:
        return ops.linear(ops.linear(x, first, activation="relu", out_format=format), second) + 1

    x = _normal(6, 12)
    compiled = torch.compile(f, backend=backend, fullgraph=True, dynamic=True)
    assert torch.equal(compiled(x), f(x))
    assert torch.equal(compiled(x[:3]), f(x[:3]))
    names = [
        str(node.target)
        for node in graphs[0].graph.nodes
        if node.op == "call_function" and "octavo" in str(node.target)
    ]
    assert len(graphs) == 1
    assert len(names) == 2
    assert all("linear_quantized" in name for name in names)


def test_dispatch_offers_codes_only_to_kernels_that_take_them() -> None:
    for x, out in (("int8", "float32"), ("float32", "int8"), ("int8", "float8_e4m3fn")):
        problem = ops.dispatch.Problem("linear", 9, 33, 40, x, out, numerics="int8_dynamic")
        decision = ops.dispatch.choose(problem)
        assert _core.kernel(decision.kernel).takes_codes
        reasons = {a.kernel: a.reason for a in decision.alternatives}
        assert reasons["torch.cpu.linear.int8_dynamic"] == "takes and gives no eight-bit codes"
        times = ops.dispatch.measure(problem)
        assert set(times) <= {k.name for k in _core.kernels() if k.takes_codes}
    problem = ops.dispatch.Problem("linear", 9, 33, 40, "int8", numerics="e4m3_row")
    with pytest.raises(RuntimeError, match="x is quantized in another format than the class's"):
        ops.dispatch.choose(problem)


def test_layers_of_nn_serve_as_a_chain() -> None:
    layer = nn.LinearNorm(12, 9, "swish_rms", None)
    layer.numerics = "int8_dynamic"
    x = _normal(4, 12)
    with torch.no_grad():
        assert torch.equal(layer(ops.quantize(x, "int8")), layer(x))
