"""The same rankers as a torch user writes them: torch's modules and operators, with an octavo model's parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from train_step import TorchDots

from octavo import models, nn

Served = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
_ACTIVATIONS = {"hardswish": torch.nn.Hardswish, "relu": torch.nn.ReLU, "silu": torch.nn.SiLU}


def linear_of(module: Any) -> torch.nn.Linear:
    """torch.nn.Linear with a copy of the parameters."""
    layer = torch.nn.Linear(module.weight.shape[1], module.weight.shape[0], module.bias is not None)
    layer.load_state_dict({k: v for k, v in module.state_dict().items() if k in ("weight", "bias")})
    return layer


def norm_of(width: int, eps: float, weight: torch.Tensor, bias: torch.Tensor) -> torch.nn.LayerNorm:
    """torch.nn.LayerNorm with a copy of the parameters."""
    norm = torch.nn.LayerNorm(width, eps)
    norm.load_state_dict({"weight": weight, "bias": bias})
    return norm


def layers_of(hidden: Any) -> torch.nn.Sequential:
    """Linear, LayerNorm and activation of each ``nn.LinearNorm``."""
    parts: list[torch.nn.Module] = []
    for module in hidden:
        parts.append(linear_of(module))
        if module.norm is not None:
            assert module.norm == "layer"
            parts.append(norm_of(module.out_features, module.eps, module.norm_weight, module.norm_bias))
        parts.append(_ACTIVATIONS[module.activation]())
    return torch.nn.Sequential(*parts)


class Towers(torch.nn.Module):
    """All behind the tables: ``forward(dense [B, n], pooled [B, T * D])`` -> logits [B] float32."""

    def __init__(self, model: Any, tables: int, dim: int) -> None:
        super().__init__()
        self.tables, self.dim = tables, dim
        self.top = layers_of(model.deep if isinstance(model, models.DCNv2) else model.top)
        (head,) = model.heads.values()
        self.head = linear_of(head)

    def forward(self, dense: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
        return self.head(self.top(self.features(dense, pooled))).float().squeeze(-1)

    def features(self, dense: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
        """The top MLP's input."""
        return torch.cat([pooled, dense.to(pooled.dtype)], 1)


class TorchDCNv2(Towers):
    """Cross layers beside the MLP."""

    def __init__(self, model: Any, tables: int, dim: int) -> None:
        super().__init__(model, tables, dim)
        self.cross = torch.nn.ModuleList(linear_of(layer) for layer in model.cross.layers)

    def forward(self, dense: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
        x0 = x = self.features(dense, pooled)
        for layer in self.cross:
            x = torch.addcmul(x, x0, layer(x).to(x.dtype))
        return self.head(torch.cat([x, self.top(x0)], 1)).float().squeeze(-1)


class TorchDLRM(Towers):
    """Embeddings, bottom MLP and the dot products of every pair."""

    def __init__(self, model: Any, tables: int, dim: int) -> None:
        super().__init__(model, tables, dim)
        self.bottom, self.dots = layers_of(model.bottom), TorchDots(tables + 1)

    def features(self, dense: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
        bottom = self.bottom(dense.to(pooled.dtype)).to(pooled.dtype)
        dots = self.dots(torch.cat([pooled, bottom], 1).view(dense.shape[0], self.tables + 1, self.dim))
        return torch.cat([pooled, bottom, dots.to(pooled.dtype)], 1)


class TorchWukong(Towers):
    """Stacked factorization machines."""

    def __init__(self, model: Any, tables: int, dim: int) -> None:
        super().__init__(model, tables, dim)
        self.bottom = layers_of(model.bottom)
        self.layers = torch.nn.Sequential(*map(TorchWukongLayer, model.layers))

    def features(self, dense: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
        bottom = self.bottom(dense.to(pooled.dtype)).to(pooled.dtype)
        x = torch.cat([pooled, bottom], 1).view(dense.shape[0], self.tables + 1, self.dim)
        return self.layers(x).flatten(1)


class TorchWukongLayer(torch.nn.Module):
    """[B, n, D] -> [B, fmb + lcb tokens, D]."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        block = layer.fmb
        self.rows, self.maps = layer.rows, linear_of(layer.maps)
        self.inner, self.outer = (
            norm_of(len(norm.weight), norm.eps, norm.weight, norm.bias) for norm in (block.norm, layer.norm)
        )
        self.hidden, self.out = layers_of(block.hidden), linear_of(block.out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        projected, compressed, residual = self.maps(x.mT.contiguous()).to(x.dtype).split(self.rows, 2)
        products = torch.bmm(x, projected).flatten(1)
        made = self.out(self.hidden(self.inner(products))).unflatten(1, (-1, x.shape[2]))
        kept = residual.mT if self.rows[2] else x
        return self.outer(torch.cat([made, compressed.mT.to(made.dtype)], 1) + kept)


def towers_of(kind: str, model: models.Ranker, tables: int, dim: int) -> Towers:
    """``model``'s layers in torch, parameters copied."""
    kinds = {"wukong": TorchWukong, "dcnv2": TorchDCNv2, "dlrm": TorchDLRM, "mlp": Towers}
    return kinds[kind](model, tables, dim)


class FloatRows(torch.nn.Module):
    """All tables one below the other in one ``torch.nn.EmbeddingBag``: one call, [B, T * D]."""

    def __init__(self, rows: torch.Tensor, tables: int) -> None:
        super().__init__()
        self.tables = tables
        self.bag = torch.nn.EmbeddingBag.from_pretrained(rows, mode="sum", include_last_offset=True)

    def forward(self, values: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        return self.bag(values, offsets).view(-1, self.tables * self.bag.embedding_dim)


class ByteRows(torch.nn.Module):
    """The same in torch's quantized bag: bytes with a scale and a bias in the row."""

    packed: torch.Tensor

    def __init__(self, rows: torch.Tensor, tables: int) -> None:
        super().__init__()
        self.width = tables * rows.shape[1]
        self.register_buffer("packed", torch.ops.quantized.embedding_bag_byte_prepack(rows))

    def forward(self, values: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        lookup = torch.ops.quantized.embedding_bag_byte_rowwise_offsets
        return lookup(self.packed, values, offsets, False, 0, False, None, None, True).view(-1, self.width)


class Whole(torch.nn.Module):
    """Tables and towers: dense [B, n], ids and offsets of all tables stacked -> logits [B]."""

    def __init__(self, rows: torch.nn.Module, towers: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.rows, self.towers = rows, towers

    def forward(self, dense: torch.Tensor, values: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        return self.towers(dense, self.rows(values, offsets))


def frozen_script(module: torch.nn.Module, example: tuple[torch.Tensor, ...]) -> Served:
    """Traced, frozen and fused by ``torch.jit``."""
    traced = torch.jit.trace(copy.deepcopy(module).eval(), example, check_trace=False)
    served: Served = torch.jit.freeze(traced)
    return served


def stacked_rows(model: Any) -> torch.Tensor:
    """The rows of every table, one below the other, in FP32: a copy."""
    bags: nn.EmbeddingBags = model.embeddings.bags
    state = bags.state_dict()
    return torch.cat([state[f"rows.{table.name}"] for table in bags.tables])
