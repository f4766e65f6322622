"""The compiled codecs against torch and ml_dtypes: every code, and a million floats in range."""

import ml_dtypes
import numpy as np
import pytest
import torch

from octavo import _core

_E4M3, _E5M2 = int(_core.DType.e4m3), int(_core.DType.e5m2)
_FORMATS = {
    "e4m3": (_E4M3, torch.float8_e4m3fn, ml_dtypes.float8_e4m3fn, 448.0, 2.0**-9),
    "e5m2": (_E5M2, torch.float8_e5m2, ml_dtypes.float8_e5m2, 57344.0, 2.0**-16),
}
_F32 = int(_core.DType.f32)


def _encode(kernel: _core.Kernel, x: np.ndarray, format: int) -> np.ndarray:
    """Codes of x under scale 1: every row ends with the format's largest value, so amax / max is exactly 1."""
    codes, scale = np.empty(x.shape, np.uint8), np.empty(x.shape[0], np.float32)
    _core.quantize(
        kernel,
        x.ctypes.data,
        *x.shape,
        x.shape[1],
        _F32,
        format,
        _core.Scaling.row,
        False,
        codes.ctypes.data,
        scale.ctypes.data,
        0,
    )
    assert (scale == 1.0).all()
    return codes


def _kernels(format: str) -> list[_core.Kernel]:
    """The row quantizers of this level that write ``format`` from float32."""
    return [
        k
        for k in _core.kernels()
        if k.op == _core.Op.quantize and k.library == "octavo" and k.device == _core.Device.cpu and k.supported
        if format in k.formats and "row" in k.formats.split(", ")[-1].split("|")
    ]


def _floats(largest: float, smallest: float, rows: int, cols: int) -> np.ndarray:
    """Random floats of every exponent in range and below it, midpoints between codes among them; largest comes last."""
    g = np.random.default_rng(11)
    magnitude = np.exp2(g.uniform(np.log2(smallest) - 2, np.log2(largest), (rows, cols)))
    x = (magnitude * g.choice([-1.0, 1.0], (rows, cols))).astype(np.float32)
    x[: rows // 4] = (x[: rows // 4].view(np.uint32) & np.uint32(0xFFF80000)).view(np.float32)  # few bits: many ties
    x[0] = 0.0
    x[:, -1] = largest
    return np.clip(x, -largest, largest)


@pytest.mark.parametrize("format", _FORMATS)
def test_every_code_decodes_as_torch_and_ml_dtypes(format: str) -> None:
    code, torch_type, ml_type, _, _ = _FORMATS[format]
    codes, scale, out = np.arange(256, dtype=np.uint8), np.ones(1, np.float32), np.empty(256, np.float32)
    _core.dequantize(
        codes.ctypes.data, code, _core.Scaling.tensor, scale.ctypes.data, out.ctypes.data, 1, 256, 256, _F32
    )
    np.testing.assert_array_equal(out, torch.from_numpy(codes).view(torch_type).float().numpy())
    np.testing.assert_array_equal(out, codes.view(ml_type).astype(np.float32))


@pytest.mark.parametrize("format", _FORMATS)
def test_a_million_floats_encode_as_torch_and_ml_dtypes(isa: str, format: str) -> None:
    code, torch_type, ml_type, largest, smallest = _FORMATS[format]
    x = _floats(largest, smallest, 1000, 1003)
    by_torch = torch.from_numpy(x).to(torch_type).view(torch.uint8).numpy()
    np.testing.assert_array_equal(by_torch, x.astype(ml_type).view(np.uint8))
    kernels = _kernels(format)
    assert "cpu.generic.quantize" in [k.name for k in kernels]
    for kernel in kernels:
        np.testing.assert_array_equal(_encode(kernel, x, code), by_torch, err_msg=kernel.name)


@pytest.mark.parametrize("format", _FORMATS)
def test_every_code_survives_the_round_trip(isa: str, format: str) -> None:
    code, _, ml_type, largest, _ = _FORMATS[format]
    values = np.arange(256, dtype=np.uint8).view(ml_type).astype(np.float32)
    values = np.append(values[np.isfinite(values)], np.float32(largest))[None]
    for kernel in _kernels(format):
        codes = _encode(kernel, values, code)
        np.testing.assert_array_equal(codes.view(ml_type).astype(np.float32), values, err_msg=kernel.name)


def test_int8_codes_round_to_nearest_even(isa: str) -> None:
    x = np.append(np.arange(-254, 255, dtype=np.float32) / 2, np.float32(127))[None]  # every integer and every tie
    for kernel in _kernels("int8"):
        codes = _encode(kernel, x, int(_core.DType.i8)).view(np.int8)
        np.testing.assert_array_equal(codes, np.rint(x).astype(np.int8), err_msg=kernel.name)
