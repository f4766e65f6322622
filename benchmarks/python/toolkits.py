"""FuxiCTR and RecBole at work: a log in their own formats (ids encoded before, no lists), and passes over it."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import harness
import numpy as np
import pyarrow as pa
import pyarrow.csv
import torch
from environments import Environment
from passes import Passes

from octavo.data import EventLog


def prepared(world: EventLog, path: Path, events: int, batch_size: int, lists: bool) -> EventLog:
    """The first events with their first outcome, with or without lists of ids."""
    schema = world.schema
    features = tuple(feature for feature in schema.sparse if lists or not feature.multi)
    kept = replace(schema, sparse=features, sequences=(), labels=schema.labels[:1])
    return EventLog.write(path, kept, [world.columns(kept.columns(), 0, events)], rows_per_group=8 * batch_size)


def encoded(log: EventLog, batch_size: int) -> pa.Table:
    """What models receive, one column a feature, and ``label``: the peers' files."""
    columns: dict[str, list[torch.Tensor]] = {}
    task = log.schema.tasks[0]
    for batch in log.batches(batch_size):
        parts = {f.name: batch.dense[:, at] for at, f in enumerate(log.schema.dense)}
        ids = batch.sparse.values.view(len(log.schema.sparse), -1)
        parts |= {f.name: ids[at] for at, f in enumerate(log.schema.sparse)}
        for name, part in {**parts, "label": batch.labels[task]}.items():
            columns.setdefault(name, []).append(part)
    return pa.table({name: torch.cat(parts).numpy() for name, parts in columns.items()})


def _write_atomic(table: pa.Table, folder: Path) -> None:
    """RecBole's format: tab-separated, a type behind every name."""
    folder.mkdir(parents=True)
    kinds = ["token" if pa.types.is_integer(field.type) else "float" for field in table.schema]
    with (folder / f"{folder.name}.inter").open("wb") as file:
        names = [f"{name}:{kind}" for name, kind in zip(table.column_names, kinds, strict=True)]
        file.write(("\t".join(names) + "\n").encode())
        options = pyarrow.csv.WriteOptions(include_header=False, delimiter="\t", quoting_style="none")
        pyarrow.csv.write_csv(table, file, options)


def write_toolkit_files(log: EventLog, folder: Path, batch_size: int) -> dict[str, Any]:
    """FuxiCTR's npz and RecBole's atomic file of ``log``; the settings that tell ``fuxictr_passes.py`` and
    ``recbole_passes.py`` where they are and what is in them."""
    table = encoded(log, batch_size)
    np.savez(folder / "encoded.npz", **{column: table.column(column).to_numpy() for column in table.column_names})
    _write_atomic(table, folder / "atomic" / "throughput")
    return {
        "dense": [f.name for f in log.schema.dense], "sparse": {f.name: f.rows for f in log.schema.sparse},
        "batch_size": batch_size, "threads": torch.get_num_threads(), "npz": str(folder / "encoded.npz"),
        "atomic": str(folder / "atomic"),
    }  # fmt: skip


def started(
    run: harness.Run, environment: Environment, settings: dict[str, Any], folder: Path, children: ExitStack
) -> Passes:
    """The toolkit's child process, which ends with ``children``. Raises ImportError where the toolkit is not there."""
    if reason := environment.missing(not run.is_smoke, f"{run.name}.py"):
        raise ImportError(reason)
    script = Path(__file__).resolve().with_name(f"{environment.name}_passes.py")
    return children.enter_context(Passes(environment.python, script, settings, folder))
