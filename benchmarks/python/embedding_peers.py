"""Bags, tables and peers of the embedding benchmarks: torch and FBGEMM hold the same rows as octavo."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import harness
import peers
import torch
from torch.nn import functional

from octavo import nn

COLD_BYTES = 256 << 20  # index sets touch at least this much before one comes again: several times any L3
ROW_BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "e4m3": 1.0, "int8": 1.0, "int4": 0.5}
WIDTH = {"fp32": "32-bit rows", "bf16": "16-bit rows", "fp16": "16-bit rows", "e4m3": "8-bit rows",
         "int8": "8-bit rows", "int4": "4-bit rows"}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """``tables`` x ``rows`` x ``dim``, ``length`` indices a bag. ``skew`` p: row = rows * u^p, u uniform."""

    tables: int
    rows: int
    dim: int
    length: int
    batch: int = 1024
    skew: float = 1.0

    @property
    def lookups(self) -> int:
        """Rows read by one call."""
        return self.tables * self.batch * self.length

    def shape(self) -> dict[str, float]:
        """As the JSON row has it."""
        words: dict[str, float] = {
            "tables": self.tables,
            "rows": self.rows,
            "dim": self.dim,
            "length": self.length,
            "batch": self.batch,
        }
        return words if self.skew == 1 else {**words, "skew": self.skew}


class Bags:
    """Index sets of one case, int64, feature-major; a new set for every call."""

    def __init__(self, case: Case, smoke: bool) -> None:
        touched = case.lookups * max(64, case.dim)
        count = 2 if smoke else max(4, min(256, math.ceil(COLD_BYTES / touched)))
        generator = torch.Generator().manual_seed(case.lookups + case.dim)
        self.case = case
        self.values = [self._draw(generator) for _ in range(count)]
        self.offsets = torch.arange(case.tables * case.batch + 1) * case.length
        self.table_offsets = torch.arange(case.batch + 1) * case.length
        self._per_table = [list(v.view(case.tables, -1).unbind()) for v in self.values]

    def _draw(self, generator: torch.Generator) -> torch.Tensor:
        if self.case.skew == 1:
            return torch.randint(self.case.rows, (self.case.lookups,), generator=generator)
        uniform = torch.rand(self.case.lookups, generator=generator, dtype=torch.float64)
        return (uniform**self.case.skew * self.case.rows).long()

    def all(self, i: int) -> torch.Tensor:
        """Values of every table for call i."""
        return self.values[i % len(self.values)]

    def per_table(self, i: int) -> list[torch.Tensor]:
        """The same, table by table."""
        return self._per_table[i % len(self.values)]


def octavo_bags(case: Case, optimizer: nn.RowWiseAdagrad | None = None) -> nn.EmbeddingBags:
    """FP32 tables of a case; without an optimizer, for inference."""
    tables = [nn.Table(f"t{t}", case.rows, case.dim) for t in range(case.tables)]
    module = nn.EmbeddingBags(tables, optimizer=optimizer, bounds="error")
    module.reset_parameters(0.5, torch.Generator().manual_seed(1))
    return module if optimizer is not None else module.eval()


def rows_of(module: nn.EmbeddingBags) -> list[torch.Tensor]:
    """Each table's rows [R, D] of an FP32 module."""
    state = module.state_dict()
    return [state[f"rows.{table.name}"] for table in module.tables]


def torch_peers(rows: list[torch.Tensor], bags: Bags) -> dict[str, Callable[[], harness.Entry]]:
    """One embedding_bag call per table, as torch users write it; their outputs are not concatenated (which saves torch
    a pass that octavo's and FBGEMM's calls have done). Byte and 4-bit rows hold scale and bias in the row."""
    offsets = bags.table_offsets

    def floats(name: str, dtype: torch.dtype, width: str) -> harness.Entry:
        tables = [r.to(dtype, copy=True) for r in rows]

        def call(i: int) -> list[torch.Tensor]:
            return [
                functional.embedding_bag(v, t, offsets, mode="sum", include_last_offset=True)
                for v, t in zip(bags.per_table(i), tables, strict=True)
            ]

        return harness.Entry(name, call, io=WIDTH[width], group="torch", facts={"numerics": width})

    def quantized(name: str, bits: str, width: str) -> harness.Entry:
        tables = [getattr(torch.ops.quantized, f"embedding_bag_{bits}_prepack")(r) for r in rows]
        lookup = getattr(torch.ops.quantized, f"embedding_bag_{bits}_rowwise_offsets")

        def call(i: int) -> list[torch.Tensor]:
            return [
                lookup(t, v, offsets, False, 0, False, None, None, True)
                for v, t in zip(bags.per_table(i), tables, strict=True)
            ]

        return harness.Entry(name, call, io=WIDTH[width], group="torch", facts={"numerics": width})

    return {
        "torch float32": lambda: floats("torch float32", torch.float32, "fp32"),
        "torch bfloat16": lambda: floats("torch bfloat16", torch.bfloat16, "bf16"),
        "torch byte": lambda: quantized("torch byte", "byte", "int8"),
        "torch 4bit": lambda: quantized("torch 4bit", "4bit", "int4"),
    }


