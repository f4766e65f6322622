"""torch's own linear kernels as rows of the table: candidates that octavo's must beat."""

from __future__ import annotations

import functools
from functools import partial
from typing import Any

import torch
from torch.nn import functional

from octavo import _core
from octavo.ops.dispatch.registration import register
from octavo.ops.packing import PackedWeight
from octavo.ops.quantization import quantize
from octavo.ops.torch_compiled import CompiledChain


def _bf16(x: torch.Tensor, w: PackedWeight) -> torch.Tensor:
    return functional.linear(x.to(torch.bfloat16), w.codes)


def _int8_dynamic(x: torch.Tensor, w: PackedWeight) -> torch.Tensor:
    assert w.scale is not None
    q = quantize(x, "int8", "row")
    return torch._int_mm(q.data, w.codes.T).float() * q.scale[:, None] * w.scale


def _e4m3_row(x: torch.Tensor, w: PackedWeight, fast: bool = False) -> torch.Tensor:
    assert w.scale is not None
    q = quantize(x, "e4m3", "row")
    return torch._scaled_mm(q.data, w.codes.T, scale_a=q.scale[:, None], scale_b=w.scale[None, :],
                            out_dtype=torch.bfloat16, use_fast_accum=fast)  # fmt: skip


def _e4m3_codes(x: torch.Tensor, w: PackedWeight, fast: bool = False) -> torch.Tensor:
    assert w.scale is not None
    q, one = quantize(x, "e4m3", "row"), _one(x.device)
    z = torch._scaled_mm(q.data, w.codes.T, scale_a=one, scale_b=one, out_dtype=torch.float32, use_fast_accum=fast)
    return z * q.scale[:, None] * w.scale


@functools.cache
def _one(device: torch.device) -> torch.Tensor:
    return torch.ones((), device=device)


def _e4m3_block(x: torch.Tensor, w: PackedWeight) -> torch.Tensor:
    """cuBLASLt reads x's scales with M contiguous and a multiple of 4, the weight's with K's blocks so padded."""
    assert w.scale is not None
    m = x.shape[0]
    q = quantize(functional.pad(x, (0, 0, 0, -m % 4)) if m % 4 else x, "e4m3", "block_1x128")
    scale = functional.pad(w.scale, (0, -w.scale.shape[1] % 4))
    kinds = functional.ScalingType
    turned = q.scale.T.clone(memory_format=torch.contiguous_format).T  # strides [1, M] also of a single block
    y = functional.scaled_mm(q.data, w.codes.T, turned, kinds.BlockWise1x128, scale.T, kinds.BlockWise128x128)
    return y[:m]


def _fp32(x: torch.Tensor, w: PackedWeight) -> torch.Tensor:
    return functional.linear(x.float(), w.dequantize())


def _grad_input(grad: torch.Tensor, w: PackedWeight) -> torch.Tensor:
    weight = w.codes if w.scale is None else w.dequantize().to(torch.bfloat16)
    return grad.to(torch.bfloat16) @ weight


