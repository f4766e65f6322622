"""The kernels on AMX tiles give what those on AVX-512 do: random shapes, all tails, strides, codes, NaN, infinities."""

import random

import pytest
import torch

from octavo import _core, ops
from octavo.ops import kernels
from octavo.ops.linear_backward import run_grad_input, run_grad_weight
from octavo.ops.linear_call import run
from octavo.ops.packing import pack_as

pytestmark = pytest.mark.skipif(not _core.cpu_features()["amx"], reason="this CPU has no AMX")
ROUNDS = 60
CODES = {"e4m3_row": "e4m3", "int8_dynamic": "int8"}


def _normal(generator: torch.Generator, rows: int, columns: int, dtype: torch.dtype, gap: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns + gap, generator=generator).to(dtype)[:, :columns]


def _agree(tiles: torch.Tensor, registers: torch.Tensor, exact: bool) -> None:
    finite = torch.isfinite(registers)
    assert torch.equal(torch.isfinite(tiles), finite)
    largest = registers[finite].abs().max().item() if finite.any() else 0.0
    difference = (tiles - registers)[finite].abs().max().item() if finite.any() else 0.0
    assert difference <= (0.0 if exact else 5e-6 * largest)  # sums of up to 2,500 products in another order


@pytest.mark.parametrize("numerics", ["bf16", "e4m3_row", "e4m3_weight_only", "int8_dynamic"])
def test_forward(numerics) -> None:
    draw, generator = random.Random(1), torch.Generator().manual_seed(1)
    both = [kernels.by_name(f"cpu.{isa}.linear.{numerics}") for isa in ("amx", "avx512")]
    for i in range(ROUNDS):
        m, n, k = draw.randint(1, 300), draw.randint(1, 200), draw.randint(1, 2500 if i % 10 == 0 else 260)
        x = _normal(generator, m, k, draw.choice((torch.float32, torch.bfloat16)), draw.choice((0, 3, 8)))
        if i % 5 == 0:
            x[draw.randrange(m), draw.randrange(k)] = draw.choice((float("nan"), float("inf"), 1e30))
        weight = pack_as(torch.randn(n, k, generator=generator) / k**0.5, numerics)
        bias = torch.randn(n, generator=generator) if i % 2 else None
        given = ops.quantize(x.float(), CODES[numerics]) if numerics in CODES and i % 4 == 1 else x
        results = [run(given, weight, bias, None, None, None, False, torch.float32, kernel=kernel) for kernel in both]
        _agree(*results, exact=numerics == "int8_dynamic")


@pytest.mark.parametrize("numerics", ["bf16", "e4m3_row", "int8_dynamic"])
def test_grad_input(numerics) -> None:
    draw, generator = random.Random(2), torch.Generator().manual_seed(2)
    both = [kernels.by_name(f"cpu.{isa}.linear_grad_input.{numerics}") for isa in ("amx", "avx512")]
    for _ in range(ROUNDS):
        m, n, k = draw.randint(1, 300), draw.randint(1, 1100), draw.randint(1, 260)
        grad = _normal(generator, m, n, draw.choice((torch.float32, torch.bfloat16)), 3)
        weight = pack_as(torch.randn(n, k, generator=generator) / k**0.5, numerics)
        results = [run_grad_input(kernel, grad, weight, torch.float32) for kernel in both]
        _agree(*results, exact=numerics == "int8_dynamic")


@pytest.mark.parametrize("numerics", ["bf16", "e4m3_row"])
def test_grad_weight(numerics) -> None:
    draw, generator = random.Random(3), torch.Generator().manual_seed(3)
    both = [kernels.by_name(f"cpu.{isa}.linear_grad_weight.{numerics}") for isa in ("amx", "avx512")]
    for i in range(ROUNDS):
        m, n, k = draw.randint(1, 1400 if i % 4 == 0 else 70), draw.randint(1, 200), draw.randint(1, 260)
        grad = _normal(generator, m, n, draw.choice((torch.float32, torch.bfloat16)), 3)
        x = _normal(generator, m, k, draw.choice((torch.float32, torch.bfloat16)), 5)
        if i % 5 == 0:
            x[draw.randrange(m), draw.randrange(k)] = draw.choice((float("nan"), float("inf")))
        _agree(*(run_grad_weight(kernel, grad, x) for kernel in both), exact=False)
