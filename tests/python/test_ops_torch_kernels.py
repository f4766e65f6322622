"""torch's kernels as candidates on CUDA, without a device: which there are on which, and what they compute."""

from functools import partial
from typing import Any

import pytest
import torch

from octavo import ops
from octavo.ops import kernels
from octavo.ops.epilogue import apply_epilogue
from octavo.ops.packing import pack_as
from octavo.ops.torch_compiled import CompiledChain, _layer
from octavo.ops.torch_kernels import cuda_rows

ALWAYS = {"fp32", "bf16", "bf16_compiled"}
TENSOR, ROW = {"e4m3_row_tensor", "e4m3_row_fast_tensor"}, {"e4m3_row", "e4m3_row_fast"}


def _rows(capability: tuple[int, int]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in cuda_rows(capability)}


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ((8, 0), ALWAYS),
        ((8, 9), ALWAYS | TENSOR),
        ((9, 0), ALWAYS | TENSOR | ROW | {"e4m3_block"}),
        ((10, 0), ALWAYS | TENSOR | ROW),
    ],
)
def test_each_device_has_what_its_tensor_cores_multiply(capability: tuple[int, int], expected: set[str]) -> None:
    linear = {name for name in _rows(capability) if name.startswith("torch.cuda.linear.")}
    assert linear == {f"torch.cuda.linear.{name}" for name in expected}


def test_scaled_mm_takes_multiples_of_16_alone() -> None:
    rows = _rows((9, 0))
    for name in TENSOR | ROW:
        accepts = rows[f"torch.cuda.linear.{name}"]["accepts"]
        assert accepts(1, 16, 32)
        assert not any(accepts(*shape) for shape in ((0, 16, 32), (8, 24, 32), (8, 16, 40), (8, 17, 33)))


def test_only_what_rounds_to_bf16_is_kept_from_fp32_outputs() -> None:
    rows = _rows((9, 0))
    products = {name: rows[f"torch.cuda.linear.{name}"].get("product", "float32") for name in ALWAYS | TENSOR | ROW}
    assert {name for name, product in products.items() if product == "float32"} == {"fp32", *TENSOR}


def test_every_row_can_be_registered() -> None:
    """Under names of its own: what ``register`` takes is what is there."""
    for name, row in _rows((9, 0)).items():
        own = f"testing.{name}"
        ops.dispatch.register(**{**row, "name": own, "library": "testing"})
        kernel = kernels.by_name(own)
        assert (kernel.device.name, kernel.numerics.name) == ("cuda", row["numerics"])
        assert kernel.tolerance == row.get("tolerance", 1e-5)
        assert kernel.only_measured == name.endswith("compiled") == (own in kernels.chains)
        kernel.quarantine("of a test")
    kernels.new_generation()


@pytest.mark.parametrize("name", ["e4m3_row", "e4m3_row_tensor"])
def test_codes_with_scales_are_multiplied_as_the_class_says(name: str, request: pytest.FixtureRequest) -> None:
    if name == "e4m3_row":
        request.getfixturevalue("row_scales")
    x, weight = torch.randn(33, 64, generator=torch.Generator().manual_seed(1)), torch.randn(48, 64) * 3
    x[5] *= 1e3
    w, row = pack_as(weight, "e4m3_row"), _rows((9, 0))[f"torch.cuda.linear.{name}"]
    y, product = row["run"](x, w), row.get("product", "float32")
    exact = ops.quantize(x).dequantize().double() @ w.dequantize().double().T
    assert y.dtype == getattr(torch, product)
    relative = 1e-4 if product == "float32" else 2**-8
    assert torch.allclose(y.double(), exact, rtol=relative, atol=1e-4 * float(exact.abs().max()))


