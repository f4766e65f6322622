"""ops.quantize and ops.dequantize against the definition, on every instruction set."""

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from octavo import _core, ops
from octavo.ops.checks import check_quantize, same_bits
from octavo.ops.reference import dequantize_reference, quantize_reference

FORMATS = ("e4m3", "e5m2", "int8")
_TORCH = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and bool(same_bits(a, b).all())


def test_every_quantizer_equals_the_definition(isa: str) -> None:
    checked = []
    for kernel in _core.kernels():
        if kernel.op == _core.Op.quantize and kernel.supported and kernel.device == _core.Device.cpu:
            assert check_quantize(kernel) == ""
            checked.append(kernel.name)
    assert "cpu.generic.quantize" in checked


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("scaling", ["row", "tensor", "block_1x128"])
@pytest.mark.parametrize("pow2", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (1, 1), (3, 17), (2, 3, 64), (33, 129)])
def test_codes_scales_and_values(isa, format, scaling, pow2, dtype, shape) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    q = ops.quantize(x, format, scaling, pow2)
    assert q.shape == x.shape
    assert q.format == format
    assert q.scaling == scaling
    blocks = [*shape[:-1], -(-shape[-1] // 128)]
    assert list(q.scale.shape) == {"row": list(shape[:-1]), "tensor": [1], "block_1x128": blocks}[scaling]
    codes, scale = quantize_reference(x.reshape(x.shape[:-1].numel(), shape[-1]), format, scaling, pow2)
    assert _equal(q.data.reshape(codes.shape), codes)
    assert _equal(q.scale.reshape(-1), scale.reshape(-1))
    if pow2:
        assert _equal(torch.exp2(torch.log2(q.scale).round()), q.scale)
    expected = dequantize_reference(codes.float(), scale, scaling).reshape(shape)
    assert _equal(ops.dequantize(q), expected.float())
    assert _equal(ops.dequantize(q, torch.bfloat16), expected.float().to(torch.bfloat16))


def test_strided_input_is_read_in_place(isa) -> None:
    x = torch.randn(6, 40, generator=torch.Generator().manual_seed(2))
    assert _equal(ops.quantize(x[::2, 5:22]).data, ops.quantize(x[::2, 5:22].contiguous()).data)
    assert _equal(ops.quantize(x.T).data, ops.quantize(x.T.contiguous()).data)


@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 70)),
               elements=st.floats(width=32, allow_nan=True, allow_infinity=True)),
    st.sampled_from(FORMATS), st.sampled_from(["row", "tensor", "block_1x128", "block_128x128"]), st.booleans(),
)  # fmt: skip
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_floats(array, format, scaling, pow2) -> None:
    x = torch.from_numpy(array)
    q = ops.quantize(x, format, scaling, pow2)
    codes, scale = quantize_reference(x, format, scaling, pow2)
    assert _equal(q.data, codes)
    assert _equal(q.scale, scale)
    if format != "int8":
        assert bool((torch.isnan(q.data.float()) == torch.isnan(x)).all())
    elif scaling == "row":
        assert bool((torch.isnan(q.scale) == torch.isnan(x).any(1)).all())
    assert bool((q.scale[~q.scale.isnan()] > 0).all())


