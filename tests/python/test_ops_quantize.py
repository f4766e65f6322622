"""ops.quantize and ops.dequantize against the definition, on every instruction set."""

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from octavo import _core, ops
from octavo.ops.checks import check_quantize
from octavo.ops.reference import dequantize_reference, quantize_reference

FORMATS = ("e4m3", "e5m2", "int8")
_TORCH = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    a, b = a.float(), b.float()
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


def test_every_quantizer_equals_the_definition(isa: str) -> None:
    checked = []
    for kernel in _core.kernels():
        if kernel.op == _core.Op.quantize and kernel.supported and kernel.device == _core.Device.cpu:
            assert check_quantize(kernel) == ""
            checked.append(kernel.name)
    assert "cpu.generic.quantize" in checked


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("scaling", ["row", "tensor"])
@pytest.mark.parametrize("pow2", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (1, 1), (3, 17), (2, 3, 64), (33, 129)])
def test_codes_scales_and_values(isa, format, scaling, pow2, dtype, shape) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    q = ops.quantize(x, format, scaling, pow2)
    assert q.shape == x.shape
    assert q.format == format
    assert q.scaling == scaling
    assert list(q.scale.shape) == (list(shape[:-1]) if scaling == "row" else [1])
    codes, scale = quantize_reference(x.reshape(x.shape[:-1].numel(), shape[-1]), format, scaling, pow2)
    assert _equal(q.data.reshape(codes.shape), codes)
    assert _equal(q.scale.reshape(-1), scale)
    if pow2:
        assert _equal(torch.exp2(torch.log2(q.scale).round()), q.scale)
    expected = dequantize_reference(codes.float(), scale).reshape(shape)
    assert _equal(ops.dequantize(q), expected.float())
    assert _equal(ops.dequantize(q, torch.bfloat16), expected.float().to(torch.bfloat16))


def test_strided_input_is_read_in_place(isa) -> None:
    x = torch.randn(6, 40, generator=torch.Generator().manual_seed(2))
    assert _equal(ops.quantize(x[::2, 5:22]).data, ops.quantize(x[::2, 5:22].contiguous()).data)
    assert _equal(ops.quantize(x.T).data, ops.quantize(x.T.contiguous()).data)


@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 70)),
               elements=st.floats(width=32, allow_nan=True, allow_infinity=True)),
    st.sampled_from(FORMATS), st.sampled_from(["row", "tensor"]), st.booleans(),
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
    q = ops.quantize(x, format)
    torch.library.opcheck(
        torch.ops.octavo.dequantize.default, (q.data, q.scale, q.scaling, torch.bfloat16), test_utils=tests
    )


def test_compiled_equals_eager() -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        return ops.dequantize(ops.quantize(x * 2, "e4m3", "row"))

    x = torch.randn(8, 24)
    assert torch.equal(torch.compile(f, backend="eager", fullgraph=True)(x), f(x))
