"""The compiled linear kernels through _core: values, errors, threads, and what the compiler made of their loops."""

import re
import shutil
import subprocess
import threading

import numpy as np
import pytest

from octavo import _core

_F32, _BF16 = int(_core.DType.f32), int(_core.DType.bf16)


def _kernels() -> list[_core.Kernel]:
    return [
        k
        for k in _core.kernels()
        if k.op == _core.Op.linear and k.library == "octavo" and k.device == _core.Device.cpu and k.supported
    ]


class Layer:
    """Integer operands that every class holds exactly: 0, +-1, +-2, and in each row of x its format's largest value."""

    def __init__(self, m: int, n: int, k: int) -> None:
        g = np.random.default_rng(m + n + k)
        self.x = g.integers(-2, 3, (m, k)).astype(np.float32)
        self.w = g.integers(-2, 3, (n, k)).astype(np.float32)
        self.bias = g.integers(-9, 9, n).astype(np.float32)
        self.scale = np.ones(max(n, -(-n // 128) * -(-k // 128)), np.float32)

    def pack(self, numerics: str) -> _core.PackedWeight:
        if numerics == "bf16":
            self.codes = (self.w.view(np.uint32) >> 16).astype(np.uint16)
            return _core.PackedWeight(self.codes.ctypes.data, 0, *self.w.shape, _BF16)
        if numerics == "int8_dynamic":
            self.codes = self.w.astype(np.int8)
            return _core.PackedWeight(
                self.codes.ctypes.data, self.scale.ctypes.data, *self.w.shape, int(_core.DType.i8)
            )
        table = {0.0: 0x00, 1.0: 0x38, 2.0: 0x40, -1.0: 0xB8, -2.0: 0xC0}
        self.codes = np.vectorize(table.__getitem__, otypes=[np.uint8])(self.w)
        scaling = _core.Scaling.block_128x128 if numerics == "e4m3_block" else _core.Scaling.row
        return _core.PackedWeight(
            self.codes.ctypes.data, self.scale.ctypes.data, *self.w.shape, int(_core.DType.e4m3), int(scaling)
        )

    def run(self, kernel: _core.Kernel, weight: _core.PackedWeight, activation: int = 0) -> np.ndarray:
        self.x[:, ::128] = 127.0 if kernel.numerics == _core.Numerics.int8_dynamic else 448.0  # so every scale is 1
        y = np.full((self.x.shape[0], self.w.shape[0]), np.nan, np.float32)
        epilogue = _core.Epilogue(self.bias.ctypes.data, int(_core.NormKind.none), 0, 0, 1e-5, 256, activation)
        _core.linear(
            kernel, self.x.ctypes.data, self.x.shape[0], self.x.shape[1], _F32, weight,
            y.ctypes.data, y.shape[1], _F32, epilogue, 0, 0, _F32, False, 0,
        )  # fmt: skip
        return y


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 130, 67), (7, 65, 130), (100, 70, 1027)])
def test_exact_operands_give_exact_sums(isa: str, shape: tuple[int, int, int]) -> None:
    layer = Layer(*shape)
    for kernel in _kernels():
        y = layer.run(kernel, layer.pack(kernel.numerics.name))
        np.testing.assert_array_equal(y, layer.x @ layer.w.T + layer.bias, err_msg=kernel.name)


def test_every_class_has_a_kernel_at_every_level(isa: str) -> None:
    classes = {"bf16", "e4m3_row", "e4m3_weight_only", "int8_dynamic", "e4m3_block"}
    assert {k.numerics.name for k in _kernels()} == classes


def test_calls_are_counted_and_enums_are_integers() -> None:
    layer, kernel = Layer(3, 4, 5), _core.kernel("cpu.generic.linear.bf16")
    before = kernel.calls
    y = layer.run(kernel, layer.pack("bf16"), int(_core.Activation.relu))
    assert kernel.calls == before + 1
    np.testing.assert_array_equal(y, np.maximum(layer.x @ layer.w.T + layer.bias, 0))
    assert [int(kind) for kind in _core.NormKind] == [0, 1, 2, 3, 4]
    assert _core.Activation.sigmoid == 5


def test_a_weight_of_another_class_is_refused() -> None:
    layer = Layer(2, 3, 4)
    weight = layer.pack("bf16")
    with pytest.raises(ValueError, match=r"not packed for class int8_dynamic; pack it with the format of that class"):
        layer.run(_core.kernel("cpu.generic.linear.int8_dynamic"), weight)
    with pytest.raises(ValueError, match=r"cpu\.generic\.quantize is no linear kernel"):
        layer.run(_core.kernel("cpu.generic.quantize"), weight)


def test_callers_in_several_threads_get_their_own_results(isa: str) -> None:
    layer = Layer(70, 130, 257)
    for kernel in _kernels():
        weight = layer.pack(kernel.numerics.name)  # its layout is made by whichever thread comes first
        results: list[np.ndarray] = []

        def work(kernel: _core.Kernel = kernel, weight: _core.PackedWeight = weight, to: list = results) -> None:
            for _ in range(5):
                to.append(layer.run(kernel, weight))

        workers = [threading.Thread(target=work) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert len(results) == 20
        for y in results:
            np.testing.assert_array_equal(y, layer.x @ layer.w.T + layer.bias, err_msg=kernel.name)


@pytest.mark.skipif(shutil.which("objdump") is None, reason="objdump (binutils) reads the machine code")
def test_full_tiles_keep_their_sums_in_registers() -> None:
    """The loops of 24 dot products touch no stack and copy no register: g++ 12 does both when it is let."""
    code = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", _core.__file__], capture_output=True, text=True, check=True
    ).stdout
    found = re.findall(r"^ +([0-9a-f]+):\t(.*)$", code, re.MULTILINE)
    instructions = [(int(address, 16), text) for address, text in found]
    places = {address: i for i, (address, _) in enumerate(instructions)}
    tiles = []
    for i, (address, text) in enumerate(instructions):
        jump = re.match(r"j\w+ +([0-9a-f]+)", text)
        start = places.get(int(jump.group(1), 16), i) if jump else i
        if not i - 80 < start < i or instructions[start][0] > address:
            continue
        body = [text for _, text in instructions[start : i + 1]]
        if sum(t.startswith(("vdpbf16ps", "vpdpbusd")) for t in body) == 24:
            tiles.append(body)
    if not tiles:
        pytest.skip("no AVX-512 kernels in this build")
    assert len(tiles) >= 4  # one in each class
    for body in tiles:
        assert not [t for t in body if "%rsp" in t or "%rbp" in t]
        assert not [t for t in body if re.match(r"vmov\w+ +%zmm\d+,%zmm\d+", t)]