@pytest.mark.parametrize("format", ["e4m3", "e5m2"])
def test_values_in_range_round_as_torch_and_ml_dtypes(format) -> None:
    largest = {"e4m3": 448.0, "e5m2": 57344.0}[format]
    g = torch.Generator().manual_seed(3)
    x = (torch.randn(1000, 1000, generator=g) * torch.exp2(torch.randint(-20, 8, (1000, 1000), generator=g))).clamp(
        -largest, largest
    )
    x[0, 0] = largest  # the tensor's scale is then 1
    q = ops.quantize(x, format, "tensor")
    assert q.scale.item() == 1.0
    numpy_type = {"e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2}[format]
    assert torch.equal(q.data.view(torch.uint8), x.to(_TORCH[format]).view(torch.uint8))
    assert np.array_equal(q.data.view(torch.uint8).numpy(), x.numpy().astype(numpy_type).view(np.uint8))


SPECIAL = (0.0, -0.0, float("inf"), float("-inf"), float("nan"), 1e-45, -3e-39, 448.0, 2.0**-9, -(2.0**-10))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("k", [255, 256, 1000, 8200, 70000])
def test_long_strided_rows_of_every_kind(isa, format, dtype, k) -> None:
    g = torch.Generator().manual_seed(k)
    spread_out = torch.exp2(torch.randint(-30, 1, (9, k), generator=g))  # subnormal codes and ties among them
    x = torch.randn(9, k + 3, generator=g)[:, :k] * torch.ones(9, 1)
    x[1], x[2], x[3] = x[1].relu(), x[2] * spread_out[2], 0.0
    x[4, ::5], x[5, -1], x[6, 7], x[7] = -0.0, float("inf"), float("nan"), x[7] * 1e-39
    x[8, : len(SPECIAL)] = torch.tensor(SPECIAL)
    wide = torch.empty(9, k + 5, dtype=dtype)
    wide[:, 2 : k + 2] = x.to(dtype)
    rows = wide[:, 2 : k + 2]
    for part in (rows, rows[:1], rows[6:8]):
        q, (codes, scale) = ops.quantize(part, format), quantize_reference(part, format)
        assert _equal(q.data, codes)
        assert _equal(q.scale, scale)


def test_every_bfloat16_under_every_kind_of_multiplier(isa) -> None:
    """All 65536 values with amax swept: the BF16 table's arithmetic for subnormal, tiny and huge rows."""
    values = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    values = values[values.isfinite()]
    order = values.float().abs().argsort(stable=True)
    values = values[order]
    for format in ("e4m3", "e5m2"):
        for last in range(512, len(values), 1711):
            row = values[max(0, last - 6000) : last + 1][None]
            q, (codes, scale) = ops.quantize(row, format), quantize_reference(row, format)
            assert _equal(q.scale, scale)
            assert _equal(q.data, codes)


def test_beyond_the_last_cache_codes_are_the_same(isa) -> None:
    """Arrays this large are written past the caches: whole lines, and partial ones where rows are not multiples."""
    for k in (1000, 1024):
        x = torch.randn(9000, k, generator=torch.Generator().manual_seed(4))
        q = ops.quantize(x, "e4m3")
        for first in (0, 4490, 8980):
            codes, scale = quantize_reference(x[first : first + 20], "e4m3")
            assert _equal(q.data[first : first + 20], codes)
            assert _equal(q.scale[first : first + 20], scale)


TILED = [(1, 1), (3, 31), (5, 129), (130, 300), (128, 128), (257, 64), (0, 40), (40, 0)]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("scaling", ["block_128x128", "mx"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", TILED)
def test_tiles_and_mx_blocks(isa, format, scaling, dtype, shape) -> None:
    if scaling == "mx" and format == "int8":
        pytest.skip("MX elements are E4M3 or E5M2 here")
    m, k = shape
    g = torch.Generator().manual_seed(m + k)
    x = torch.randn(m, k, generator=g) * torch.exp2(torch.randint(-30, 8, (m, k), generator=g))
    if x.numel() > 20:
        x[0, :2], x[-1, -1], x[1, 1] = -0.0, float("inf"), float("nan")
        x[2] = 0.0
    x = x.to(dtype)
    q = ops.quantize(x, format, scaling)
    codes, scale = quantize_reference(x, format, scaling)
    side = [-(-m // 128), -(-k // 128)] if scaling == "block_128x128" else [m, -(-k // 32)]
    assert list(q.scale.shape) == side
    assert q.scale.dtype == (torch.float8_e8m0fnu if scaling == "mx" else torch.float32)
    assert _equal(q.data, codes)
    assert _equal(q.scale, scale)
    expected = dequantize_reference(codes, scale, scaling)
    assert _equal(ops.dequantize(q), expected.float())
    assert _equal(ops.dequantize(q, torch.bfloat16), expected.float().to(torch.bfloat16))


def test_block_scales_by_hand() -> None:
    x = torch.zeros(130, 130)
    x[0, 0], x[0, 129], x[129, 5], x[129, 129] = 448.0, 896.0, -224.0, 44.8
    assert ops.quantize(x, "e4m3", "block_128x128").scale.tolist() == [[1.0, 2.0], [0.5, pytest.approx(0.1)]]
    rows = ops.quantize(x, "e4m3", "block_1x128").scale
    assert rows[0].tolist() == [1.0, 2.0]
    assert rows[1].tolist() == [1.0, 1.0]
    assert rows[129].tolist() == [0.5, pytest.approx(0.1)]


@pytest.mark.parametrize(
    ("largest", "exponent", "kept"),
    [(256.0, 0, 256.0), (511.0, 0, 448.0), (512.0, 1, 512.0), (1.0, -8, 1.0), (0.9375, -9, 0.875), (1e-45, -127, 0.0)],
)
def test_mx_scales_round_down_and_the_largest_saturates(largest, exponent, kept) -> None:
    x = torch.full((1, 32), largest / 4)
    x[0, 3] = largest
    q = ops.quantize(x, "e4m3", "mx")
    assert q.scale.float().item() == 2.0**exponent
    assert q.dequantize()[0, 3].item() == kept
    assert ops.quantize(torch.zeros(1, 40), "e5m2", "mx").scale.float().tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("format", ["e4m3", "e5m2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mx_equals_torchao(format, dtype) -> None:
    mx_tensor = pytest.importorskip("torchao.prototype.mx_formats.mx_tensor", reason="torchao is not installed")
    x = (torch.randn(64, 256, generator=torch.Generator().manual_seed(6)) * 3).to(dtype)
    scale, codes = mx_tensor.to_mx(x, _TORCH[format], 32)
    q = ops.quantize(x, format, "mx")
    assert torch.equal(q.scale.view(torch.uint8).reshape(-1), scale.view(torch.uint8).reshape(-1))
    assert torch.equal(q.data.view(torch.uint8), codes.view(torch.uint8))


def test_out_is_overwritten_and_checked() -> None:
    x, y = torch.randn(7, 300), torch.randn(7, 300)
    for scaling in ("row", "tensor", "block_1x128", "block_128x128", "mx"):
        q = ops.quantize(x, "e4m3", scaling)
        pointer = q.data.data_ptr()
        assert ops.quantize(y, "e4m3", scaling, out=q) is q
        fresh = ops.quantize(y, "e4m3", scaling)
        assert q.data.data_ptr() == pointer
        assert _equal(q.data, fresh.data)
        assert _equal(q.scale, fresh.scale)
    q = ops.quantize(x)
    with pytest.raises(ValueError, match="out: is e4m3, row; expected int8, row"):
        ops.quantize(x, "int8", out=q)
    with pytest.raises(ValueError, match=r"out.data: is contiguous torch.float8_e4m3fn \[7, 300\] on cpu; expected"):
        ops.quantize(x[:6], out=q)
    with pytest.raises(TypeError, match="out: expected a QuantizedTensor"):
        ops.quantize(x, out=x)  # type: ignore[arg-type]


def test_bad_arguments_name_themselves() -> None:
    x = torch.randn(2, 3)
    with pytest.raises(TypeError, match="x: expected a torch.Tensor, found list"):
        ops.quantize([1.0])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="x: expected float32 or bfloat16 or float16, found float64"):
        ops.quantize(x.double())
    with pytest.raises(ValueError, match="format: found 'fp8'; expected one of 'e4m3', 'e5m2', 'int8'"):
        ops.quantize(x, "fp8")
    with pytest.raises(ValueError, match="scaling: found 'column'"):
        ops.quantize(x, scaling="column")
    with pytest.raises(ValueError, match=r"x: block_128x128 scaling takes a matrix, found shape \[2, 3, 1\]"):
        ops.quantize(x[..., None], scaling="block_128x128")
    with pytest.raises(ValueError, match="format: mx scaling has e4m3 and e5m2 elements, found 'int8'"):
        ops.quantize(x, "int8", "mx")
    with pytest.raises(ValueError, match="pow2_scale: mx scales are powers of two already"):
        ops.quantize(x, scaling="mx", pow2_scale=True)
    with pytest.raises(ValueError, match="x: expected at least one dimension"):
        ops.quantize(torch.tensor(1.0))
    with pytest.raises(ValueError, match="x: is on meta"):
        ops.quantize(x.to("meta"))
    with pytest.raises(TypeError, match="dtype: expected"):
        ops.dequantize(ops.quantize(x), torch.float64)
    with pytest.raises(TypeError, match="q: expected a QuantizedTensor"):
        ops.dequantize(x)  # type: ignore[arg-type]


@pytest.mark.parametrize("format", FORMATS)
def test_operators_are_well_formed(format) -> None:
    x = torch.randn(4, 9)
    # torch's schema check multiplies what it compares, which it cannot do in FP8
    schema = ("test_schema",) if format == "int8" else ()
    tests = (*schema, "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.octavo.quantize.default, (x, format, "row", False), test_utils=tests)
    for scaling in ("row", "block_128x128") if format == "int8" else ("row", "block_128x128", "mx"):
        torch.library.opcheck(torch.ops.octavo.quantize.default, (x, format, scaling, False), test_utils=tests)
        q = ops.quantize(x, format, scaling)
        arguments = (q.data, q.scale, q.scaling, torch.bfloat16)
        torch.library.opcheck(torch.ops.octavo.dequantize.default, arguments, test_utils=tests)


def test_compiled_equals_eager() -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        return ops.dequantize(ops.quantize(x * 2, "e4m3", "row"))

    x = torch.randn(8, 24)
    assert torch.equal(torch.compile(f, backend="eager", fullgraph=True)(x), f(x))


def test_codes_that_are_not_what_they_say_are_refused() -> None:
    q = ops.quantize(torch.randn(10, 64), format="e4m3", scaling="row")
    wrong = {
        r"q.scale: is torch.float32 \[3\] on cpu; for e4m3 with row scaling expected torch.float32 \[10\] on cpu":
            (q.data, q.scale[:3], "e4m3", "row"),
        r"q.scale: is torch.float64 \[10\]": (q.data, q.scale.double(), "e4m3", "row"),
        r"q.data: is torch.float32 \[10, 64\]": (q.data.float(), q.scale, "e4m3", "row"),
        "q.scaling: ": (q.data, q.scale, "e4m3", "columns"),
        "q.format: ": (q.data, q.scale, "int3", "row"),
    }  # fmt: skip
    for says, parts in wrong.items():
        with pytest.raises(ValueError, match=says):
            ops.dequantize(ops.QuantizedTensor(*parts))
