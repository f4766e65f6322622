"""Checkpoints: a directory with ``manifest.json`` and safetensors files, never half-written, verified when read.

Layout of ``step-00000300/``::

    manifest.json                      format, versions, meta (position, configuration, ...), size and sha256 per file
    <group>.safetensors                named tensors: dense parameters, optimizer state, RNG, metrics
    table-000.rows-0-65536.safetensors rows of one table: ids [n] int64, rows [n, D], slots.<name> [n, ...]
    table-000.ids.safetensors          of a dynamic table: sightings, and in a difference freed and erased

A table's files are row ranges, so a reader of any world size opens only the rows it owns. In a dynamic table's, ``ids``
are 64-bit ids, beside ``places`` (row numbers), ``last_seen`` and ``scores``: an id's row, optimizer slots and history
stand under one key, and come and go together. There is no pickle.

A checkpoint may be a difference: it holds the rows touched since its ``base``, which the manifest names with its
sha256, and for dynamic tables the places (``freed``) and ids (``erased``) that are gone. The rest is read from the
base.
"""

from __future__ import annotations

import glob
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from octavo._files import content_hash, file_hash, sync_directory
from octavo.training.checkpoint_tables import CheckpointError, TableReader, TableRows, TableState, write_table

__all__ = ["Checkpoint", "CheckpointError", "TableRows", "TableState", "chain_length", "list_checkpoints",
           "write_checkpoint"]  # fmt: skip

FORMAT = 2
_STEP = re.compile(r"step-(\d{8,})")
_RANGE_BYTES = 256 << 20
_T = TypeVar("_T")


def write_checkpoint(
    root: Path,
    step: int,
    meta: Mapping[str, Any],
    groups: Mapping[str, Mapping[str, torch.Tensor]],
    tables: Mapping[str, TableState],
    keep: int,
    range_bytes: int = _RANGE_BYTES,
    base: Path | None = None,
) -> Path:
    """Write ``root/step-<step>`` and remove all but the ``keep`` newest checkpoints and those they are differences to.
    Returns the new directory.

    ``meta`` holds JSON values. Everything is written to a temporary directory, flushed to the disk and renamed, so a
    kill at any moment leaves either the whole checkpoint or none. ``range_bytes`` bounds a table file's rows.

    ``base``: an earlier checkpoint in ``root`` since which the tables' ``touched`` tell changes; of these tables only
    such rows are written. Raises :class:`CheckpointError` when it is not there or not earlier, and when the disk takes
    no more. A checkpoint of the same step is replaced, and those that were differences to it go.
    """
    root.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(root)
    final = root / f"step-{step:08d}"
    before = None if base is None else _base_manifest(base, root, step)
    temporary = root / f".{final.name}.tmp-{os.getpid()}"
    header = {
        "format": FORMAT,
        "step": step,
        "base": None if base is None or before is None else {"name": base.name, "sha256": before["sha256"]},
        "chain": 0 if before is None else before["chain"] + 1,
        "meta": dict(meta),
        "groups": sorted(groups),
    }
    shapes = {} if before is None else {entry["name"]: entry["shape"] for entry in before["tables"]}
    try:
        temporary.mkdir()
        _write_files(temporary, header, groups, tables, shapes, range_bytes)
    except (SafetensorError, OSError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            f"{final}: cannot be written ({error}); earlier checkpoints are whole: make room, then resume"
        ) from error
    if final.exists():
        for path in reversed(list_checkpoints(root)):
            if path == final or final in _bases(path):
                discard(path)
    temporary.rename(final)
    sync_directory(root)
    found = list_checkpoints(root)
    needed = {base for path in found[-keep:] for base in _bases(path)}
    for old in reversed(found[:-keep]):  # differences before their bases
        if old not in needed:
            discard(old)
    return final


