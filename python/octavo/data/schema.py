"""What the columns of an event log mean: features with their transforms, labels, ids, time."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from octavo.data import transforms as transform_room
from octavo.data.durations import parse_duration
from octavo.data.errors import DataError
from octavo.data.transforms import Transform

FORMAT = 1
ENCODINGS = ("index", "hash", "hash_text", "vocabulary", "dynamic", "dynamic_text")


@dataclass(frozen=True)
class Dense:
    """One number per event, from the column of the same name.

    The raw number is rounded to float32 first (so it does not matter how a file stores it), then transformed in
    float64. ``missing`` stands in for a null or nan, before the transforms; without it a null is an error.
    """

    name: str
    transforms: tuple[Transform, ...] = ()
    missing: float | None = None

    def __post_init__(self) -> None:
        if self.missing is not None:
            object.__setattr__(self, "missing", float(self.missing))
            if not math.isfinite(float(self.missing)):
                raise DataError(f"dense feature {self.name!r}: expected a finite missing, found {self.missing}")


@dataclass(frozen=True)
class Sparse:
    """A bag of ids per event, each in 0 .. rows-1 (dynamic ones: any), from the column of the same name; a null is an
    empty bag.

    ``encoding``:

    * ``index``: integers that already are ids; one out of range is an error
    * ``hash``: 64-bit integers; id = splitmix64(integer) mod rows
    * ``hash_text``: text; id = splitmix64(key) mod rows, key = its UTF-8's 8-byte BLAKE2b digest, little endian
    * ``vocabulary``: text; id = 1 + position in ``vocabulary``, 0 for any other word
    * ``dynamic``: 64-bit integers, which are the ids: the table learns which there are, and holds ``rows`` at most
    * ``dynamic_text``: the same for text; id = hash_text's key as a signed integer

    ``multi``: the column holds lists. ``table``: the sparse feature whose embedding table this one reads too, as a
    history of items reads the items' (both must turn a value into the same id); None = a table of its own.
    """

    name: str
    rows: int = 0
    encoding: Literal["index", "hash", "hash_text", "vocabulary", "dynamic", "dynamic_text"] = "index"
    vocabulary: tuple[str, ...] = ()
    multi: bool = False
    table: str | None = None

    @property
    def dynamic(self) -> bool:
        """Whether ids are not rows: the table finds the row of each."""
        return self.encoding.startswith("dynamic")

    @property
    def of_text(self) -> bool:
        """Whether raw values are words."""
        return self.encoding in ("hash_text", "vocabulary", "dynamic_text")

    def __post_init__(self) -> None:
        where = f"sparse feature {self.name!r}"
        if self.encoding not in ENCODINGS:
            raise DataError(f"{where}: unknown encoding {self.encoding!r}; expected one of {', '.join(ENCODINGS)}")
        if self.encoding == "vocabulary":
            if not self.vocabulary or len(set(self.vocabulary)) != len(self.vocabulary):
                raise DataError(f"{where}: expected a vocabulary of distinct words, found {len(self.vocabulary)} words")
            if self.rows not in (0, len(self.vocabulary) + 1):
                raise DataError(f"{where}: rows follows from the vocabulary ({len(self.vocabulary) + 1}); leave it out")
            object.__setattr__(self, "rows", len(self.vocabulary) + 1)
        elif self.vocabulary:
            raise DataError(f"{where}: a vocabulary means nothing for encoding={self.encoding}; remove it")
        if self.rows < 1:
            raise DataError(f"{where}: expected rows >= 1, found {self.rows}")


@dataclass(frozen=True)
class Label:
    """A task: its 0/1 outcome in the column of the same name (null = not known) and, optionally, the column that holds
    the outcome's delay in seconds after the event (null = not yet).

    ``windows``, such as ``("1d", "7d")``: a head for each, ``task@1d`` and ``task@7d``, whose label is whether the
    outcome came at most that long after its anchor. ``anchor``: the task whose outcome starts the clock (a conversion's
    click), which has a delay; None = the event itself. Where the anchor never came the label is 0.
    """

    task: str
    delay: str | None = None
    anchor: str | None = None
    windows: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        where = f"label {self.task!r}"
        if self.windows and self.delay is None:
            raise DataError(f"{where}: windows need delay, the column with the outcome's delay")
        if self.anchor is not None and not self.windows:
            raise DataError(f"{where}: an anchor starts the clock of windows; give windows too")
        if len({0, *self.windows_ms}) != 1 + len(self.windows):
            raise DataError(f"{where}: windows {', '.join(self.windows)}: expected distinct ones above 0")

    @property
    def windows_ms(self) -> tuple[int, ...]:
        return tuple(parse_duration(window, f"label {self.task!r}: windows") for window in self.windows)

    @property
    def heads(self) -> tuple[str, ...]:
        """What a model predicts: the task, or one head a window."""
        return tuple(f"{self.task}@{window}" for window in self.windows) or (self.task,)


@dataclass(frozen=True)
class Schema:
    """The meaning of an event log's columns. ``time`` is ms since 1970 and sorts the log; ``id`` names the event.

    ``user``, ``item``, ``request``, ``domain`` name integer columns, ``weight`` a float column; None = there is none.
    ``sequences`` are multi-valued sparse features whose order matters; they stay out of the feature-major ``sparse``.
    """

    dense: tuple[Dense, ...] = ()
    sparse: tuple[Sparse, ...] = ()
    sequences: tuple[Sparse, ...] = ()
    labels: tuple[Label, ...] = ()
    time: str = "time"
    id: str = "id"
    user: str | None = None
    item: str | None = None
    request: str | None = None
    domain: str | None = None
    weight: str | None = None

    def __post_init__(self) -> None:
        for group in ("dense", "sparse", "sequences"):
            _expect_distinct(group, [feature.name for feature in getattr(self, group)])
        _expect_distinct("labels", self.tasks)
        for sequence in self.sequences:
            if not sequence.multi:
                raise DataError(f"sequence {sequence.name!r}: expected multi=True, found a single-valued feature")
        for feature in (*self.sparse, *self.sequences):
            _expect_table(feature, self.sparse)
        _expect_anchors(self.labels)
        inputs = self._features()
        for label in self.labels:
            leak = next((name for name in (label.task, label.delay) if name in inputs), None)
            if leak is not None:
                raise DataError(f"labels: column {leak!r} is also a feature; a model would read the answer")

    @property
    def tasks(self) -> list[str]:
        return [label.task for label in self.labels]

    @property
    def heads(self) -> list[str]:
        """What a model predicts, in the order of the labels: a task without windows, or ``task@window``."""
        return [head for label in self.labels for head in label.heads]

    def label(self, task: str) -> Label:
        """The label of a task. Raises KeyError for one that is not declared."""
        return {label.task: label for label in self.labels}[task]

    def wait_ms(self, head: str) -> int | None:
        """How long after the event a head's label is known for certain: its anchor's longest wait and its window. None:
        there is no such time, as for an outcome without a window."""
        for label in self.labels:
            if head in label.heads:
                return self._wait_ms(label, label.heads.index(head))
        raise KeyError(head)

    def _wait_ms(self, label: Label, window: int | None) -> int | None:
        """``window``: its number; None = the longest."""
        if label.delay is None:
            return 0
        if not label.windows:
            return None
        before = 0 if label.anchor is None else self._wait_ms(self.label(label.anchor), None)
        spans = label.windows_ms
        return None if before is None else before + (max(spans) if window is None else spans[window])

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the canonical JSON: equal schemas, equal fingerprints."""
        canonical = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(canonical.encode("utf-8")).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values that :meth:`from_json` reads back to an equal schema."""
        value: dict[str, Any] = {"format": FORMAT, **asdict(self)}
        for entry, feature in zip(value["dense"], self.dense, strict=True):
            entry["transforms"] = [transform_room.to_json(transform) for transform in feature.transforms]
        for entry in (*value["sparse"], *value["sequences"]):
            if entry["table"] is None:  # as schemas were written before tables could be shared: the same fingerprint
                del entry["table"]
        for entry in value["labels"]:
            if not entry["windows"]:
                del entry["windows"], entry["anchor"]
        plain: dict[str, Any] = json.loads(json.dumps(value, allow_nan=False))
        return plain

    @classmethod
    def from_json(cls, value: Mapping[str, Any], where: str = "schema") -> Schema:
        """Raises :class:`DataError`, which starts with ``where``, for anything :meth:`to_json` does not write."""
        if not isinstance(value, Mapping):
            raise DataError(f"{where}: expected an object, found {type(value).__name__}")
        if value.get("format") != FORMAT:
            raise DataError(f"{where}: schema format {value.get('format')!r}; this octavo reads format {FORMAT}")
        rest = {key: entry for key, entry in value.items() if key != "format"}
        try:
            groups: dict[str, Any] = {
                "dense": tuple(_dense(entry, where) for entry in rest.pop("dense", ())),
                "sparse": tuple(_sparse(entry, where) for entry in rest.pop("sparse", ())),
                "sequences": tuple(_sparse(entry, where) for entry in rest.pop("sequences", ())),
                "labels": tuple(_label(entry, where) for entry in rest.pop("labels", ())),
            }
            schema: Schema = _build(cls, {**rest, **groups}, where)
        except DataError:
            raise
        except (TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{where}: not a schema ({' '.join(str(error).split())})") from None
        return schema

    @classmethod
    def from_yaml(cls, path: str | Path) -> Schema:
        """The schema of a YAML file or of a shipped name. Raises :class:`DataError` that names file and key."""
        from octavo.data.schema_file import load_schema  # it reads schemas

        return load_schema(path)[0]

    def to_yaml(self, path: str | Path) -> None:
        """Write what :meth:`from_yaml` reads, without what is usual. Atomic."""
        from octavo.data.schema_file import save_schema

        save_schema(self, path)

    def _features(self) -> list[str]:
        return [f.name for f in self.dense] + [f.name for f in (*self.sparse, *self.sequences)]

    def columns(self) -> list[str]:
        """Every column the schema reads, without duplicates."""
        names = [self.time, self.id]
        names += [name for name in (self.user, self.item, self.request, self.domain, self.weight) if name is not None]
        names += self._features()
        for label in self.labels:
            names += [label.task] if label.delay is None else [label.task, label.delay]
        return list(dict.fromkeys(names))


def _dense(entry: Mapping[str, Any], where: str) -> Dense:
    name = entry.get("name")
    steps = tuple(transform_room.from_json(step, f"{where}: dense feature {name!r}") for step in entry["transforms"])
    feature: Dense = _build(Dense, {**entry, "transforms": steps}, where)
    return feature


def _sparse(entry: Mapping[str, Any], where: str) -> Sparse:
    feature: Sparse = _build(Sparse, {**entry, "vocabulary": tuple(entry["vocabulary"])}, where)
    return feature


def _label(entry: Mapping[str, Any], where: str) -> Label:
    label: Label = _build(Label, {**entry, "windows": tuple(entry.get("windows", ()))}, where)
    return label


def _build(cls: Any, values: Mapping[str, Any], where: str) -> Any:
    unknown = sorted(values.keys() - {field.name for field in fields(cls)})
    if unknown:
        raise DataError(f"{where}: {cls.__name__} has no key {unknown[0]!r}; was it written by a newer octavo?")
    return cls(**values)


def _expect_table(feature: Sparse, sparse: tuple[Sparse, ...]) -> None:
    """A shared table belongs to a sparse feature, and equal values are the same row of it."""
    if feature.table is None:
        return
    where = f"feature {feature.name!r}: table {feature.table!r}"
    owner = next((other for other in sparse if other.name == feature.table and other is not feature), None)
    if owner is None:
        others = ", ".join(other.name for other in sparse if other is not feature) or "none"
        raise DataError(f"{where} is not another sparse feature; expected one of: {others}")
    if owner.table is not None:
        raise DataError(f"{where} is itself shared; name its owner, {owner.table!r}")
    for key in ("encoding", "rows", "vocabulary"):
        if getattr(feature, key) != getattr(owner, key):
            raise DataError(f"{where} has another {key}; features that share a table need the same one")


def _expect_anchors(labels: tuple[Label, ...]) -> None:
    """Anchors are other tasks with delays, and lead to the event."""
    by_task = {label.task: label for label in labels}
    for label in labels:
        seen = [label.task]
        while (anchor := by_task[seen[-1]].anchor) is not None:
            where = f"label {seen[-1]!r}: anchor {anchor!r}"
            if anchor in seen:
                raise DataError(f"{where} leads back to it; an anchor comes before its outcome")
            if anchor not in by_task:
                raise DataError(f"{where} is not a task; expected one of: {', '.join(by_task)}")
            if by_task[anchor].delay is None:
                raise DataError(f"{where} has no delay; name the column that says when it happened")
            seen.append(anchor)


def _expect_distinct(group: str, names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{group}: {twice[0]!r} is declared twice; names must differ")
