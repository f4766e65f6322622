"""Checkpoints: a directory with ``manifest.json`` and safetensors files, never half-written, verified when read.

Layout of ``step-00000300/``::

    manifest.json                      format, versions, meta (position, configuration, ...), size and sha256 per file
    <group>.safetensors                named tensors: dense parameters, optimizer state, RNG, metrics
    table-000.rows-0-65536.safetensors rows of one table: ids [n] int64, rows [n, D], slots.<name> [n, ...]

A table's files are row ranges, so a reader of any world size opens only the rows it owns. There is no pickle.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from octavo._files import content_hash, file_hash, sync_directory

FORMAT = 1
_STEP = re.compile(r"step-(\d{8,})")
_RANGE_BYTES = 256 << 20


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used: names the file, what was found, what to do."""


@dataclass(frozen=True)
class TableState:
    """One embedding table: ``rows`` [R, D] and the optimizer's ``slots``, each with R as its first dimension."""

    rows: torch.Tensor
    slots: Mapping[str, torch.Tensor] = field(default_factory=dict)


def write_checkpoint(
    root: Path,
    step: int,
    meta: Mapping[str, Any],
    groups: Mapping[str, Mapping[str, torch.Tensor]],
    tables: Mapping[str, TableState],
    keep: int,
    range_bytes: int = _RANGE_BYTES,
) -> Path:
    """Write ``root/step-<step>`` and remove all but the ``keep`` newest checkpoints. Returns the new directory.

    ``meta`` holds JSON values. Everything is written to a temporary directory, flushed to the disk and renamed, so a
    kill at any moment leaves either the whole checkpoint or none. ``range_bytes`` bounds a table file's rows.
    """
    root.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(root)
    final = root / f"step-{step:08d}"
    temporary = root / f".{final.name}.tmp-{os.getpid()}"
    temporary.mkdir()
    files: dict[str, dict[str, Any]] = {}
    for group, tensors in groups.items():
        name = f"{group}.safetensors"
        files[name] = _write_tensors(temporary / name, dict(tensors))
    table_entries = []
    for index, (table, state) in enumerate(tables.items()):
        count = state.rows.shape[0]
        per_file = max(1, range_bytes // max(1, state.rows[:1].nbytes)) if count else 1
        ranges = []
        for start in range(0, count, per_file):
            stop = min(count, start + per_file)
            name = f"table-{index:03d}.rows-{start}-{stop}.safetensors"
            tensors = {"ids": torch.arange(start, stop), "rows": state.rows[start:stop]}
            tensors |= {f"slots.{slot}": values[start:stop] for slot, values in state.slots.items()}
            files[name] = _write_tensors(temporary / name, tensors)
            ranges.append({"file": name, "start": start, "stop": stop})
        shape = [count, *state.rows.shape[1:]]
        table_entries.append({"name": table, "shape": shape, "slots": sorted(state.slots), "ranges": ranges})
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "step": step,
        "base": None,
        "meta": dict(meta),
        "groups": sorted(groups),
    }
    manifest |= {"tables": table_entries, "files": files}
    manifest["sha256"] = content_hash(manifest)
    with (temporary / "manifest.json").open("w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())
    sync_directory(temporary)
    if final.exists():
        _discard(final)
    temporary.rename(final)
    sync_directory(root)
    for old in list_checkpoints(root)[:-keep]:
        _discard(old)
    return final


def list_checkpoints(root: Path) -> list[Path]:
    """The complete checkpoints below ``root``, oldest first."""
    if not root.is_dir():
        return []
    found = [(int(match[1]), path) for path in root.iterdir() if (match := _STEP.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


class Checkpoint:
    """A checkpoint opened for reading: every file's size and SHA-256 are checked before anything is returned.

    Raises :class:`CheckpointError` when a file is missing, truncated, changed or of another format.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._manifest = self._read_manifest()
        for name, entry in self._manifest["files"].items():
            self._verify(name, entry)

    @property
    def step(self) -> int:
        return int(self._manifest["step"])

    @property
    def meta(self) -> dict[str, Any]:
        return dict(self._manifest["meta"])

    @property
    def tables(self) -> dict[str, tuple[int, ...]]:
        """Table name -> shape of its rows."""
        return {entry["name"]: tuple(entry["shape"]) for entry in self._manifest["tables"]}

    def group(self, name: str) -> dict[str, torch.Tensor]:
        """The named tensors of one group."""
        if name not in self._manifest["groups"]:
            known = ", ".join(self._manifest["groups"])
            raise CheckpointError(f"checkpoint {self.path}: has no group {name!r}; it holds {known}")
        return self._load(f"{name}.safetensors")

    def read_table(self, name: str, into: TableState) -> None:
        """Copy the rows and slots of one table into ``into``, file by file."""
        entry = next((e for e in self._manifest["tables"] if e["name"] == name), None)
        if entry is None:
            known = ", ".join(self.tables) or "none"
            raise CheckpointError(f"checkpoint {self.path}: has no table {name!r}; it holds {known}")
        if tuple(entry["shape"]) != tuple(into.rows.shape) or entry["slots"] != sorted(into.slots):
            found = f"{entry['shape']} with slots {entry['slots']}"
            wanted = f"{list(into.rows.shape)} with slots {sorted(into.slots)}"
            raise CheckpointError(f"checkpoint {self.path}: table {name!r} is {found}, the model's is {wanted}")
        with torch.no_grad():
            for part in entry["ranges"]:
                tensors = self._load(part["file"])
                ids = tensors["ids"]
                into.rows.index_copy_(0, ids, tensors["rows"].to(into.rows.dtype))
                for slot, values in into.slots.items():
                    values.index_copy_(0, ids, tensors[f"slots.{slot}"])

    def _read_manifest(self) -> dict[str, Any]:
        path = self.path / "manifest.json"
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CheckpointError(f"{path}: not found; is {self.path} a checkpoint (step-...)?") from None
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: damaged ({error}); {self._remedy()}") from None
        if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
            raise CheckpointError(f"{path}: damaged (not a checkpoint's manifest); {self._remedy()}")
        if manifest.get("format") != FORMAT:
            found = manifest.get("format")
            raise CheckpointError(
                f"{path}: format {found!r}, this octavo reads format {FORMAT}; use the one it is from"
            )
        if manifest.get("sha256") != content_hash(manifest):
            raise CheckpointError(f"{path}: damaged (its content does not match its own sha256); {self._remedy()}")
        return manifest

    def _verify(self, name: str, entry: Mapping[str, Any]) -> None:
        path = self.path / name
        if not path.is_file():
            raise CheckpointError(f"{path}: missing from the checkpoint; {self._remedy()}")
        size = path.stat().st_size
        if size != entry["bytes"]:
            raise CheckpointError(f"{path}: damaged: {size} bytes, {entry['bytes']} were written; {self._remedy()}")
        digest = file_hash(path)
        if digest != entry["sha256"]:
            found, wanted = digest[:12], str(entry["sha256"])[:12]
            raise CheckpointError(f"{path}: damaged: sha256 {found}..., {wanted}... was written; {self._remedy()}")

    def _load(self, name: str) -> dict[str, torch.Tensor]:
        path = self.path / name
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: cannot be read ({error}); {self._remedy()}") from error

    def _remedy(self) -> str:
        others = [path for path in list_checkpoints(self.path.parent) if path.name < self.path.name]
        then = f"to resume from {others[-1].name}" if others else "and start the run again"
        return f"delete {self.path} {then}"


def _write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return {"bytes": path.stat().st_size, "sha256": file_hash(path)}


def _discard(path: Path) -> None:
    """Rename first, so that a kill while deleting never leaves a directory that looks like a checkpoint."""
    trash = path.with_name(f".{path.name}.tmp-old-{os.getpid()}")
    path.rename(trash)
    shutil.rmtree(trash)


def _remove_leftovers(root: Path) -> None:
    for path in root.glob(".step-*.tmp-*"):
        shutil.rmtree(path, ignore_errors=True)
