"""What the embedding-bag kernels are held to before they may be chosen."""

from __future__ import annotations

import torch

from octavo import _core
from octavo.ops.checks import BF16_TOLERANCE, FP32_TOLERANCE, relative_to_largest
from octavo.ops.embedding import OPTIMIZERS, TableSet, bag_backward, bag_forward
from octavo.ops.embedding_rows import row_lookup
from octavo.ops.find_rows import find_rows
from octavo.ops.reference import coefficients, pooled_reference
from octavo.ops.table_formats import decode_rows, encode_rows, row_bytes, rows_in

# Dimensions of the tables of one call: the smallest, tails, a whole cache line of each row format, a wide one.
DIMS = (1, 3, 64, 130)
_ROWS, _BATCH = 37, 61


def check_bag_forward(kernel: _core.Kernel) -> str:
    """Every row format and output type, sum and mean, with and without weights, empty and skewed bags, in FP64."""
    g = torch.Generator().manual_seed(11)
    values, offsets, weights = _bags(g)
    pooling = ["sum", "mean", "mean", "sum"]
    device = kernel.device.name
    for format, place in _FORMATS:
        tables, decoded = _tables(format, place, pooling, g, device=device)
        for w in (None, weights):
            ref = pooled_reference(decoded, pooling, values, offsets, w)
            indices = values.to(device), offsets.to(device), None if w is None else w.to(device)
            for dtype, bound in ((torch.float32, FP32_TOLERANCE), (torch.bfloat16, BF16_TOLERANCE)):
                error = relative_to_largest(bag_forward(tables, *indices, out_dtype=dtype, kernel=kernel), ref)
                if not error <= bound:
                    return (
                        f"bag_forward rows {format} {place} -> {dtype}, dims {DIMS}, "
                        f"{'weighted, ' if w is not None else ''}batch {_BATCH}: expected error <= {bound:.1e} "
                        f"of the largest element, found {error:.1e}"
                    )
    return ""


