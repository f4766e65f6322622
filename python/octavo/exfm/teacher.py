"""Teachers: what they are asked, the snapshots they are published as, and what is made of their answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch

from octavo import models
from octavo.config import AnyModelConfig, RunConfig, build_config
from octavo.data import Batch, Schema
from octavo.ops.dispatch import Plan
from octavo.store import Records
from octavo.training import numerics
from octavo.training.checkpoint import Checkpoint, write_checkpoint
from octavo.training.state import copy_dense, dense_state, table_states

_EVENTS_AT_ONCE = 1024  # a DCN-V2 took 1.3 times as long for 16,384 at once


class TeacherError(RuntimeError):
    """A teacher that cannot be asked, or whose answer is not one: says which, and what to do."""


class Teacher(Protocol):
    """What answers for a batch: logits [B] by task, and an embedding [B, D] or None."""

    def __call__(self, batch: Batch) -> tuple[Mapping[str, torch.Tensor], torch.Tensor | None]:
        """In evaluation mode, without gradients."""


class RankerTeacher:
    """A model of :mod:`octavo.models` (or any with ``embed`` and ``logits``) as a teacher."""

    def __init__(self, model: torch.nn.Module, embeddings: bool = False) -> None:
        self.model, self.embeddings = model.eval(), embeddings

    def __call__(self, batch: Batch) -> tuple[Mapping[str, torch.Tensor], torch.Tensor | None]:
        """Logits, and embeddings where they are wanted."""
        with torch.inference_mode():
            if not self.embeddings:
                return self.model(batch), None
            embedding: torch.Tensor = self.model.embed(batch)  # type: ignore[operator]
            return self.model.logits(embedding), embedding  # type: ignore[operator]


def write_snapshot(
    root: Path, number: int, model: models.Ranker, config: AnyModelConfig, schema: Schema, embeddings: bool,
    plan: Plan | None,
) -> tuple[Path, str]:  # fmt: skip
    """A snapshot of ``model`` below ``root``, whole or absent: its path, and a hash of its content, which is the same
    for the same model under whatever number."""
    meta = {
        "model": config.model_dump(mode="json"),
        "schema": schema.to_json(),
        "embeddings": embeddings,
        "plan": None if plan is None else plan.to_json(),
    }
    path = write_checkpoint(root, number, meta, {"dense": dense_state(model)}, table_states(model), keep=1 << 30)
    return path, Checkpoint(path).content_sha256


def load_snapshot(path: Path, sha256: str) -> RankerTeacher:
    """The teacher of a published version, under its plan. Raises :class:`octavo.training.CheckpointError` for a damaged
    one and :class:`TeacherError` for one that is not what was published."""
    checkpoint = Checkpoint(path)
    if checkpoint.content_sha256 != sha256:
        raise TeacherError(f"{path}: is not the snapshot that was published; restore it")
    meta = checkpoint.meta
    config: RunConfig = build_config({"model": meta["model"]})
    model = models.build(Schema.from_json(meta["schema"], where=str(path)), config.model)
    copy_dense(dense_state(model), checkpoint.group("dense"), str(path))
    for name, table in table_states(model).items():
        checkpoint.read_table(name, table)
    if meta["plan"] is not None:
        numerics.follow(model, Plan.from_json(meta["plan"]))
    return RankerTeacher(model, meta["embeddings"])


def answer(
    teacher: Teacher, batch: Batch, tasks: Sequence[str], dim: int | None, version: int, age: torch.Tensor
) -> Records:
    """What ``teacher`` says of a batch, as records written at the events' time; it is asked about 1,024 at once. Events
    of which it says nothing finite, or whose embedding is not finite, have version 0; ``age`` [B] ms. Raises
    :class:`TeacherError` for logits or embeddings of the wrong shape.
    """
    parts = [
        _asked(teacher, batch.rows(begin, min(begin + _EVENTS_AT_ONCE, len(batch))), tasks, dim)
        for begin in range(0, len(batch), _EVENTS_AT_ONCE)
    ]
    said = {task: torch.cat([logits[task] for logits, _ in parts]) for task in tasks}
    for z in said.values():
        z[~z.isfinite()] = float("nan")
    silent = torch.stack([z.isnan() for z in said.values()]).all(0)
    embedding = None
    if dim is not None:
        embedding = torch.cat([rows for _, rows in parts if rows is not None])
        silent |= ~embedding.isfinite().all(1)
        embedding[silent] = float("nan")
    for z in said.values():
        z[silent] = float("nan")
    return Records(
        key=batch.id,
        logits=said,
        version=torch.full((len(batch),), version).masked_fill(silent, 0),
        written=batch.time,
        lag=age.masked_fill(silent, 0),
        embedding=embedding,
    )


def _asked(
    teacher: Teacher, batch: Batch, tasks: Sequence[str], dim: int | None
) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
    """The answer to one batch in FP32: logits by task, and the embedding where there is to be one."""
    logits, embedding = teacher(batch)
    absent = [task for task in tasks if task not in logits]
    if absent:
        raise TeacherError(f"teacher: gave no logits of {absent[0]!r}, only of {', '.join(logits) or 'nothing'}")
    said = {task: _expected(logits[task], (len(batch),), f"logits of {task!r}") for task in tasks}
    if dim is None:
        return said, None
    if embedding is None:
        raise TeacherError(f"teacher: gave no embedding; its versions have {dim} numbers")
    return said, _expected(embedding, (len(batch), dim), "embedding")


def _expected(found: torch.Tensor, shape: tuple[int, ...], what: str) -> torch.Tensor:
    if tuple(found.shape) != shape:
        raise TeacherError(f"teacher: gave {what} of shape {list(found.shape)}, expected {list(shape)}")
    return found.detach().float()
