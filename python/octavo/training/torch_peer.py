"""The same model in torch's own modules: what converted models are timed against."""

from __future__ import annotations

import copy

import torch

from octavo import nn
from octavo.ops import Jagged


def torch_twin(model: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """A copy of ``model`` for inference without octavo: weights, tables and activations in ``dtype``."""
    twin = copy.deepcopy(model).eval().requires_grad_(False)
    for path, module in list(twin.named_modules()):
        peer = _peer(module, dtype)
        if peer is not None:
            parent, _, name = path.rpartition(".")
            setattr(twin.get_submodule(parent), name, peer)
    return twin


def _peer(module: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module | None:
    if isinstance(module, nn.EmbeddingCollection):
        return _Rows(module, dtype)
    if isinstance(module, nn.EmbeddingBags):
        return _Bags(module, dtype)
    if isinstance(module, nn.LinearNorm):
        return _Layer(module, dtype)
    if isinstance(module, nn.Linear):
        return _Linear(module, dtype)
    return None


class _Linear(torch.nn.Module):
    def __init__(self, module: nn.Linear | nn.LinearNorm, dtype: torch.dtype) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(module.in_features, module.out_features, module.bias is not None)
        self.linear.load_state_dict({k: v for k, v in module.state_dict().items() if k in ("weight", "bias")})
        self.linear.to(dtype).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z: torch.Tensor = self.linear(x.to(self.linear.weight.dtype))
        return z


class _Layer(_Linear):
    def __init__(self, module: nn.LinearNorm, dtype: torch.dtype) -> None:
        super().__init__(module, dtype)
        n = module.out_features
        self.norm: torch.nn.Module = torch.nn.Identity()
        if module.norm == "layer":
            self.norm = torch.nn.LayerNorm(n, module.eps, bias=module.norm_bias is not None)
            biases = {} if module.norm_bias is None else {"bias": module.norm_bias}
            self.norm.load_state_dict({"weight": module.norm_weight, **biases})
        elif module.norm in ("rms", "swish_rms"):
            self.norm = torch.nn.RMSNorm(n, module.eps)
            self.norm.load_state_dict({"weight": module.norm_weight})
        elif module.norm == "block":
            self.norm = _BlockNorm(module.eps, module.block)
        self.norm.to(dtype).requires_grad_(False)
        self.activation = "silu" if module.norm == "swish_rms" else module.activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.norm(super().forward(x))
        if self.activation is None:
            return z
        if self.activation == "sigmoid":
            return torch.sigmoid(z)
        y: torch.Tensor = getattr(torch.nn.functional, self.activation)(z)
        return y


class _BlockNorm(torch.nn.Module):
    def __init__(self, eps: float, block: int) -> None:
        super().__init__()
        self.eps, self.block = eps, block

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [torch.nn.functional.rms_norm(p, (p.shape[-1],), None, self.eps) for p in x.split(self.block, -1)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


class _Bags(torch.nn.Module):
    """One ``torch.nn.EmbeddingBag`` a table. Splitting a batch by table is remembered, as are the rows of a dynamic
    table's ids: a torch user's data comes split and numbered.
    """

    def __init__(self, module: nn.EmbeddingBags, dtype: torch.dtype) -> None:
        super().__init__()
        rows = module.state_dict()
        self.tables = module.tables
        self._source = (module,)  # in a tuple: not a part of this one
        self.bags = torch.nn.ModuleList(
            torch.nn.EmbeddingBag.from_pretrained(
                rows[f"rows.{table.name}"].to(dtype), mode=table.pooling, include_last_offset=True
            )
            for table in module.tables
        )
        self._split: tuple[Jagged | None, list[tuple[torch.Tensor, torch.Tensor]]] = (None, [])

    def forward(self, bags: Jagged) -> torch.Tensor:
        if self._split[0] is not bags:
            size = (bags.offsets.shape[0] - 1) // len(self.tables)
            values = self._source[0]._rows_of(bags.values, bags.offsets, False)[1]
            parts = []
            for t in range(len(self.tables)):
                own = bags.offsets[t * size : (t + 1) * size + 1]
                parts.append((values[int(own[0]) : int(own[-1])], own - own[0]))
            self._split = (bags, parts)
        return torch.cat([bag(*part) for bag, part in zip(self.bags, self._split[1], strict=True)], 1)


class _Rows(torch.nn.Module):
    """One ``torch.nn.Embedding`` a table."""

    def __init__(self, module: nn.EmbeddingCollection, dtype: torch.dtype) -> None:
        super().__init__()
        rows = module.state_dict()
        self.names = [table.name for table in module.tables]
        self._source = (module,)
        self.tables = torch.nn.ModuleList(
            torch.nn.Embedding.from_pretrained(rows[f"rows.{name}"].to(dtype)) for name in self.names
        )

    def forward(self, bags: Jagged) -> dict[str, torch.Tensor]:
        size = (bags.offsets.shape[0] - 1) // len(self.names)
        values = self._source[0]._rows_of(bags.values, bags.offsets, False)[1]
        parts = values.tensor_split(bags.offsets[size:-1:size])
        return {name: table(part) for name, table, part in zip(self.names, self.tables, parts, strict=True)}
