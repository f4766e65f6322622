"""Memory of embedding tables: tensors by table name, on huge pages."""

from __future__ import annotations

from typing import Any

import torch

from octavo import _core


class TableTensors(torch.nn.Module):
    """Tensors by table name, in the state dict and moved by ``.to(device)``; their dtype is the table's own."""

    def put(self, name: str, tensor: torch.Tensor) -> None:
        self._buffers[name] = tensor  # not register_buffer: a table may be called 'type' or 'state'

    def get(self, name: str) -> torch.Tensor | None:
        return self._buffers.get(name)

    def _apply(self, fn: Any, recurse: bool = True) -> TableTensors:
        for name, tensor in self._buffers.items():
            assert tensor is not None
            moved = fn(tensor)
            self._buffers[name] = moved if moved.dtype == tensor.dtype else tensor.to(moved.device)
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, tensor in self._buffers.items():
            assert tensor is not None
            destination[prefix + name] = apart(destination[prefix + name])

    def __getstate__(self) -> dict[str, Any]:
        buffers = {name: None if t is None else apart(t) for name, t in self._buffers.items()}
        return {**self.__dict__, "_buffers": buffers}

    def __deepcopy__(self, memo: dict[int, Any]) -> TableTensors:
        twin = TableTensors()
        memo[id(self)] = twin
        for name, tensor in self._buffers.items():
            assert tensor is not None
            twin.put(name, allocate(tuple(tensor.shape), tensor.dtype, tensor.device).copy_(tensor))
        return twin.train(self.training)


def put_rows(into: torch.Tensor | None, places: torch.Tensor, rows: torch.Tensor | None) -> None:
    """into[places] = rows, for element types that torch cannot index too."""
    if into is None or rows is None:
        return
    if into.element_size() == 1:
        into, rows = into.view(torch.uint8), rows.view(torch.uint8)
    into.index_copy_(0, sent(places, into.device), sent(rows, into.device))


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """``tensor`` on ``device``, in the order of its current stream: the host waits for no device that it sends to."""
    if tensor.device == device:
        return tensor
    if device.type != "cuda":
        return tensor.to(device)
    return (tensor.pin_memory() if tensor.is_cpu else tensor).to(device, non_blocking=True)


def zeros(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Zeros on pages that the system hands out when they are first written."""
    tensor = torch.zeros(shape, dtype=dtype)
    _core.advise_huge_pages(tensor.data_ptr(), tensor.numel() * tensor.element_size())
    return tensor


def allocate(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str = "cpu") -> torch.Tensor:
    """Uninitialised memory, on transparent huge pages where the system grants them."""
    tensor = torch.empty(shape, dtype=dtype, device=device)
    if tensor.is_cpu:
        _core.advise_huge_pages(tensor.data_ptr(), tensor.numel() * tensor.element_size())
    return tensor


def apart(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that shares no memory with one of another type (codes and scales of a row), which torch.save refuses."""
    alone = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if alone else tensor.clone(memory_format=torch.contiguous_format)
