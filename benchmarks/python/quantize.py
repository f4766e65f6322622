"""Row-wise quantization: FP32 and BF16 to E4M3 and INT8, against torch's own expression and FBGEMM.

octavo allocates its outputs, as everyone here; but for the large arrays that are compared with the non-temporal stream
of the same traffic (cpp/roofs.cpp: x read once, as many bytes as the codes written past the caches): both write into
memory that is there already, since fresh pages cost more than either. FBGEMM's CPU row quantizers write affine uint8
with scale and bias in the row (8 more bytes a row), the nearest it has to a symmetric int8 row; it has none to E4M3
on a CPU.
"""

from __future__ import annotations

import harness
import peers
import roofs
import torch
from harness import where

from octavo import ops

SHAPES = {
    "smoke": [(64, 512)],
    "quick": [(64, 512), (1024, 1024), (16384, 1024)],
    "full": [(1, 512), (64, 64), (64, 512), (1024, 256), (1024, 1024), (16384, 1024), (65536, 1024)],
}
LARGEST = {"e4m3": torch.tensor(448.0), "int8": torch.tensor(127.0)}  # number / tensor would be two roundings
LARGE = {"smoke": (64, 512), "quick": (131072, 1024), "full": (131072, 1024)}  # BF16 256 MiB; FP32 half the rows
STREAM, LARGE_GROUP = "non-temporal stream", "e4m3, past the caches"
SHARE = 0.8  # of the stream's speed
TORCH, COMPILED, FBGEMM = "torch eager", "torch compiled", "fbgemm FloatToFused8BitRowwise"


def torch_e4m3(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """torch's expression of ops.quantize(x, "e4m3", "row")."""
    x = x.float()
    amax = x.abs().amax(1, keepdim=True).clamp_min(1e-12)
    return (x * (LARGEST["e4m3"] / amax)).to(torch.float8_e4m3fn), amax / LARGEST["e4m3"]


def torch_int8(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """torch's expression of ops.quantize(x, "int8", "row")."""
    x = x.float()
    amax = x.abs().amax(1, keepdim=True).clamp_min(1e-12)
    return (x * (LARGEST["int8"] / amax)).round().to(torch.int8), amax / LARGEST["int8"]


EXPRESSIONS = {"e4m3": torch_e4m3, "int8": torch_int8}


def fbgemm_quantizer(x: torch.Tensor) -> harness.Entry:
    """FBGEMM's row quantizer. Raises ImportError where it is not installed."""
    peers.fbgemm()
    op = torch.ops.fbgemm
    quantizer = (
        op.FloatToFused8BitRowwiseQuantized if x.dtype == torch.float32 else op.FloatOrHalfToFused8BitRowwiseQuantized
    )
    back = op.Fused8BitRowwiseQuantizedToFloat(quantizer(x))
    peers.agrees(back, x.float(), "int8_dynamic")
    return harness.Entry(FBGEMM, lambda i: quantizer(x), io=str(x.dtype)[6:])


def contest(run: harness.Run, shape: tuple[int, int], dtype: torch.dtype, format: str) -> None:
    """One array, one format."""
    m, k = shape
    x = torch.randn(m, k, generator=torch.Generator().manual_seed(m + k)).to(dtype)
    io = str(dtype).removeprefix("torch.")
    expression = EXPRESSIONS[format]
    moved = m * k * (x.element_size() + 1) + 4 * m
    q = ops.quantize(x, format, "row")
    codes, scale = expression(x)
    peers.agrees(q.dequantize(), codes.float() * scale, "exact")
    ours = [
        harness.Entry(f"octavo {format}", lambda i: ops.quantize(x, format, "row"), io=io, group=format,
                      facts={"route": "ops.quantize"}, bytes=moved, roof=run.roofs.copy(moved))
    ]  # fmt: skip
    rivals = [harness.Entry(TORCH, lambda i: expression(x), io=io, group="torch")]
    absent: dict[str, str] = {}

    def compiled() -> harness.Entry:
        function = torch.compile(expression, dynamic=False)
        peers.agrees(function(x)[0].float(), codes.float(), "codes")
        return harness.Entry(COMPILED, lambda i: function(x), io=io, group="torch")

    builders = {} if run.is_smoke else {COMPILED: compiled}
    if run.is_smoke:
        absent[COMPILED] = "not in the smoke run: compiling takes seconds"
    if format == "int8":
        builders[FBGEMM] = lambda: fbgemm_quantizer(x)
    for name, build in builders.items():
        peers.admit(rivals, absent, name, build)
    run.contest("quantize", {"m": m, "k": k, "format": format, "scaling": "row"}, ours, rivals, absent)


def against_stream(run: harness.Run, dtype: torch.dtype) -> None:
    """A large array, E4M3, row-wise, into outputs that are there; the peer is the stream."""
    m, k = LARGE[run.effort.name]
    m = m * 2 // dtype.itemsize
    x = torch.randn(m, k, generator=torch.Generator().manual_seed(1)).to(dtype)
    q = ops.quantize(x, "e4m3", "row")
    codes, _ = torch_e4m3(x[-64:])
    peers.agrees(q.data[-64:].float(), codes.float(), "exact")
    target = torch.zeros(m, k, dtype=torch.uint8)
    io = str(dtype).removeprefix("torch.")
    moved = x.nbytes + m * k + 4 * m
    ours = [
        harness.Entry("octavo e4m3 out=", lambda i: ops.quantize(x, "e4m3", "row", out=q), io=io, group=LARGE_GROUP,
                      facts={"route": "ops.quantize, out="}, bytes=moved)
    ]  # fmt: skip
    rivals: list[harness.Entry] = []
    absent: dict[str, str] = {}

    def stream() -> harness.Entry:
        roofs.stream_once(x, target)
        return harness.Entry(STREAM, lambda i: roofs.stream_once(x, target), io=io, group="roof", bytes=moved)

    peers.admit(rivals, absent, STREAM, stream)
    run.contest("quantize", {"m": m, "k": k, "format": "e4m3", "scaling": "row"}, ours, rivals, absent)


def body(run: harness.Run) -> None:
    """Every shape, input type and format."""
    for shape in SHAPES[run.effort.name]:
        for dtype in (torch.float32, torch.bfloat16):
            for format in ("e4m3", "int8"):
                contest(run, shape, dtype, format)
    for dtype, word in ((torch.float32, "f32"), (torch.bfloat16, "bf16")):
        against_stream(run, dtype)
        mine = where(io=str(dtype).removeprefix("torch."), group=LARGE_GROUP)
        run.finding(f"quantize_{word}_e4m3_share_of_nt_stream", mine, where(name=STREAM), (STREAM,), SHARE)
    for io in ("float32", "bfloat16"):
        for format in ("e4m3", "int8"):
            run.finding(f"quantize_{io}_to_{format}_vs_best_torch", where(io=io, group=format),
                        where(group="torch"), (TORCH, COMPILED))  # fmt: skip
    run.finding("quantize_float32_to_int8_vs_fbgemm", where(io="float32", group="int8"), where(name=FBGEMM), (FBGEMM,))


if __name__ == "__main__":
    harness.main("quantize", body)
