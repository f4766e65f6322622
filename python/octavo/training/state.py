"""What a model's state is made of: dense tensors, embedding tables with their slots, and imported state dicts."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from octavo import nn
from octavo.training.checkpoint import CheckpointError, TableState, chain_length


def table_states(model: torch.nn.Module) -> dict[str, TableState]:
    """Every embedding table below ``model`` as views of its memory: ``<module path>.<table>`` -> rows and slots."""
    tables: dict[str, TableState] = {}
    for path, module in _bags(model):
        for table in module.tables:
            rows = module.rows.get(table.name)
            assert rows is not None
            parts = {"state": module.state.get(table.name), "scale": module.scale.get(table.name)}
            slots = {slot: tensor for slot, tensor in parts.items() if tensor is not None}
            touched = module._touched.get(table.name)
            tables[f"{path}{table.name}"] = TableState(rows, slots, module.dynamic.get(table.name), touched)
    return tables


def dense_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The model's state dict without the embedding tables and the ids of dynamic ones, as views of its memory."""
    kinds = ("rows", "state", "scale", "ids")
    tables = tuple(f"{path}{kind}." for path, _ in _bags(model) for kind in kinds)
    state: dict[str, torch.Tensor] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        if not prefix.startswith(tables):
            module._save_to_state_dict(state, prefix, False)  # its own tensors; state_dict() would export every id
    return state


def _bags(model: torch.nn.Module) -> list[tuple[str, nn.EmbeddingBags]]:
    """The modules of tables, with the prefix of their names."""
    found = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.EmbeddingBags)]
    return [(f"{path}." if path else "", module) for path, module in found]


def set_table_lr(model: torch.nn.Module, lr: float) -> None:
    """The learning rate of every trained embedding table below ``model``."""
    for _, module in _bags(model):
        if module.optimizer is not None:
            module.lr = lr


class TableTracker:
    """What of a model's tables has changed since its last checkpoint, so that the next may be a difference to it.

    ``full_every`` n: every n-th checkpoint is whole, those between are differences to the one before; 1: nothing is
    tracked.
    """

    def __init__(self, model: torch.nn.Module, full_every: int) -> None:
        self._model, self._full_every = model, full_every
        self._last: Path | None = None
        if full_every > 1:
            for _, module in _bags(model):
                module.track_touched()

    def base(self) -> Path | None:
        """What the next checkpoint is a difference to; None: it must be whole."""
        if self._last is None or not self._last.is_dir() or chain_length(self._last) + 1 >= self._full_every:
            return None
        return self._last

    def changed(self) -> None:
        """The tables were replaced: the next checkpoint is whole."""
        self._last = None

    def saved(self, path: Path) -> None:
        """The model's tables are now as in the checkpoint ``path``, written or read."""
        if self._full_every == 1:
            return
        self._last = path
        for _, module in _bags(self._model):
            for touched in module.track_touched().values():
                touched.zero_()
            for dynamic in module.dynamic.values():
                dynamic.mark_saved()


def copy_dense(into: dict[str, torch.Tensor], source: dict[str, torch.Tensor], where: str) -> None:
    """Copy tensors by name; ``where`` is what errors call the source."""
    missing, extra = sorted(into.keys() - source.keys()), sorted(source.keys() - into.keys())
    if missing or extra:
        raise CheckpointError(
            f"{where}: the model's tensors differ: missing {missing or 'none'}, extra {extra or 'none'}"
        )
    with torch.no_grad():
        for name, target in into.items():
            if source[name].shape != target.shape:
                found, wanted = list(source[name].shape), list(target.shape)
                raise CheckpointError(f"{where}: tensor {name!r} has shape {found}, the model's has {wanted}")
            target.copy_(source[name])


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, torch.Tensor]:
    """The optimizer's state as ``<slot>/<parameter name>`` -> tensor. ``names`` follow the optimizer's order."""
    state: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    return {f"{slot}/{names[index]}": value for index, slots in state.items() for slot, value in slots.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, names: list[str], tensors: dict[str, torch.Tensor]) -> None:
    """The inverse of :func:`optimizer_tensors`. Tensors are cloned into memory that torch aligned."""
    numbers = {name: index for index, name in enumerate(names)}
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        slot, _, name = key.partition("/")
        if name not in numbers:
            raise CheckpointError(f"optimizer state for {name!r}, which the model does not have")
        state.setdefault(numbers[name], {})[slot] = value.clone()
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def load_state_dict(path: str | Path) -> dict[str, torch.Tensor]:
    """A plain state dict from a ``.safetensors`` file or a ``torch.save`` file, read without executing anything in it.

    Raises :class:`CheckpointError` for a damaged file, a pickle that needs code, or content that is not
    ``{name: tensor}``.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected a .safetensors file or one written by torch.save")
    try:
        content = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).split("\n")[0]
        raise CheckpointError(f"{path}: holds more than tensors ({reason}); save model.state_dict() alone") from error
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise CheckpointError(f"{path}: damaged or not a state dict ({reason}); export it again") from error
    wrong = next((k for k, v in content.items() if not isinstance(v, torch.Tensor)), None) if _is_dict(content) else ""
    if wrong is not None:
        found = f"{wrong!r} holds a {type(content[wrong]).__name__}" if wrong else f"a {type(content).__name__}"
        raise CheckpointError(f"{path}: expected {{name: tensor}}, found {found}; save model.state_dict() alone")
    return {str(name): tensor for name, tensor in content.items()}


def _is_dict(content: object) -> bool:
    return isinstance(content, dict)