@pytest.mark.parametrize(("m", "k"), [(3, 128), (8, 640), (1, 512)])
def test_scales_of_blocks_lie_as_cublaslt_reads_them(monkeypatch: pytest.MonkeyPatch, m: int, k: int) -> None:
    """Rows of x padded to 4, the weight's blocks of K too; the product by a stand-in that reads them so."""
    kinds = torch.nn.functional.ScalingType

    def scaled_mm(a, b, scale_a, kind_a, scale_b, kind_b):
        assert (kind_a, kind_b) == (kinds.BlockWise1x128, kinds.BlockWise128x128)
        rows, blocks = a.shape[0], k // 128
        assert rows % 4 == 0
        assert (tuple(scale_a.shape), scale_a.stride()) == ((rows, blocks), (1, rows))
        padded = -(-blocks // 4) * 4
        assert (tuple(scale_b.shape), scale_b.stride()) == ((padded, 2), (1, padded))
        left = a.double() * scale_a.double().repeat_interleave(128, 1)
        right = b.double() * scale_b[:blocks].double().repeat_interleave(128, 0).repeat_interleave(128, 1)
        return (left @ right).bfloat16()

    monkeypatch.setattr(torch.nn.functional, "scaled_mm", scaled_mm)
    x, w = torch.randn(m, k), pack_as(torch.randn(256, k), "e4m3_block")
    row = _rows((9, 0))["torch.cuda.linear.e4m3_block"]
    assert row["accepts"](m, 256, k)
    assert not any(row["accepts"](*shape) for shape in ((0, 128, 128), (8, 192, 128), (8, 128, 64)))
    assert torch.allclose(row["run"](x, w).float(), ops.linear(x, w), rtol=2**-8, atol=1e-3)


@pytest.fixture
def chain(monkeypatch: pytest.MonkeyPatch) -> CompiledChain:
    """With dynamo and without inductor, whose kernels torch tests."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager", fullgraph=True))
    return CompiledChain()


@pytest.mark.parametrize("kind", [None, "layer", "rms", "block"])
@pytest.mark.parametrize("residual", [None, "before", "after"])
def test_a_compiled_chain_is_the_layer(chain: CompiledChain, kind: str | None, residual: str | None) -> None:
    weight = None if kind in (None, "block") else torch.rand(48) + 0.5
    norm = kind and ops.Norm(kind, weight, torch.randn(48) if kind == "layer" else None)
    w, bias = pack_as(torch.randn(48, 32), "bf16"), torch.randn(48)
    for m in (5, 9, 17):
        x, r = torch.randn(m, 32), None if residual is None else torch.randn(m, 48)
        y = chain(x, w, bias, norm or None, "silu", r, residual == "before", torch.bfloat16)
        z = torch.nn.functional.linear(x.bfloat16(), w.codes).float()
        expected = apply_epilogue(z, bias, norm or None, "silu", r, residual == "before").bfloat16()
        assert torch.equal(y, expected)
    assert len(chain._compiled) == 1


def test_while_a_graph_is_recorded_nothing_is_compiled(chain: CompiledChain) -> None:
    w = pack_as(torch.randn(48, 32), "bf16")
    started = torch._dynamo.utils.counters["stats"]["unique_graphs"]

    def graphs() -> int:
        return int(torch._dynamo.utils.counters["stats"]["unique_graphs"]) - started

    x = torch.randn(5, 32)
    arguments = (None, None, "relu", None, False, torch.float32)
    fresh = torch.compile(lambda *found: _layer(*found))
    y = chain.without_compiling(fresh, x, w.codes, *arguments)
    assert graphs() == 0
    assert torch.equal(chain(x, w, *arguments), y)
    (compiled,) = chain._compiled.values()
    assert graphs() == 1
    assert torch.equal(chain.without_compiling(compiled, x, w.codes, *arguments), y)
    for m in (6, 7):  # the first was for 5 rows alone
        x = torch.randn(m, 32)
        expected = torch.nn.functional.linear(x.bfloat16(), w.codes).float().relu()
        assert torch.equal(chain.without_compiling(compiled, x, w.codes, *arguments), expected)
    assert graphs() == 1
    chain(x, w, *arguments)
    assert graphs() == 2
