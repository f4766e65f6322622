"""What the tests of models share: a schema with everything in it, random events, and its tables read by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from training_support import demo_log

from octavo.config import ModelConfig, build_config
from octavo.data import Batch, Dense, EventLog, Label, Schema, Sparse, encode_events

SCHEMA = Schema(
    dense=(Dense("price"), Dense("age"), Dense("hour")),
    sparse=(Sparse("user", 11), Sparse("item", 13), Sparse("tags", 5, multi=True), Sparse("seller", 7)),
    sequences=(Sparse("history", 13, multi=True, table="item"), Sparse("queries", 6, multi=True)),
    labels=(Label("click"), Label("like"), Label("buy.7d")),
)
ONE_TASK = Schema(SCHEMA.dense, SCHEMA.sparse, SCHEMA.sequences, SCHEMA.labels[:1])
KINDS: dict[str, dict[str, Any]] = {
    "dlrm": {"bottom": [12], "top": [16, 9]},
    "dcnv2": {"cross_layers": 2, "deep": [16, 9]},
    "deepfm": {"deep": [16, 9]},
    "din": {"attention": [10, 6], "top": [16, 9]},
    "wukong": {"layers": 2, "fmb_tokens": 3, "lcb_tokens": 2, "rank": 4, "fmb": [10], "bottom": [12], "top": [16, 9]},
}


def model_config(kind: str, **changes: Any) -> ModelConfig:
    """A small model of ``kind``."""
    return build_config(
        {"model": {"kind": kind, "embedding_dim": 5, "table_init": 1.0, **KINDS[kind], **changes}}
    ).model


def events(count: int, seed: int = 0, schema: Schema = SCHEMA) -> Batch:
    """``count`` random events; some bags and histories are empty, some items missing."""
    rng = np.random.default_rng(seed)
    rows = {feature.name: feature.rows for feature in (*SCHEMA.sparse, *SCHEMA.sequences)}

    def ids(name: str, longest: int) -> list[int]:
        return rng.integers(0, rows[name], rng.integers(0, longest + 1)).tolist()

    drawn = [
        {
            "time": i,
            "id": i,
            **{feature.name: float(rng.normal()) for feature in SCHEMA.dense},
            "user": int(rng.integers(0, 11)),
            "item": None if rng.random() < 0.2 else int(rng.integers(0, 13)),
            "seller": int(rng.integers(0, 7)),
            "tags": ids("tags", 3),
            "history": ids("history", 6),
            "queries": ids("queries", 2),
            **{label.task: int(rng.integers(0, 2)) for label in SCHEMA.labels},
        }
        for i in range(count)
    ]
    return encode_events(schema, drawn)


@torch.no_grad()
def scramble(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """``model`` with every dense parameter drawn anew, norms' and biases' too, so that a forgotten one shows."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        parameter.normal_(0, 1 / max(parameter.shape[-1], 1) ** 0.5, generator=generator)
        if name.endswith("norm_weight") or "norm.weight" in name:
            parameter.add_(1)
    return model


def rows_of(model: torch.nn.Module, schema: Schema, batch: Batch, name: str, prefix: str = "embeddings") -> list[Any]:
    """Feature ``name``'s rows [n, D] float64 of each event, looked up one by one."""
    feature = next(f for f in (*schema.sparse, *schema.sequences) if f.name == name)
    wanted = f".rows.{feature.table or name}"
    state = model.state_dict()
    (key,) = [key for key in state if key.startswith(f"{prefix}.") and key.endswith(wanted)]
    table = state[key].double().numpy()
    if name in batch.sequences:
        bags, first = batch.sequences[name], 0
    else:
        bags, first = batch.sparse, [f.name for f in schema.sparse].index(name) * len(batch)
    offsets, values = bags.offsets.tolist(), bags.values.tolist()
    return [table[values[offsets[first + b] : offsets[first + b + 1]]] for b in range(len(batch))]


def pooled_of(model: torch.nn.Module, schema: Schema, batch: Batch, name: str, prefix: str = "embeddings") -> Any:
    """[B, D] float64: the sum of each event's rows."""
    return np.stack([rows.sum(0) for rows in rows_of(model, schema, batch, name, prefix)])


def demo_with_history(path: Path, count: int, longest: int = 10) -> EventLog:
    """The demo log with one column more: the user's last ``longest`` items before the event, which read the items'
    table.
    """
    demo = demo_log(path / "plain", count)
    columns = demo.columns(list(dict.fromkeys([*demo.schema.columns(), "_p_true"])))
    users, items = columns["user"].to_numpy(), columns["item"].to_numpy()
    seen: dict[int, list[int]] = {}
    histories = []
    for user, item in zip(users.tolist(), items.tolist(), strict=True):
        own = seen.setdefault(user, [])
        histories.append(own[-longest:])
        own.append(item)
    item = next(feature for feature in demo.schema.sparse if feature.name == "item")
    history = dataclasses.replace(item, name="history", multi=True, table="item")
    schema = dataclasses.replace(demo.schema, sequences=(history,))
    return EventLog.write(path / "history", schema, [columns.append_column("history", pa.array(histories))])