def check_row_lookup(kernel: _core.Kernel) -> str:
    """Every row format and output type, rows one by one, in FP64."""
    g = torch.Generator().manual_seed(13)
    values, offsets, _ = _bags(g)
    device = kernel.device.name
    for format, place in _FORMATS:
        tables, decoded = _tables(format, place, "sum", g, device=device)
        spans = offsets[:: (len(offsets) - 1) // len(DIMS)].tolist()
        for dtype, bound in ((torch.float32, FP32_TOLERANCE), (torch.bfloat16, BF16_TOLERANCE)):
            found = row_lookup(tables, values.to(device), offsets.to(device), out_dtype=dtype, kernel=kernel)
            for t, rows in enumerate(found):
                error = relative_to_largest(rows, decoded[t][values[spans[t] : spans[t + 1]]])
                if not error <= bound:
                    return (
                        f"row_lookup rows {format} {place} -> {dtype}, dim {DIMS[t]}, {len(rows)} lookups: expected "
                        f"error <= {bound:.1e} of the largest element, found {error:.1e}"
                    )
    return ""


def check_find_rows(kernel: _core.Kernel) -> str:
    """Every row equals the map's own, which lost ids and took others; a fixed table's values stay."""
    g = torch.Generator().manual_seed(14)
    ids = torch.randint(-(2**62), 2**62, (3000,), generator=g)
    map = _core.IdMap(1000)
    rows = torch.empty_like(ids)
    map.lookup_or_insert(ids.data_ptr(), 700, 1, rows.data_ptr())
    map.erase(ids.data_ptr(), 150)
    map.lookup_or_insert(ids[1500:].data_ptr(), 450, 2, rows.data_ptr())  # full, and as many ids as rows
    slots = torch.empty(map.num_slots, 2, dtype=torch.int64)
    map.copy_slots(slots.data_ptr())
    map.lookup(ids.data_ptr(), len(ids), rows.data_ptr())
    values, offsets = torch.cat([ids, ids[:50], ids]), torch.tensor([0, 3000, 3000, 3050, 3050, 3050, 6050])
    expected = torch.cat([rows + 1, ids[:50], rows + 1])
    there = kernel.device.name
    found = find_rows([slots.to(there), None, slots.to(there)], values.to(there), offsets.to(there), kernel).cpu()
    wrong = int((found != expected).sum())
    return f"find_rows: {wrong} of {len(values)} rows differ from those of the map" if wrong else ""


def check_bag_backward(kernel: _core.Kernel) -> str:
    """One step of each optimizer on rows that repeat within and across bags, against FP64; then on narrow rows."""
    g = torch.Generator().manual_seed(12)
    bags = _bags(g)
    grad = torch.randn(_BATCH, sum(DIMS), generator=g)
    for optimizer in ("sgd", "row_wise_adagrad", "adagrad", "adam"):
        for weighted in (False, True):
            if found := _check_step(kernel, "fp32", "separate", optimizer, "nearest", bags, weighted, grad):
                return found
    for format, place in _FORMATS:
        if format not in ROUNDED or place == "power_of_two":
            continue
        for rounding in ("stochastic",) if place == "in_row" else ("nearest", "stochastic"):
            if found := _check_step(kernel, format, place, "row_wise_adagrad", rounding, bags, False, grad):
                return found
    return ""


# Largest error of rounding to nearest over the largest magnitude of a row; stochastic rounding has up to twice that.
ROUNDED = {"fp16": 2**-11, "bf16": 2**-8, "e4m3": 16 / 448, "int8": 1 / 255, "int4": 1 / 15}


def _check_step(
    kernel: _core.Kernel, format: str, place: str, optimizer: str, rounding: str,
    bags: tuple[torch.Tensor, torch.Tensor, torch.Tensor], weighted: bool, grad: torch.Tensor,
) -> str:  # fmt: skip
    g = torch.Generator().manual_seed(13)
    pooling = ["sum", "mean", "mean", "sum"]
    values, offsets, weights = bags
    w = weights if weighted else None
    shape = OPTIMIZERS[optimizer].state
    states = None if shape is None else [torch.rand(shape(_ROWS, dim), generator=g) for dim in DIMS]
    device = kernel.device.name
    new_states = None if states is None else [s.to(device, copy=True) for s in states]
    tables, decoded = _tables(format, place, pooling, g, new_states, device)
    expected_rows, expected_states = stepped(
        decoded, states, pooling, values, offsets, w, grad, optimizer, lr=0.1, eps=1e-6, step=3
    )
    indices = values.to(device), offsets.to(device), None if w is None else w.to(device)
    bag_backward(
        tables, *indices, grad.to(device), optimizer, 0.1, 1e-6, kernel=kernel, step=3, rounding=rounding, seed=5
    )
    coded = zip(tables.rows, tables.scales, tables.int4_dims, strict=True)
    found_rows = [decode_rows(rows, scale, int4_dim) for rows, scale, int4_dim in coded]
    bound = FP32_TOLERANCE + ROUNDED.get(format, 0.0) * (2 if rounding == "stochastic" else 1)
    error = max(_relative_to_row(y, ref) for y, ref in zip(found_rows, expected_rows, strict=True))
    if states is not None and new_states is not None:
        found = max(relative_to_largest(y, ref) for y, ref in zip(new_states, expected_states, strict=True))
        error = max(error, found / FP32_TOLERANCE * bound)
    if error <= bound:
        return ""
    return (
        f"bag_backward {optimizer}, rows {format} {place} {rounding}, dims {DIMS}, "
        f"{'weighted, ' if weighted else ''}batch {_BATCH}: expected error <= {bound:.1e} of the largest "
        f"element, found {error:.1e}"
    )


def _relative_to_row(y: torch.Tensor, ref: torch.Tensor) -> float:
    """Largest error over the largest magnitude of its row (of the table, for FP32 rows of little but noise)."""
    largest = ref.abs().amax(1, keepdim=True).clamp_min(float(ref.abs().max()) * 1e-2)
    return float(((y.double().cpu() - ref).abs() / largest).max())


def _bags(g: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """values [V], offsets [T * B + 1], weights [V] with empty bags and one very long bag."""
    lengths = torch.randint(0, 5, (len(DIMS) * _BATCH,), generator=g)
    lengths[7] = 300
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    count = int(offsets[-1])
    return torch.randint(0, _ROWS, (count,), generator=g), offsets, torch.randn(count, generator=g)


_FORMATS = (
    *((name, "separate") for name in ("fp32", "fp16", "bf16", "e4m3", "int8", "int4")),
    *((name, "in_row") for name in ("e4m3", "int8", "int4")),
    ("e4m3", "power_of_two"),
)


def _tables(
    format: str, place: str, pooling: str | list[str], g: torch.Generator, states: list[torch.Tensor] | None = None,
    device: str = "cpu",
) -> tuple[TableSet, list[torch.Tensor]]:  # fmt: skip
    """Tables of a format on a device, scales at a place, and their values in FP64 on the CPU."""
    rows: list[torch.Tensor] = []
    scales: list[torch.Tensor | None] = []
    decoded = []
    int4_dims = [dim if format == "int4" else None for dim in DIMS]
    for dim, int4_dim in zip(DIMS, int4_dims, strict=True):
        codes, scale = encode_rows(torch.randn(_ROWS, dim, generator=g), format, place)
        decoded.append(decode_rows(codes, scale, int4_dim, torch.float64))
        if place == "in_row":
            apart, (codes, scale) = (
                (codes, scale),
                rows_in(torch.zeros(_ROWS, row_bytes(format, dim), dtype=torch.uint8, device=device), format, dim),
            )
            codes.copy_(apart[0])
            scale.copy_(apart[1])  # type: ignore[arg-type]
        rows.append(codes.to(device))
        scales.append(None if scale is None else scale.to(device))
    return TableSet(rows, scales, pooling, states=states, int4_dims=int4_dims), decoded


def stepped(
    rows: list[torch.Tensor], states: list[torch.Tensor] | None, pooling: list[str], values: torch.Tensor,
    offsets: torch.Tensor, weights: torch.Tensor | None, grad: torch.Tensor, optimizer: str, lr: float, eps: float,
    weight_decay: float = 0.0, betas: tuple[float, float] = (0.9, 0.999), step: int = 1,
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:  # fmt: skip
    """Rows and states after one step in FP64 (embedding.hpp's formulas); rows no bag holds stay as they are."""
    batch = (len(offsets) - 1) // len(rows)
    new_rows, new_states, column = [], [], 0
    for t, table in enumerate(rows):
        x, dim = table.double(), table.shape[1]
        span, bag, factor = coefficients(pooling[t], t, batch, offsets, weights)
        g = torch.zeros_like(x)
        g.index_add_(0, values[span], grad[:, column : column + dim].double()[bag] * factor[:, None])
        column += dim
        touched = torch.zeros(len(x), 1, dtype=torch.bool).index_fill_(0, values[span], True)
        g = (g + weight_decay * x) * touched
        state = torch.zeros(0, dtype=torch.float64) if states is None else states[t].double()
        if optimizer == "sgd":
            x = x - lr * g
        elif optimizer == "row_wise_adagrad":
            state = state + g.square().mean(1)
            x = x - lr / (state.sqrt() + eps)[:, None] * g
        elif optimizer == "adagrad":
            state = state + g.square()
            x = x - lr * g / (state.sqrt() + eps)
        elif optimizer == "adam":
            m, v = state.unbind(1)
            m = torch.where(touched, betas[0] * m + (1 - betas[0]) * g, m)
            v = torch.where(touched, betas[1] * v + (1 - betas[1]) * g.square(), v)
            rate = lr * (1 - betas[1] ** step) ** 0.5 / (1 - betas[0] ** step)
            x = torch.where(touched, x - rate * m / (v.sqrt() + eps), x)
            state = torch.stack([m, v], 1)
        new_rows.append(x)
        new_states.append(state)
    return new_rows, new_states
