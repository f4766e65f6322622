"""Embedding tables of many features as one module, which train inside their backward."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import torch

from octavo import _core
from octavo.nn.bags_function import BagsFunction
from octavo.nn.device_ids import DeviceIds
from octavo.nn.dynamic import SHARED, DynamicRows, IdRows
from octavo.nn.table import Table
from octavo.nn.table_memory import TableTensors, allocate, put_rows, sent, zeros
from octavo.nn.table_optimizers import Adam, Optimizer
from octavo.ops import embedding
from octavo.ops._types import choice, requires_grad, within_transform
from octavo.ops.jagged import Jagged
from octavo.ops.table_formats import (
    FORMATS,
    POWER_OF_TWO,
    encode_rows,
    row_bytes,
    rows_in,
    stored_columns,
)


class EmbeddingBags(torch.nn.Module):
    """Pooled embeddings of T features: ``forward`` -> [B, sum of dims] float32.

    Args:
        tables: one :class:`Table` per feature, in the order of the features.
        optimizer: :class:`SGD`, :class:`Adagrad`, :class:`RowWiseAdagrad` or :class:`Adam`, applied inside
            ``backward`` to the touched rows, or to all of them (``Adam(lazy=False)``); there is no ``.grad`` and no
            parameter. None = frozen.
        bounds: what to do with a row index outside its table: ``error | warn | ignore`` (:func:`ops.embedding_bags`).
        rounding: how trained rows narrower than fp32 take their new values. ``stochastic``: one of the two codes around
            a value, so that its expectation is the value and small updates add up; ``nearest`` loses those below half
            a step. Rows of eight bits and less get new scales with every update.
        seed: of stochastic rounding, whose random bits are a function of (seed, step, table, row, column).

    A backward pass in training mode updates the tables once, the same bits for any number of threads; in eval mode or
    under ``torch.no_grad()`` nothing is ever updated. State dict: ``rows.<table>``, ``state.<table>`` (the optimizer's,
    as it says), ``scale.<table>`` (e4m3 [rows], int8 and int4 [rows, 2]), ``step`` (updates so far: with Adam, or where
    rounding is stochastic), ``ids._extra_state`` (which row an id of a dynamic table has).

    A dynamic table takes any int64 ids (``bounds`` plays no part). A forward in training mode that records gradients
    sees its ids at time ``now`` (None: the number of such forwards) and gives new ones rows; nothing else does. Ids
    without a row read row 0, which starts at zero and trains as their common row. On a device ids may come on it or on
    the CPU. The host gives ids their rows: a training forward waits for a copy of ids that come on the device, and for
    nothing where they come on the CPU; a forward that does not train finds rows on the device and waits for nothing.
    """

    step: torch.Tensor | None  # int64 []
    now: int | None = None
    # Set by data parallel training: (tables, values, offsets, weights, grad) of this process -> those of all processes.
    gather: Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor]] | None = None
    _first_table = 0

    def __init__(
        self,
        tables: list[Table],
        optimizer: Optimizer | None = None,
        bounds: str = "error",
        rounding: str = "stochastic",
        seed: int = 0,
    ) -> None:
        super().__init__()
        choice("bounds", bounds, tuple(embedding.BOUNDS))
        choice("rounding", rounding, embedding.ROUNDING)
        if not tables:
            raise ValueError("tables: expected at least one nn.Table, found none")
        names = [table.name for table in tables]
        if len(set(names)) != len(names):
            raise ValueError(f"tables: names must differ, found {', '.join(names)}")
        if optimizer is not None:
            if not isinstance(optimizer, Optimizer):
                found = type(optimizer).__name__
                raise TypeError(
                    f"optimizer: expected nn.SGD, nn.Adagrad, nn.RowWiseAdagrad, nn.Adam or None, found {found}"
                )
            dynamic_table = next((table for table in tables if table.dynamic is not None), None)
            if dynamic_table is not None and not optimizer.lazy:
                raise ValueError(
                    f"optimizer: Adam with lazy=False passes over all {dynamic_table.rows} rows of dynamic table "
                    f"'{dynamic_table.name}' in every update; use lazy=True there"
                )
            served = next((table for table in tables if table.place == "power_of_two"), None)
            if served is not None:
                raise ValueError(
                    f"tables: '{served.name}' has scales in powers of two and such tables do not train; pass "
                    f"optimizer=None, or train fp32 and convert with to_dtype({served.dtype!r}, 'power_of_two')"
                )
        self.tables = list(tables)
        self.optimizer = optimizer
        self.bounds, self.rounding, self.seed = bounds, rounding, seed
        self.rows, self.scale, self.state = TableTensors(), TableTensors(), TableTensors()
        for table in tables:
            self._put_rows(table)
            state_shape = None if optimizer is None else embedding.OPTIMIZERS[optimizer.kind].state
            if state_shape is not None:
                shape = state_shape(table.stored, table.dim)
                lazy = table.dynamic is not None  # pages of rows that no id has yet cost nothing
                self.state.put(table.name, zeros(shape) if lazy else allocate(shape, torch.float32).zero_())
        draws = rounding == "stochastic" and any(table.dtype != "fp32" for table in tables)
        counts = isinstance(optimizer, Adam) or (optimizer is not None and draws)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64) if counts else None)
        dynamic = [(t.name, DynamicRows(t.rows, t.dim, t.dynamic)) for t in tables if t.dynamic is not None]
        self.ids = IdRows(dynamic) if dynamic else None
        self._touched: dict[str, torch.Tensor] = {}
        self._anchor = torch.empty(0, requires_grad=True)  # makes outputs require gradients: tables are no parameters
        self._set: embedding.TableSet | None = None
        self._addresses = b""
        self._device_ids: DeviceIds | None = None
        self.reset_parameters()

    def _put_rows(self, table: Table) -> None:
        element, scale_shape, _ = FORMATS[table.dtype]
        memory = allocate if table.dynamic is None else zeros
        shape = (table.stored, stored_columns(table.dtype, table.dim))
        scale = None
        if scale_shape is not None and table.place == "in_row":
            buffer = memory((table.stored, row_bytes(table.dtype, table.dim)), torch.uint8)
            rows, scale = rows_in(buffer, table.dtype, table.dim)
        else:
            rows = memory(shape, element)
            if scale_shape is not None:
                kind = POWER_OF_TWO if table.place == "power_of_two" else torch.float32
                scale = memory((table.stored, *scale_shape), kind)
        self.rows.put(table.name, rows)
        if scale is not None:
            self.scale.put(table.name, scale)

    def _apply(self, fn: Any, recurse: bool = True) -> EmbeddingBags:
        step = self.step
        super()._apply(fn, recurse)
        self.step = step  # every backward reads it, and reading from a device would wait for it
        return self

    @property
    def _device(self) -> torch.device:
        rows = self.rows.get(self.tables[0].name)
        assert rows is not None
        return rows.device

    def _copy_rows(self, table: Table, other: EmbeddingBags) -> None:
        for mine, theirs in ((self.rows, other.rows), (self.scale, other.scale)):
            source = theirs.get(table.name)
            if source is not None:
                mine.get(table.name).copy_(source)  # type: ignore[union-attr]

    def _next_step(self) -> int:
        """The number of the update that a backward is about to make."""
        return 1 if self.step is None else int(self.step) + 1

    @property
    def lr(self) -> float:
        """The optimizer's learning rate; set it to follow a schedule."""
        if self.optimizer is None:
            raise RuntimeError("lr: the tables are frozen (optimizer=None)")
        return self.optimizer.lr

    @lr.setter
    def lr(self, value: float) -> None:
        if self.optimizer is None:
            raise RuntimeError("lr: the tables are frozen (optimizer=None)")
        self.optimizer = dataclasses.replace(self.optimizer, lr=float(value))

    @torch.no_grad()
    def reset_parameters(self, half_width: float | None = None, generator: torch.Generator | None = None) -> None:
        """Rows uniform in [-half_width, half_width] (None: sqrt(1 / rows), as DLRM), optimizer state and step zero.

        Dynamic tables forget their ids; ``generator`` gives the seed that rows of new ones are drawn with.
        """
        for table in self.tables:
            width = (1 / max(table.rows, 1)) ** 0.5 if half_width is None else half_width
            rows, state = self.rows.get(table.name), self.state.get(table.name)
            assert rows is not None
            if self.ids is not None and table.dynamic is not None:
                seed = int(torch.randint(2**62, (), generator=generator))
                self.ids.by_name[table.name].forget(seed, width)
                self._start_rows(table, torch.tensor([SHARED]), torch.zeros(1, table.dim))
                continue
            if table.dtype == "fp32":
                rows.uniform_(-width, width, generator=generator)
            else:
                for begin in range(0, table.rows, _CHUNK):
                    drawn = torch.empty(min(_CHUNK, table.rows - begin), table.dim)
                    self._encode(table, begin, drawn.uniform_(-width, width, generator=generator))
            if state is not None:
                state.zero_()
        if self.step is not None:
            self.step.zero_()

    def forward(
        self,
        values: torch.Tensor | Jagged,
        offsets: torch.Tensor | None = None,
        weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Pooled rows [B, sum of dims] of ``values`` [V], ``offsets`` [T*B+1], ``weights`` [V], or of one Jagged.

        Gradients flow to float32 ``weights``. Raises TypeError, ValueError or IndexError
        naming the argument; nothing is updated then.
        """
        if isinstance(values, Jagged):
            if offsets is not None or weights is not None:
                raise TypeError("offsets, weights: a Jagged holds its own; pass it alone")
            jagged = values
            values, offsets, weights = jagged.values, jagged.offsets, jagged.weights
        elif offsets is None:
            raise TypeError("offsets: missing; pass values and offsets, or one Jagged")
        trains = self._updates()
        if within_transform() and torch.is_grad_enabled() and requires_grad(weights):
            raise NotImplementedError("weights: have no gradients in torch.func's transforms; use autograd")
        ids, values, offsets = self._rows_of(values, offsets, trains)
        if trains or (torch.is_grad_enabled() and weights is not None and weights.requires_grad):
            return self._recorded(values, offsets, weights, trains, ids)
        if torch.compiler.is_compiling():
            return embedding.traced_bags(self._table_lists(), values, offsets, weights, self.bounds, torch.float32)
        return embedding.bag_forward(self._table_set(), values, offsets, weights, self.bounds)

    @torch.compiler.disable
    def _recorded(
        self,
        values: torch.Tensor,
        offsets: torch.Tensor,
        weights: torch.Tensor | None,
        trains: bool,
        ids: torch.Tensor | None,
    ) -> torch.Tensor:
        anchor = self._anchor if trains else None
        out: torch.Tensor = BagsFunction.apply(anchor, weights, values, offsets, self, ids)  # type: ignore[no-untyped-call]
        return out

    def _updates(self) -> bool:
        return torch.is_grad_enabled() and self.training and self.optimizer is not None

    def _rows_of(
        self, values: torch.Tensor, offsets: torch.Tensor, trains: bool
    ) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]:
        """The ids, where a table is dynamic, ``values`` with rows in their place, and ``offsets`` beside them."""
        if self.ids is None and not (trains and self._touched):
            return None, values, offsets
        ids, rows = self._looked_up(values, offsets, trains)
        return ids, rows, sent(offsets, rows.device)

    @torch.compiler.disable
    def _looked_up(
        self, values: torch.Tensor, offsets: torch.Tensor, trains: bool
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        device, on_host = self._device, isinstance(values, torch.Tensor) and values.is_cpu
        batch = embedding.check_indices(len(self.tables), values, offsets, None, _CPU if on_host else device)
        if self._finds_there(values, trains):
            return values, self._ids_there().find(values, offsets)
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                "values: the host gives ids their rows in training, which a CUDA graph cannot repeat; capture forwards "
                "in eval mode, with ids on the device"
            )
        given = values
        values, offsets = _on_host(values, offsets)
        _core.check_offsets(offsets.data_ptr(), len(offsets) - 1, len(values))  # nothing is admitted for a wrong call
        if trains and self.gather is not None:  # every process sees the ids of all
            times = torch.full((batch, 1), -1 if self.now is None else self.now)
            everyones, everyones_offsets, _, times = self.gather(len(self.tables), values, offsets, None, times)
            self._parts(everyones, everyones_offsets, True, None if self.now is None else int(times.max()))
            trains = False
        parts = self._parts(values, offsets, trains, self.now)
        if self.ids is None:
            return None, given
        return given, sent(parts[0] if len(parts) == 1 else torch.cat(parts), device)

    def _finds_there(self, values: torch.Tensor, trains: bool) -> bool:
        """Whether rows of these ids are found on the device, where nothing can be admitted or marked."""
        return not values.is_cpu and not trains

    def _ids_there(self) -> DeviceIds:
        """The ids on the tables' device, as they are now."""
        assert self.ids is not None
        found, device = self._device_ids, self._device
        if found is None or found.ids is not self.ids or found.device != device:
            found = self._device_ids = DeviceIds(self.ids, [table.name for table in self.tables], device)
        else:
            found.refresh()
        return found

    def refresh_ids(self) -> None:
        """Bring the ids that lookups on a device go by up to date with :attr:`dynamic`. Forwards do it by themselves;
        before a CUDA graph of a forward is captured, and before a replay after ids changed, it is the caller's to do.
        """
        if self.ids is not None and self._device.type != "cpu":
            self._ids_there()

    def _parts(self, values: torch.Tensor, offsets: torch.Tensor, trains: bool, now: int | None) -> list[torch.Tensor]:
        tables = len(self.tables)
        batch = (len(offsets) - 1) // tables
        ends = offsets[::batch].tolist() if batch else [0] * (tables + 1)
        return [self._table_rows(t, values[a:b], trains, now) for t, (a, b) in enumerate(itertools.pairwise(ends))]

    def _table_rows(self, index: int, values: torch.Tensor, trains: bool, now: int | None = None) -> torch.Tensor:
        """The rows of table ``index`` that ``values`` mean; with ``trains``, admitting ids and marking rows."""
        table = self.tables[index]
        dynamic = None if table.dynamic is None or self.ids is None else self.ids.by_name[table.name]
        if dynamic is not None and trains:
            values, fresh, ids = dynamic.admit(values, dynamic.clock + 1 if now is None else now)
            if len(fresh):
                self._start_rows(table, fresh, dynamic.draw(ids))
        elif dynamic is not None:
            values = dynamic.find(values)
        touched = self._touched.get(table.name) if trains else None
        if touched is not None:
            _core.mark_rows(values.data_ptr(), len(values), touched.data_ptr(), len(touched))
        return values

    @torch.no_grad()
    def _start_rows(self, table: Table, places: torch.Tensor, values: torch.Tensor) -> None:
        """Give rows ``places`` new values and an optimizer state of zero."""
        codes, scale = encode_rows(values, table.dtype, table.place)
        put_rows(self.rows.get(table.name), places, codes)
        put_rows(self.scale.get(table.name), places, scale)
        state = self.state.get(table.name)
        if state is not None:
            state.index_fill_(0, sent(places, state.device), 0.0)

    @property
    def dynamic(self) -> dict[str, DynamicRows]:
        """The dynamic tables' ids, by table."""
        return {} if self.ids is None else self.ids.by_name

    def track_touched(self) -> dict[str, torch.Tensor]:
        """From now on, flags by table [stored rows] uint8: 1 for a row that training has touched or started since the
        flag was cleared. For checkpoints that hold differences."""
        for table in self.tables:
            if table.name not in self._touched:
                self._touched[table.name] = torch.zeros(table.stored, dtype=torch.uint8)
        return self._touched

    def to_dtype(self, dtype: str, scale: str = "auto") -> EmbeddingBags:
        """A copy for inference with every table in ``dtype``, scales at ``scale`` (:class:`Table` has the words).

        This module is unchanged. Raises ValueError for tables that are neither fp32 nor already so: rounding twice
        would lose more than the format does.
        """
        choice("dtype", dtype, tuple(FORMATS))

        def rounds_twice(table: Table) -> bool:
            if table.dtype == dtype:
                return scale == "power_of_two" != table.place
            return table.dtype != "fp32"

        coded = next((table for table in self.tables if rounds_twice(table)), None)
        if coded is not None:
            raise ValueError(f"to_dtype: table '{coded.name}' is {coded.dtype}; convert the fp32 original instead")
        twin = type(self).__new__(type(self))
        torch.nn.Module.__init__(twin)
        twin.tables = [dataclasses.replace(table, dtype=dtype, scale=scale) for table in self.tables]
        twin.optimizer, twin.bounds, twin.rounding, twin.seed = None, self.bounds, self.rounding, self.seed
        twin.register_buffer("step", None)
        twin.rows, twin.scale, twin.state = TableTensors(), TableTensors(), TableTensors()
        twin._anchor, twin._set, twin._addresses = torch.empty(0, requires_grad=True), None, b""
        twin._device_ids = None
        twin.ids, twin._touched = copy.deepcopy(self.ids), {}
        for old, table in zip(self.tables, twin.tables, strict=True):
            rows = self.rows.get(table.name)
            assert rows is not None
            twin._put_rows(table)
            if old.dtype == dtype:
                twin._copy_rows(table, self)
                continue
            for begin in range(0, table.stored, _CHUNK):
                twin._encode(table, begin, rows[begin : begin + _CHUNK])
        return twin.eval()

    @torch.no_grad()
    def _encode(self, table: Table, begin: int, values: torch.Tensor) -> None:
        codes, scale = encode_rows(values, table.dtype, table.place)
        rows, scales = self.rows.get(table.name), self.scale.get(table.name)
        assert rows is not None
        rows[begin : begin + len(codes)] = codes
        if scales is not None and scale is not None:
            scales[begin : begin + len(codes)] = scale

    def _table_lists(self) -> embedding.TableLists:
        """The tables for a graph."""
        names = [table.name for table in self.tables]
        return embedding.TableLists(
            [self.rows._buffers[name] for name in names],  # type: ignore[misc]
            [self.scale.get(name) for name in names],
            names,
            [table.pooling for table in self.tables],
            [table.dim if table.dtype == "int4" else None for table in self.tables],
        )

    def _table_set(self) -> embedding.TableSet:
        """The kernels' handle, made again when a tensor moved (``.to``, ``load_state_dict(assign=True)``)."""
        parts = self._modules  # not self.rows: Module.__getattr__ costs more than the check, which every call makes
        addresses = _core.addresses(parts["rows"]._buffers, parts["scale"]._buffers, parts["state"]._buffers)  # type: ignore[union-attr]
        if self._set is None or addresses != self._addresses:
            rows, scales, names, pooling, int4_dims = self._table_lists()
            states = [self.state.get(name) for name in names]
            self._set = embedding.TableSet(rows, scales, pooling, names, states, int4_dims)
            self._addresses = addresses
        return self._set

    def __deepcopy__(self, memo: dict[int, Any]) -> EmbeddingBags:
        twin = self.__class__.__new__(self.__class__)
        memo[id(self)] = twin
        twin.__dict__.update(copy.deepcopy({**self.__dict__, **_UNCOPIED}, memo))
        for table in self.tables:
            if table.place == "in_row":  # codes and scales were copied apart
                twin._put_rows(table)
                twin._copy_rows(table, self)
        return twin

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, **_UNCOPIED}

    def extra_repr(self) -> str:
        tables = ", ".join(f"{t.name}: {t.rows} x {t.dim} {t.dtype} {t.pooling}" for t in self.tables)
        return f"{tables}; optimizer={self.optimizer}, bounds={self.bounds}"


_CPU = torch.device("cpu")
_UNCOPIED: dict[str, Any] = {"_set": None, "_addresses": b"", "_device_ids": None}  # what names memory of one module
_CHUNK = 1 << 16  # rows encoded at a time: bounds the FP32 copy of a table in a narrower format


def _on_host(values: torch.Tensor, offsets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both on the CPU: those on a device in one copy, for which the host waits."""
    if values.is_cpu:
        return values, offsets
    values, offsets = torch.cat([values, offsets]).cpu().split([len(values), len(offsets)])
    return values, offsets