def _write_files(
    folder: Path,
    header: Mapping[str, Any],
    groups: Mapping[str, Mapping[str, torch.Tensor]],
    tables: Mapping[str, TableState],
    shapes: Mapping[str, Any],
    range_bytes: int,
) -> None:
    """Every file, then the manifest, on the disk. ``shapes``: of the base's tables."""
    files: dict[str, dict[str, Any]] = {}

    def write(name: str, tensors: Mapping[str, torch.Tensor]) -> None:
        files[name] = _write_tensors(folder / name, tensors)

    for group, tensors in groups.items():
        write(f"{group}.safetensors", tensors)
    table_entries = []
    for index, (table, state) in enumerate(tables.items()):
        whole = state.touched is None or shapes.get(table) != list(state.rows.shape)
        table_entries.append(write_table(write, f"table-{index:03d}", table, state, range_bytes, whole))
    manifest = {**header, "tables": table_entries, "files": files}
    manifest["sha256"] = content_hash(manifest)
    with (folder / "manifest.json").open("w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())
    sync_directory(folder)


def chain_length(path: Path) -> int:
    """How many checkpoints ``path`` needs besides itself."""
    return len(_bases(path))


def _base_manifest(base: Path, root: Path, step: int) -> dict[str, Any]:
    manifest = _peek(base) if base.parent == root else {}
    if "sha256" not in manifest:
        raise CheckpointError(f"base: {base} is no checkpoint in {root}; write a whole one (base=None)")
    if manifest.get("format") != FORMAT or manifest["step"] >= step:
        found = f"format {manifest.get('format')}, step {manifest['step']}"
        raise CheckpointError(f"base: {base} is of {found}; a difference at step {step} needs an earlier of {FORMAT}")
    return manifest


def _peek(path: Path) -> dict[str, Any]:
    """A manifest unverified; empty when it cannot be read."""
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def _bases(path: Path) -> list[Path]:
    """The checkpoints that ``path`` is a difference to, directly or not, nearest first."""
    found: list[Path] = []
    while (base := _peek(path).get("base")) and path.with_name(base["name"]) not in found:
        path = path.with_name(base["name"])
        found.append(path)
    return found


def list_checkpoints(root: Path) -> list[Path]:
    """The complete checkpoints below ``root``, oldest first."""
    if not root.is_dir():
        return []
    found = [(int(match[1]), path) for path in root.iterdir() if (match := _STEP.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


class Checkpoint:
    """A checkpoint opened for reading: every file's size and SHA-256 are checked before anything is returned, those of
    the checkpoints it is a difference to as well.

    Raises :class:`CheckpointError` when a file is missing, truncated, changed or of another format.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._manifest = self._read_manifest()
        for name, entry in self._manifest["files"].items():
            self._verify(name, entry)
        self.base = self._open_base()

    @property
    def step(self) -> int:
        return int(self._manifest["step"])

    @property
    def meta(self) -> dict[str, Any]:
        return dict(self._manifest["meta"])

    @property
    def sha256(self) -> str:
        """A hash over all that it holds (hex)."""
        return str(self._manifest["sha256"])

    @property
    def content_sha256(self) -> str:
        """A hash over what it holds (hex), whatever its step: equal for two checkpoints of the same meta and tensors,
        and the same base."""
        held = {key: value for key, value in self._manifest.items() if key not in ("step", "sha256")}
        return content_hash(held)

    @property
    def tables(self) -> dict[str, tuple[int, ...]]:
        """Table name -> shape of its rows."""
        return {entry["name"]: tuple(entry["shape"]) for entry in self._manifest["tables"]}

    @property
    def groups(self) -> tuple[str, ...]:
        """The names of the groups it holds."""
        return tuple(self._manifest["groups"])

    def group(self, name: str) -> dict[str, torch.Tensor]:
        """The named tensors of one group."""
        if name not in self._manifest["groups"]:
            known = ", ".join(self._manifest["groups"])
            raise CheckpointError(f"checkpoint {self.path}: has no group {name!r}; it holds {known}")
        return self._load(f"{name}.safetensors")

    def read_table(self, name: str, into: TableState) -> None:
        """Make ``into`` the table ``name``, file by file. A dynamic table may have another number of rows: ids keep
        their rows where it has those. Raises :class:`CheckpointError` for another shape, or too few rows for its ids.
        """
        self._reading(lambda: self._table(name).restore(into))

    def read_rows(self, name: str, start: int, stop: int) -> TableRows:
        """Rows [start, stop) of the table ``name`` with their slots; of a dynamic table those that hold an id, and row
        0. Opens only the files that hold such rows."""
        return self._reading(lambda: self._table(name).read(start, stop))

    def erased_ids(self, name: str) -> torch.Tensor:
        """Ids that the dynamic table ``name`` held in the base and holds no more; none in a whole checkpoint."""
        entry = self._table(name).entry
        if "dynamic" not in entry or entry["whole"]:
            return torch.empty(0, dtype=torch.int64)
        return self._load(entry["dynamic"]["file"])["erased"]

    def _table(self, name: str) -> TableReader:
        layers = []
        layer: Checkpoint | None = self
        while layer is not None:
            entry = next((e for e in layer._manifest["tables"] if e["name"] == name), None)
            if entry is not None:
                layers.append((layer.path, entry))
            layer = layer.base
        if not layers or layers[0][0] != self.path:
            known = ", ".join(self.tables) or "none"
            raise CheckpointError(f"checkpoint {self.path}: has no table {name!r}; it holds {known}")
        return TableReader(f"checkpoint {self.path}: table {name!r}", layers)

    def _reading(self, work: Callable[[], _T]) -> _T:
        try:
            return work()
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"checkpoint {self.path}: cannot be read ({error}); {self._remedy()}") from error

    def _open_base(self) -> Checkpoint | None:
        named = self._manifest.get("base")
        if named is None:
            return None
        path = self.path.with_name(named["name"])
        if not path.is_dir():
            raise CheckpointError(f"{self.path}: is a difference to {path}, which is missing; {self._remedy()}")
        base = Checkpoint(path)
        if base._manifest["sha256"] != named["sha256"] or base.step >= self.step:
            raise CheckpointError(f"{self.path}: is a difference to another {path.name}; {self._remedy()}")
        return base

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


def discard(path: Path) -> None:
    """Delete a directory, if it is there, and what a kill left of an earlier try. Renamed first, so that a kill never
    leaves a part of a checkpoint, or of a run's checkpoints, that looks whole."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.tmp-old-*"):
        shutil.rmtree(left, ignore_errors=True)
    if path.exists():
        trash = path.with_name(f".{path.name}.tmp-old-{os.getpid()}")
        path.rename(trash)
        shutil.rmtree(trash)


def _remove_leftovers(root: Path) -> None:
    for path in root.glob(".step-*.tmp-*"):
        shutil.rmtree(path, ignore_errors=True)
