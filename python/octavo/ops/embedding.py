"""``embedding_bags``: pooled rows of many tables in one call (kernels: ``*.bag_forward``, ``*.bag_backward``)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import torch

from octavo import _core
from octavo.ops import kernels
from octavo.ops._library import define
from octavo.ops._types import address, choice, expect_no_tangents, expect_number
from octavo.ops.output_checks import expect_writable, is_apart
from octavo.ops.table_formats import FORMATS, POWER_OF_TWO, stored_columns

_CPU = torch.device("cpu")
_DLPACK = {"cpu": 1, "cuda": 2}  # devices as DLPack numbers them
BOUNDS = {"error": 0, "warn": 1, "ignore": 2}
POOLING = ("sum", "mean")
_FORMAT_OF = {f.element: name for name, f in FORMATS.items() if name != "int4"}
OUT_TYPES = {torch.float32: int(_core.DType.f32), torch.bfloat16: int(_core.DType.bf16)}


class TableLists(NamedTuple):
    """What a node of a graph takes of a :class:`TableSet`: no addresses, which tracing cannot follow."""

    rows: list[torch.Tensor]
    scales: list[torch.Tensor | None]
    names: list[str]
    pooling: list[str]
    int4_dims: list[int | None]


class TableSet:
    """Tables of one call: checked once, handed to the kernels as one object.

    ``rows[i]``: [R, D] float32, float16, bfloat16, float8_e4m3fn or uint8, columns contiguous, all on the CPU or all on
    one CUDA device; INT4 is [R, ceil(D / 2)] uint8, the even column in the low bits. ``scales[i]``: None for float
    rows, [R] float32 or float8_e8m0fnu for E4M3, [R, 2] float32 (scale, bias) for INT8 and INT4; value = code * scale
    (+ bias). Scales may lie in the rows (:func:`table_formats.rows_in`), which saves a cache miss where rows are short.
    ``int4_dims[i]``: D where table i is INT4, else None; uint8 rows are INT8 without it.
    ``pooling[i]``: ``sum | mean``. ``states[i]``: float32 state of the optimizer
    (:func:`bag_backward`), or None.
    Raises TypeError or ValueError that names the table.
    """

    def __init__(
        self,
        rows: Sequence[torch.Tensor],
        scales: Sequence[torch.Tensor | None] | None = None,
        pooling: str | Sequence[str] = "sum",
        names: Sequence[str] | None = None,
        states: Sequence[torch.Tensor | None] | None = None,
        int4_dims: Sequence[int | None] | None = None,
    ) -> None:
        count = len(rows)
        if count == 0:
            raise ValueError("tables: expected at least one table, found none")
        self.names = [str(i) for i in range(count)] if names is None else list(names)
        self.pooling = [pooling] * count if isinstance(pooling, str) else list(pooling)
        self.rows = list(rows)
        self.scales = [None] * count if scales is None else list(scales)
        self.states = [None] * count if states is None else list(states)
        self.int4_dims = [None] * count if int4_dims is None else list(int4_dims)
        lists = (("names", self.names), ("pooling", self.pooling), ("scales", self.scales), ("states", self.states),
                 ("int4_dims", self.int4_dims))  # fmt: skip
        for what, items in lists:
            if len(items) != count:
                raise ValueError(f"{what}: expected one per table ({count}), found {len(items)}")
        self.widths, core = [], []  # columns of each table
        self.device = self.rows[0].device if isinstance(self.rows[0], torch.Tensor) else _CPU
        for name, table, scale, kind, state, dim in zip(
            self.names, self.rows, self.scales, self.pooling, self.states, self.int4_dims, strict=True
        ):
            choice(f"pooling of table '{name}'", kind, POOLING)
            _check_table(name, table, scale, state, dim, self.device)
            self.widths.append(table.shape[1] if dim is None else dim)
            format = FORMATS[_FORMAT_OF[table.dtype] if dim is None else "int4"].core
            at = address(f"scale of table '{name}'", scale)
            apart, exponents = (0, at) if _is_power_of_two(scale) else (at, 0)
            core.append(
                (name, table.data_ptr(), table.shape[0], self.widths[-1],
                 table.stride(0) if table.shape[0] > 1 else table.shape[1], int(format), apart, kind == "mean",
                 address(f"state of table '{name}'", state), 0 if scale is None else scale.stride(0), exponents)
            )  # fmt: skip
        self.core = _core.TableSet(core)
        self.dims = sum(self.widths)
        self.fits: set[str] = set()  # optimizers that may train these
        self.trainable = not any(map(_is_power_of_two, self.scales))

    def __len__(self) -> int:
        return len(self.rows)

    def words(self) -> str:
        """The format of the first table, as kernels name it."""
        name = "int4" if self.int4_dims[0] is not None else _FORMAT_OF[self.rows[0].dtype]
        return name if FORMATS[name].scale is not None else str(self.rows[0].dtype).removeprefix("torch.")


def embedding_bags(
    tables: TableSet | Sequence[torch.Tensor],
    values: torch.Tensor,
    offsets: torch.Tensor,
    weights: torch.Tensor | None = None,
    pooling: str | Sequence[str] = "sum",
    scales: Sequence[torch.Tensor | None] | None = None,
    bounds: str = "error",
    out_dtype: torch.dtype = torch.float32,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Pooled rows of T tables: [B, sum of dims], table t's columns after table t - 1's.

    Args:
        tables: T tables [R, D], or a :class:`TableSet` (then ``pooling`` and ``scales`` are its own).
        values: [V] int64 row indices, feature-major as in :class:`octavo.ops.Jagged`.
        offsets: [T*B+1] int64; bag b of table t is ``values[offsets[t*B+b] : offsets[t*B+b+1]]``; empty bags give 0.
        weights: [V] float32 multiplier of each row, or None.
        pooling: ``sum | mean``, one or one per table. mean divides by the number of rows in the bag, also with weights.
        scales: for E4M3 ([R]) and uint8 ([R, 2]: scale, bias) rows. INT4 tables come in a :class:`TableSet`.
        bounds: an index outside its table raises IndexError (``error``), or the row is skipped as if it were not in
            the bag, with one warning a call that counts them (``warn``) or silently (``ignore``). On CUDA the first two
            wait for the device's answer, which a CUDA graph cannot capture; ``ignore`` does not wait, and there offsets
            that decrease or lie outside ``values`` make empty bags instead of an error.
        out_dtype: float32 or bfloat16; sums are FP32.
        out: [B, sum of dims] of that type, columns contiguous: filled and returned. Fresh memory costs bags of one row
            more than their lookups.

    No gradients: tables train through :class:`octavo.nn.EmbeddingBags`. Raises TypeError or ValueError naming the
    argument.
    """
    if not isinstance(tables, TableSet):
        tables = TableSet(tables, scales, pooling)
    choice("bounds", bounds, tuple(BOUNDS))
    if out_dtype not in OUT_TYPES:
        raise TypeError(f"out_dtype: expected torch.float32 or torch.bfloat16, found {out_dtype}")
    if torch.compiler.is_compiling():
        pooled = traced_bags(tables, values, offsets, weights, bounds, out_dtype)
        return pooled if out is None else out.copy_(pooled)
    return bag_forward(tables, values, offsets, weights, bounds, out_dtype, out=out)