def _grad_weight(grad: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return grad.to(torch.bfloat16).T @ x.to(torch.bfloat16)


def _multiples_of_16(m: int, n: int, k: int) -> bool:
    return n % 16 == 0 and k % 16 == 0 and m > 0


def _multiples_of_128(m: int, n: int, k: int) -> bool:
    return n % 128 == 0 and k % 128 == 0 and m > 0 and n > 0 and k > 0


def register_torch_kernels() -> None:
    """Add torch's rows. FP32 and BF16 are trusted; the others are qualified as octavo's own are. Without VNNI
    ``_int_mm`` is a plain loop; a CPU's ``_scaled_mm`` takes no scale a row in torch 2.11 and is no faster with them
    in 2.13."""
    bf16_rate = 200 if _core.cpu_features()["amx"] else 90
    register("torch.cpu.linear.fp32", "fp32", _fp32, library="torch", trusted=True,
             overhead_us=3.5, gmacs_per_s=45, gbytes_per_s=8)  # fmt: skip
    register("torch.cpu.linear.bf16", "bf16", _bf16, library="torch", trusted=True, product="bfloat16",
             overhead_us=9, gmacs_per_s=bf16_rate, gbytes_per_s=8)  # fmt: skip
    register("torch.cpu.linear.int8_dynamic", "int8_dynamic", _int8_dynamic, library="torch", overhead_us=20,
             gmacs_per_s=120 if _core.cpu_features()["avx512_vnni"] else 0.7, gbytes_per_s=6)  # fmt: skip
    register("torch.cpu.linear.e4m3_row", "e4m3_row", _e4m3_codes, library="torch",
             overhead_us=60, gmacs_per_s=15, gbytes_per_s=3)  # fmt: skip
    register("torch.cpu.linear_grad_input.bf16", "bf16", _grad_input, op="linear_grad_input", library="torch",
             trusted=True, product="bfloat16", overhead_us=6, gmacs_per_s=bf16_rate, gbytes_per_s=8)  # fmt: skip
    register("torch.cpu.linear_grad_weight.bf16", "bf16", _grad_weight, op="linear_grad_weight", library="torch",
             trusted=True, product="bfloat16", overhead_us=6, gmacs_per_s=bf16_rate, gbytes_per_s=8)  # fmt: skip
    capability = _capability()
    if capability is not None:
        for row in cuda_rows(capability):
            register(**row)


def _capability() -> tuple[int, int] | None:
    """Of the first device. An octavo with CUDA asks for itself, so that importing it does not initialise torch's."""
    if _core.built_with_cuda:
        info = _core.cuda_info()
        if info is None:
            return None
        major, minor = map(int, info["capability"].split("."))
        return major, minor
    return torch.cuda.get_device_capability() if torch.cuda.is_available() else None


def cuda_rows(capability: tuple[int, int]) -> list[dict[str, Any]]:
    """What ``register`` takes of torch's kernels on a device of this capability.

    ``_scaled_mm`` wants N and K in multiples of 16 and FP8 tensor cores: sm_89 for one scale a tensor, sm_90 for a
    scale a row. With one scale it gives FP32: of codes alone, whose own scales follow; with a scale a row, BF16. Scales
    of blocks are cuBLASLt's on Hopper alone.
    """
    rate: dict[str, Any] = {"library": "torch", "device": "cuda", "overhead_us": 8, "gbytes_per_s": 2000}
    bf16 = {**rate, "numerics": "bf16", "product": "bfloat16", "gmacs_per_s": 300_000, "trusted": True}
    rows: list[dict[str, Any]] = [
        {**rate, "name": "torch.cuda.linear.fp32", "numerics": "fp32", "run": _fp32, "gmacs_per_s": 20_000,
         "trusted": True},
        {**bf16, "name": "torch.cuda.linear.bf16", "run": _bf16},
        {**bf16, "name": "torch.cuda.linear.bf16_compiled", "run": _bf16, "chain": CompiledChain(),
         "only_measured": True},
        {**bf16, "name": "torch.cuda.linear_grad_input.bf16", "run": _grad_input, "op": "linear_grad_input"},
        {**bf16, "name": "torch.cuda.linear_grad_weight.bf16", "run": _grad_weight, "op": "linear_grad_weight"},
    ]  # fmt: skip
    fp8 = {**rate, "accepts": _multiples_of_16, "overhead_us": 20, "gbytes_per_s": 1500, "gmacs_per_s": 500_000}
    for numerics, fast, tolerance in (("e4m3_row", False, 2**-10), ("e4m3_row_fast", True, 2**-7)):
        name, own = f"torch.cuda.linear.{numerics}", {**fp8, "numerics": numerics, "tolerance": tolerance}
        if capability >= (8, 9):
            rows.append({**own, "name": f"{name}_tensor", "run": partial(_e4m3_codes, fast=fast)})
        if capability >= (9, 0):
            rows.append({**own, "name": name, "run": partial(_e4m3_row, fast=fast), "product": "bfloat16"})
    if capability == (9, 0):
        own = {**fp8, "numerics": "e4m3_block", "tolerance": 2**-10, "accepts": _multiples_of_128, "overhead_us": 30}
        rows.append({**own, "name": "torch.cuda.linear.e4m3_block", "run": _e4m3_block, "product": "bfloat16"})
    return rows
