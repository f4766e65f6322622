"""A fit on disk: ``windows.json`` (settings, keys, what belongs where) and the ``windows-*.safetensors`` it names."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from octavo._files import (
    content_hash,
    file_hash,
    locked,
    space_expected,
    sync_directory,
    temporary_directory,
    write_atomically,
)
from octavo.windows.calibration import Calibration
from octavo.windows.counts import Sparse
from octavo.windows.fitting import Fitted
from octavo.windows.grid import WindowsError

if TYPE_CHECKING:
    from octavo.windows.interpolator import PersonalizedInterpolator

VERSION = 2  # 1: standard errors without what the levels above contribute
META, _TRIES = "windows.json", 5
_BY_SEGMENT = ("segments", "weights", "own", "size", "ratio", "misfit", "drift", "spread", "kappa")


def save(fit: PersonalizedInterpolator, path: Path, overwrite: bool) -> Path:
    """Write ``path``; see :meth:`PersonalizedInterpolator.save`. What is there is replaced by the one rename of
    windows.json, which names its tensors: whoever reads, or is killed, at any time finds the old fit or the new."""
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path}: exists; give another path or overwrite=True")
    meta, tensors = _content(fit)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        with temporary_directory(path) as folder, space_expected(path):
            _write(folder, meta, tensors)
            folder.replace(path)
            sync_directory(path.parent)
        return path
    with locked(path / "save.lock"), space_expected(path):
        _write(path, meta, tensors)
        for left in (*path.glob("windows*.safetensors*"), *path.glob(f".{META}.tmp-*")):  # the old, and the killed's
            if left.name != meta["tensors"]:
                left.unlink()
    return path


def _write(folder: Path, meta: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    """Both files, the tensors first; ``meta`` learns their name."""
    from safetensors.numpy import save_file

    temporary = folder / f"windows.safetensors.tmp-{os.getpid()}"
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, temporary)
    with temporary.open("rb") as opened:
        os.fsync(opened.fileno())
    meta["tensors_sha256"] = file_hash(temporary)
    meta["tensors"] = f"windows-{meta['tensors_sha256'][:16]}.safetensors"
    temporary.replace(folder / meta["tensors"])
    meta["sha256"] = content_hash(meta)
    write_atomically(folder / META, json.dumps(meta, indent=1, allow_nan=False))
    sync_directory(folder)


def _content(fit: PersonalizedInterpolator) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    tensors: dict[str, np.ndarray] = {"keys/codes": fit._keys.codes}
    words: dict[str, list[str]] = {}
    for number, values in enumerate(fit._keys.values):
        if values is None:
            continue
        if pa.types.is_string(values.type):
            words[str(number)] = values.to_pylist()
        else:
            tensors[f"keys/{number}"] = np.asarray(values)
    for name, rows in (("outcomes", fit._outcomes), ("anchors", fit._anchors)):
        tensors |= {f"{name}/{part}": getattr(rows, part) for part in ("group", "bucket", "bin", "count")}
    meta: dict[str, Any] = {
        "version": VERSION,
        "settings": {**fit.settings, "shrink": _plain(fit.settings["shrink"])},
        "observed_until": fit.observed_until,
        "counts": fit.counts,
        "words": words,
        "families": None,
        "calibration": [],
    }
    if fit._fitted is not None:
        meta["families"] = list(fit._fitted.families)
        for name in _BY_SEGMENT:
            for number, value in enumerate(getattr(fit._fitted, name)):
                tensors[f"{name}/{number}"] = value
    if fit.calibration is not None:
        for window, (x, y) in fit.calibration.knots.items():
            meta["calibration"].append(window)
            tensors |= {f"calibration/{window}/x": x, f"calibration/{window}/y": y}
    return meta, tensors


def load(path: Path) -> PersonalizedInterpolator:
    """Read ``path``; see :meth:`PersonalizedInterpolator.load`."""
    from safetensors.numpy import load as from_bytes

    from octavo.windows.interpolator import PersonalizedInterpolator

    for _ in range(_TRIES):
        meta = _meta(path)
        try:
            content = (path / meta["tensors"]).read_bytes()
            break
        except FileNotFoundError:  # a save has replaced both since
            continue
    else:
        raise WindowsError(f"{path}: is damaged ({meta['tensors']} is missing); save the fit again")
    if hashlib.sha256(content).hexdigest() != meta["tensors_sha256"]:
        raise WindowsError(f"{path / meta['tensors']}: is damaged or of another fit; save the fit again")
    tensors = from_bytes(content)
    settings = {**meta["settings"]}
    settings["shrink"] = float("inf") if settings["shrink"] == "inf" else settings["shrink"]
    fit = PersonalizedInterpolator(**settings)
    fit.observed_until, fit.counts = meta["observed_until"], meta["counts"]
    fit._keys.codes = tensors["keys/codes"]
    for number in range(len(fit._keys.columns)):
        if str(number) in meta["words"]:
            fit._keys.values[number] = pa.array(meta["words"][str(number)], pa.string())
        elif f"keys/{number}" in tensors:
            fit._keys.values[number] = pa.array(tensors[f"keys/{number}"])
    for name in ("outcomes", "anchors"):
        setattr(fit, f"_{name}", Sparse(*(tensors[f"{name}/{part}"] for part in ("group", "bucket", "bin", "count"))))
    if meta["families"] is not None:
        segments = range(len(fit.grid.segments()))
        parts = {name: [tensors[f"{name}/{number}"] for number in segments] for name in _BY_SEGMENT}
        fit._fitted = Fitted(tuple(meta["families"]), **parts)
    if meta["calibration"]:
        knots = {w: (tensors[f"calibration/{w}/x"], tensors[f"calibration/{w}/y"]) for w in meta["calibration"]}
        fit.calibration = Calibration(knots)
    return fit


def _meta(path: Path) -> dict[str, Any]:
    try:
        meta = json.loads((path / META).read_text(encoding="utf-8"))
    except OSError as error:
        raise WindowsError(f"{path / META}: cannot be read ({error.strerror}); was it written by save?") from None
    except ValueError:
        raise WindowsError(f"{path / META}: is damaged; save the fit again") from None
    if not isinstance(meta, dict) or meta.get("version") != VERSION:
        found = meta.get("version") if isinstance(meta, dict) else None
        raise WindowsError(f"{path / META}: version {found!r}; this octavo reads {VERSION}")
    if meta.get("sha256") != content_hash(meta):
        raise WindowsError(f"{path}: is damaged (windows.json was changed); save the fit again")
    return meta


def _plain(shrink: Any) -> Any:
    return "inf" if shrink == float("inf") else shrink