def traced_bags(
    tables: TableSet | TableLists,
    values: torch.Tensor,
    offsets: torch.Tensor,
    weights: torch.Tensor | None,
    bounds: str,
    out_dtype: torch.dtype,
) -> torch.Tensor:
    """The call as one node ``octavo::embedding_bags`` of a graph."""
    empty = values.new_empty(0, dtype=torch.float32)
    scales = [empty if s is None else s for s in tables.scales]
    mean = [kind == "mean" for kind in tables.pooling]
    out: torch.Tensor = torch.ops.octavo.embedding_bags(
        tables.rows, scales, tables.names, mean, [dim or 0 for dim in tables.int4_dims], values, offsets, weights,
        bounds, out_dtype,
    )  # fmt: skip
    return out


def bag_forward(
    tables: TableSet,
    values: torch.Tensor,
    offsets: torch.Tensor,
    weights: torch.Tensor | None = None,
    bounds: str = "error",
    out_dtype: torch.dtype = torch.float32,
    kernel: _core.Kernel | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """The eager path of :func:`embedding_bags`. ``kernel`` runs that one instead of the preferred one.

    Once a kernel is settled, calls with nothing unusual about them are one C function, :func:`_core.serve_bags`.
    """
    if kernel is None:
        y = _core.serve_bags(tables.core, values, offsets, weights, BOUNDS[bounds], out_dtype is torch.bfloat16, out)
        if y is not NotImplemented:
            return cast(torch.Tensor, y)
    batch = check_indices(len(tables), values, offsets, weights, tables.device)
    expect_no_tangents(("out", out), *zip(tables.names, tables.rows, strict=True))
    weights = None if weights is None else weights.resolve_neg()
    if out is None:
        out = new_out(batch, tables.dims, out_dtype, tables.device)
    else:
        check_out(out, [batch, tables.dims], out_dtype, tables.device)
    if kernel is None:
        words = (tables.device.type,)
        kernel = kernels.serving(_core.Op.bag_forward, words)
        generation = kernels.generation
        if kernels.kept(_core.Op.bag_forward, words) is kernel:
            tables.core.serve_with(kernel, generation, _DLPACK[tables.device.type], tables.device.index or 0)
    skipped = _core.bag_forward(
        kernel, tables.core, batch, values.data_ptr(), values.shape[0], offsets.data_ptr(), address("weights", weights),
        BOUNDS[bounds], out.data_ptr(), out.stride(0), OUT_TYPES[out_dtype], kernels.stream_of(values),
    )  # fmt: skip
    if skipped and bounds == "warn":
        warnings.warn(
            f"embedding_bags: skipped {skipped} of {values.shape[0]} row indices outside their tables", stacklevel=3
        )
    return out


def bag_backward(
    tables: TableSet,
    values: torch.Tensor,
    offsets: torch.Tensor,
    weights: torch.Tensor | None,
    grad: torch.Tensor,
    optimizer: str,
    lr: float,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    bounds: str = "error",
    grad_weights: torch.Tensor | None = None,
    kernel: _core.Kernel | None = None,
    betas: tuple[float, float] = (0.9, 0.999),
    step: int = 1,
    rounding: str = "stochastic",
    seed: int = 0,
    first_table: int = 0,
) -> None:
    """Update the rows of ``tables`` (and their states, scales) from ``grad`` [B, sum of dims] of the pooled rows.

    Args:
        optimizer: ``none``, ``sgd``, or with a state per table ``row_wise_adagrad`` ([R]), ``adagrad`` ([R, D]),
            ``adam`` ([R, 2, D]: m, v). embedding.hpp has their formulas; rows that no bag holds stay as they are.
        lr, eps, weight_decay, betas: ``weight_decay`` * row is added to the gradient of a touched row.
        step: number of this update, from 1: Adam's bias correction, and a new set of random bits.
        rounding: how rows narrower than float32 take their new values, ``stochastic | nearest``. Stochastic picks one
            of the two codes around a value so that the expectation is the value; the random bits are a function of
            (``seed``, ``step``, table, row, column).
        grad_weights: [V] float32, zeros: receives the gradients of the weights at the rows before the update.

    Bitwise the same for any number of threads; on CUDA the bits are the CPU's for rows of up to 512 lookups, and for
    others the same every time. Either every table is updated or, when an argument is wrong, none.
    """
    batch = check_indices(len(tables), values, offsets, weights, tables.device)
    choice("optimizer", optimizer, tuple(OPTIMIZERS))
    choice("rounding", rounding, ROUNDING)
    expect_number("lr", lr)
    expect_number("eps", eps, least=0.0)
    expect_number("weight_decay", weight_decay)
    _check_trainable(tables, optimizer)
    if not tables.trainable:
        name = next(n for n, scale in zip(tables.names, tables.scales, strict=True) if _is_power_of_two(scale))
        raise TypeError(f"table '{name}': its rows do not train; their scales are powers of two: keep them in FP32")
    if grad_weights is not None:
        _check_vector("grad_weights", grad_weights, torch.float32, tables.device)
        if grad_weights.shape != values.shape:
            raise ValueError(f"grad_weights: expected one per value ({len(values)}), found {len(grad_weights)}")
    grad = (grad if grad.dtype == torch.float32 else grad.float()).resolve_neg()
    weights = None if weights is None else weights.resolve_neg()
    if grad.shape != (batch, tables.dims):
        raise ValueError(f"grad: shape {list(grad.shape)}; expected [{batch}, {tables.dims}]")
    if grad.device != tables.device:
        raise ValueError(f"grad: is on {grad.device}, the tables on {tables.device}; move it with .to()")
    if tables.dims > 1 and grad.stride(1) != 1:
        grad = grad.contiguous()
    if kernel is None:
        kernel = kernels.serving(_core.Op.bag_backward, (tables.device.type,))
    config = _core.OptimizerConfig(
        OPTIMIZERS[optimizer].kind,
        lr,
        eps,
        weight_decay,
        *betas,
        rounding == "stochastic",
        seed & (1 << 64) - 1,
        step,
        first_table,
    )
    _core.bag_backward(
        kernel, tables.core, batch, values.data_ptr(), values.shape[0], offsets.data_ptr(), address("weights", weights),
        BOUNDS[bounds], grad.data_ptr(), grad.stride(0), address("grad_weights", grad_weights), config,
        kernels.stream_of(values),
    )  # fmt: skip


class Rule(NamedTuple):
    """An optimizer as the kernels know it, and the shape of its state for a table [R, D]."""

    kind: int
    state: Callable[[int, int], tuple[int, ...]] | None


OPTIMIZERS = {
    "none": Rule(0, None),
    "sgd": Rule(1, None),
    "row_wise_adagrad": Rule(2, lambda rows, dim: (rows,)),
    "adagrad": Rule(3, lambda rows, dim: (rows, dim)),
    "adam": Rule(4, lambda rows, dim: (rows, 2, dim)),
}
ROUNDING = ("stochastic", "nearest")


def _check_trainable(tables: TableSet, optimizer: str) -> None:
    """Raise ValueError for rows or scales that overlap, and for states that are not the optimizer's."""
    if optimizer in tables.fits:
        return
    shape = OPTIMIZERS[optimizer].state
    if shape is not None:
        for name, rows, int4_dim, state in zip(tables.names, tables.rows, tables.int4_dims, tables.states, strict=True):
            wanted = shape(len(rows), rows.shape[1] if int4_dim is None else int4_dim)
            if state is None or tuple(state.shape) != wanted:
                found = "none" if state is None else f"shape {list(state.shape)}"
                raise ValueError(f"state of table '{name}': {optimizer} needs float32 {list(wanted)}, found {found}")
    if optimizer != "none":
        for name, rows, scale in zip(tables.names, tables.rows, tables.scales, strict=True):
            for part, tensor in (("rows", rows), ("scales", scale)):
                if tensor is not None and not is_apart(tensor):
                    raise ValueError(
                        f"table '{name}': its {part} overlap in memory, strides {list(tensor.stride())} of shape "
                        f"{list(tensor.shape)}, and cannot train; use .contiguous()"
                    )
    tables.fits.add(optimizer)


def check_indices(
    tables: int, values: torch.Tensor, offsets: torch.Tensor, weights: torch.Tensor | None, device: torch.device = _CPU
) -> int:
    """Raise for the first argument that no kernel of tables on ``device`` could take; returns the batch size B."""
    _check_vector("values", values, torch.int64, device)
    _check_vector("offsets", offsets, torch.int64, device)
    if weights is not None:
        _check_vector("weights", weights, torch.float32, device)
        expect_no_tangents(("weights", weights))
        if weights.shape[0] != values.shape[0]:
            raise ValueError(f"weights: expected one per value ({values.shape[0]}), found {weights.shape[0]}")
    bags = offsets.shape[0] - 1
    if bags < 0 or bags % tables:
        raise ValueError(
            f"offsets: {bags + 1} entries; {tables} table(s) need {tables} * B + 1, bags of one table after the other's"
        )
    return bags // tables


def new_out(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Memory for an output [rows, columns] on the tables' device."""
    if device.type == "cpu":
        return _core.empty_output((rows, columns), dtype is torch.bfloat16)
    return torch.empty((rows, columns), dtype=dtype, device=device)


def check_out(out: torch.Tensor, shape: list[int], dtype: torch.dtype, device: torch.device) -> None:
    """Raise unless a kernel may write [rows, columns] of ``dtype`` to ``out``."""
    if not isinstance(out, torch.Tensor) or out.dtype is not dtype:
        kind = str(out.dtype) if isinstance(out, torch.Tensor) else type(out).__name__
        raise TypeError(f"out: expected a {dtype} tensor, found {kind}; pass out_dtype to get another type")
    fits = list(out.shape) == shape and out.device == device
    if not fits or (shape[1] > 1 and out.stride(1) != 1):
        found = f"{list(out.shape)} on {out.device}, strides {list(out.stride())}"
        raise ValueError(f"out: expected {shape} on {device}, columns contiguous, found {found}")
    expect_writable("out", out)


def _check_vector(argument: str, value: torch.Tensor, dtype: torch.dtype, device: torch.device) -> None:
    usual = type(value) is torch.Tensor and value.dtype is dtype and value.ndim == 1
    if usual and value.device == device and value.is_contiguous():
        return
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{argument}: expected a torch.Tensor, found {type(value).__name__}")
    if value.dtype is not dtype:
        wanted, found = (str(d).removeprefix("torch.") for d in (dtype, value.dtype))
        raise TypeError(f"{argument}: expected {wanted}, found {found}; convert it with .to()")
    if value.dim() != 1 or (value.shape[0] > 1 and value.stride(0) != 1):
        raise ValueError(f"{argument}: expected one contiguous dimension, found shape {list(value.shape)}")
    if value.device != device:
        raise ValueError(f"{argument}: is on {value.device}, the tables are on {device}; move it with .to('{device}')")


def _check_table(
    name: str,
    rows: torch.Tensor,
    scale: torch.Tensor | None,
    state: torch.Tensor | None,
    int4_dim: int | None,
    device: torch.device,
) -> None:
    what = f"table '{name}'"
    if not isinstance(rows, torch.Tensor):
        raise TypeError(f"{what}: expected a torch.Tensor, found {type(rows).__name__}")
    if rows.dtype not in _FORMAT_OF:
        raise TypeError(f"{what}: is {rows.dtype}; expected float32, float16, bfloat16, float8_e4m3fn or uint8 rows")
    if int4_dim is not None and rows.dtype != torch.uint8:
        raise TypeError(f"{what}: int4_dims is {int4_dim} but rows are {rows.dtype}; INT4 codes are uint8, two a byte")
    if rows.dim() != 2:
        raise ValueError(f"{what}: expected [rows, dim], found shape {list(rows.shape)}")
    if rows.device.type not in ("cpu", "cuda"):
        raise ValueError(f"{what}: is on {rows.device}; embedding bags run on cpu and cuda, move it with .to()")
    if rows.device != device:
        raise ValueError(f"{what}: is on {rows.device}, the first table on {device}; tables of a call share a device")
    if rows.is_neg():
        raise ValueError(f"{what}: is a negated view (Tensor.is_neg); pass .resolve_neg()")
    if rows.shape[1] > 1 and rows.stride(1) != 1:
        raise ValueError(f"{what}: columns must be contiguous, found strides {list(rows.stride())}")
    count = rows.shape[0]
    if int4_dim is not None and (int4_dim < 0 or rows.shape[1] != stored_columns("int4", int4_dim)):
        raise ValueError(f"{what}: {rows.shape[1]} bytes a row do not hold {int4_dim} INT4 columns, two a byte")
    shape = {torch.float8_e4m3fn: [count], torch.uint8: [count, 2]}.get(rows.dtype)
    parts = [("scale", scale, shape), ("state", state, None if state is None else list(state.shape))]
    for part, tensor, wanted in parts:
        if (tensor is None) != (wanted is None):
            found = "none" if tensor is None else f"shape {list(tensor.shape)}"
            raise ValueError(f"{part} of {what}: expected {wanted or 'none'} for {rows.dtype} rows, found {found}")
        if tensor is None:
            continue
        power_of_two = part == "scale" and rows.dtype == torch.float8_e4m3fn and _is_power_of_two(tensor)
        packed = power_of_two or part == "state"  # FP32 scales may lie in the rows
        inner = tensor.is_contiguous() if packed else tensor.dim() < 2 or tensor.stride(-1) == 1
        if not (tensor.dtype == torch.float32 or power_of_two) or list(tensor.shape) != wanted or not inner:
            raise ValueError(
                f"{part} of {what}: expected contiguous float32 {wanted}, found {tensor.dtype} {list(tensor.shape)}"
            )
        if tensor.device != device:
            raise ValueError(f"{part} of {what}: is on {tensor.device}, its rows on {device}; move it with .to()")


def _is_power_of_two(scale: torch.Tensor | None) -> bool:
    return scale is not None and scale.dtype == POWER_OF_TWO


def table_set(
    rows: list[torch.Tensor], scales: list[torch.Tensor], names: list[str], int4_dims: list[int],
    pooling: str | list[str] = "sum",
) -> TableSet:  # fmt: skip
    """The tables of an operator's arguments, where an empty scale is none and dimension 0 is not INT4."""
    coded = (torch.float8_e4m3fn, torch.uint8)
    kept = [s if r.dtype in coded else None for r, s in zip(rows, scales, strict=True)]
    return TableSet(rows, kept, pooling, names, int4_dims=[dim or None for dim in int4_dims])


def _embedding_bags(
    rows: list[torch.Tensor], scales: list[torch.Tensor], names: list[str], mean: list[bool], int4_dims: list[int],
    values: torch.Tensor, offsets: torch.Tensor, weights: torch.Tensor | None, bounds: str, out_dtype: torch.dtype,
) -> torch.Tensor:  # fmt: skip
    tables = table_set(rows, scales, names, int4_dims, ["mean" if m else "sum" for m in mean])
    return bag_forward(tables, values, offsets, weights, bounds, out_dtype)


def _fake_embedding_bags(
    rows: list[torch.Tensor], scales: list[torch.Tensor], names: list[str], mean: list[bool], int4_dims: list[int],
    values: torch.Tensor, offsets: torch.Tensor, weights: torch.Tensor | None, bounds: str, out_dtype: torch.dtype,
) -> torch.Tensor:  # fmt: skip
    batch = (offsets.shape[0] - 1) // len(rows)
    dims = sum(dim or r.shape[1] for r, dim in zip(rows, int4_dims, strict=True))
    return values.new_empty((batch, dims), dtype=out_dtype)


define(
    "embedding_bags(Tensor[] rows, Tensor[] scales, str[] names, bool[] mean, int[] int4_dims, Tensor values, "
    "Tensor offsets, Tensor? weights, str bounds, ScalarType out_dtype) -> Tensor",
    _embedding_bags,
    _fake_embedding_bags,
)