def fbgemm_peers(rows: list[torch.Tensor], bags: Bags) -> dict[str, Callable[[], harness.Entry]]:
    """One table-batched call for all tables; no bounds check (its fastest)."""
    case = bags.case

    def inference(width: str) -> harness.Entry:
        peers.fbgemm()
        from fbgemm_gpu.split_embedding_configs import SparseType
        from fbgemm_gpu.split_embedding_utils import quantize_embs
        from fbgemm_gpu.split_table_batched_embeddings_ops_common import BoundsCheckMode, EmbeddingLocation
        from fbgemm_gpu.split_table_batched_embeddings_ops_inference import IntNBitTableBatchedEmbeddingBagsCodegen

        kind = SparseType[width.upper()]
        specs = [(f"t{t}", case.rows, case.dim, kind, EmbeddingLocation.HOST) for t in range(case.tables)]
        module = IntNBitTableBatchedEmbeddingBagsCodegen(
            specs, output_dtype=SparseType.FP32, device="cpu", bounds_check_mode=BoundsCheckMode.NONE
        )
        module.initialize_weights()
        for (weight, scale_shift), table in zip(module.split_embedding_weights(), rows, strict=True):
            codes, scales = quantize_embs(table, kind)
            weight.copy_(codes)
            if scale_shift is not None:
                scale_shift.copy_(scales)
        return harness.Entry(f"fbgemm {width}", lambda i: module(bags.all(i), bags.offsets), io=WIDTH[width],
                             group="fbgemm", facts={"numerics": width})  # fmt: skip

    def training() -> harness.Entry:
        module = fbgemm_training(rows)

        def call(i: int) -> torch.Tensor:
            with torch.no_grad():
                return module(bags.all(i), bags.offsets)

        return harness.Entry("fbgemm split float32", call, io=WIDTH["fp32"], group="fbgemm",
                             facts={"numerics": "fp32"})  # fmt: skip

    builders: dict[str, Callable[[], harness.Entry]] = {
        f"fbgemm {width}": lambda width=width: inference(width) for width in ("fp32", "fp16", "int8", "int4")
    }
    return {**builders, "fbgemm split float32": training}


def fbgemm_training(rows: list[torch.Tensor], lr: float = 0.02, eps: float = 1e-8) -> torch.nn.Module:
    """FBGEMM's FP32 tables with exact row-wise Adagrad, in the same state as ``rows``, [R, D] each."""
    peers.fbgemm()
    from fbgemm_gpu.split_embedding_configs import EmbOptimType, SparseType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import BoundsCheckMode, EmbeddingLocation
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        SplitTableBatchedEmbeddingBagsCodegen,
    )

    module = SplitTableBatchedEmbeddingBagsCodegen(
        [(len(table), table.shape[1], EmbeddingLocation.HOST, ComputeDevice.CPU) for table in rows],
        optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        learning_rate=lr,
        eps=eps,
        weights_precision=SparseType.FP32,
        output_dtype=SparseType.FP32,
        stochastic_rounding=False,
        bounds_check_mode=BoundsCheckMode.NONE,
        device="cpu",
    )
    for weight, table in zip(module.split_embedding_weights(), rows, strict=True):
        weight.copy_(table)
    return module


def reference(rows: list[torch.Tensor], bags: Bags) -> torch.Tensor:
    """The pooled rows of call 0 in FP32: [B, sum of dims]."""
    case = bags.case
    return torch.cat([r[v].view(case.batch, case.length, case.dim).sum(1)
                      for v, r in zip(bags.per_table(0), rows, strict=True)], 1)  # fmt: skip


def check(entry: harness.Entry, expected: torch.Tensor) -> harness.Entry:
    """The entry, when its call 0 gives the reference within its width."""
    found = entry.call(0)
    out = torch.cat([t.float() for t in found], 1) if isinstance(found, list) else found
    width = entry.facts["numerics"]
    numerics = {"fp32": "fp32", "fp16": "bf16", "bf16": "bf16", "int8": "int8_dynamic"}.get(width, width)
    peers.agrees(out, expected, numerics)
    return entry
