"""A schema, and how its raw files are read, as YAML that a person reviews."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import yaml

from octavo._files import write_atomically
from octavo.config.loading import UniqueKeyLoader
from octavo.data.errors import DataError, one_line
from octavo.data.schema import FORMAT, Dense, Label, Schema, Sparse
from octavo.data.source import Source

_GROUPS: dict[str, tuple[type[Any], str]] = {
    "dense": (Dense, "name"),
    "sparse": (Sparse, "name"),
    "sequences": (Sparse, "name"),
    "labels": (Label, "task"),
}
_SHIPPED = Path(__file__).with_name("schemas")


def shipped_schemas() -> list[str]:
    """Names of the schemas that come with octavo."""
    return sorted(path.stem for path in _SHIPPED.glob("*.yaml"))


def schema_path(name: str | Path) -> Path:
    """The file of a shipped schema's name; any other is a path itself."""
    return _SHIPPED / f"{name}.yaml" if str(name) in shipped_schemas() else Path(name)


def load_schema(path: str | Path) -> tuple[Schema, Source]:
    """The schema of a YAML file, or of a shipped schema's name, and how its raw files are read.

    Keys are :class:`Schema`'s and its features'; ``name: [a, b]`` declares alike features; ``source`` holds
    :class:`Source`'s keys. Raises :class:`DataError` that names the file and the key.
    """
    path = schema_path(path)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=UniqueKeyLoader)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file, nor a shipped schema: {', '.join(shipped_schemas())}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{path}: not valid YAML: {one_line(error)}") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected keys and values, found {type(content).__name__}")
    source = Source.from_json(content.pop("source", None) or {}, f"{path}: source")
    return _schema(content, str(path)), source


def dump_schema(schema: Schema, source: Source | None = None, notes: Mapping[str, str] | None = None) -> str:
    """YAML that :func:`load_schema` reads back to equal values; ``notes`` by column become comments."""
    notes, plain, lines = notes or {}, schema.to_json(), []
    for entry in fields(Schema):
        value = plain[entry.name]
        if entry.name not in _GROUPS:
            if value is not None:
                lines.append(f"{entry.name}: {_flow(value)}{_comment(notes, value)}")
        elif value:
            lines.append(f"{entry.name}:")
            cls, key = _GROUPS[entry.name]
            for feature in value:
                lines.append(f"  - {_flow(_told(cls, feature))}{_comment(notes, feature[key])}")
    how = (source or Source()).to_json()
    if how:
        lines += ["source:", *("  " + line for line in yaml.safe_dump(how, sort_keys=False).splitlines())]
    rest = [name for name in notes if name not in schema.columns()]
    lines += [f"# {name}: {notes[name]}" for name in rest]
    return "\n".join(lines) + "\n"


def save_schema(schema: Schema, path: str | Path, source: Source | None = None) -> None:
    """Write :func:`dump_schema`'s YAML. Atomic."""
    write_atomically(path, dump_schema(schema, source))


def _schema(content: Mapping[str, Any], where: str) -> Schema:
    known = [entry.name for entry in fields(Schema)]
    plain: dict[str, Any] = {"format": FORMAT}
    for key, value in content.items():
        if key not in known:
            raise DataError(f"{where}: unknown key {key!r}; expected one of {', '.join(known)}, source")
        if key in _GROUPS:
            plain[key] = _features(key, value, where)
        elif value is not None and not isinstance(value, str):
            raise DataError(f"{where}: {key}: expected a column's name, found {value!r}")
        else:
            plain[key] = value
    return Schema.from_json(plain, where)


def _features(group: str, entries: Any, where: str) -> list[dict[str, Any]]:
    """Plain entries, one per name, each proved by itself, so that an error can say which it is."""
    cls, key = _GROUPS[group]
    if not isinstance(entries, list):
        raise DataError(f"{where}: {group}: expected a list, found {type(entries).__name__}")
    found = []
    for number, entry in enumerate(entries):
        place = f"{where}: {group}[{number}]"
        if not isinstance(entry, dict) or key not in entry:
            raise DataError(f"{place}: expected keys and values, {key} among them, found {entry!r}")
        names = entry[key] if isinstance(entry[key], list) else [entry[key]]
        for name in names:
            if not isinstance(name, str):
                raise DataError(f"{place}: {key}: expected a column's name, found {name!r}")
            whole = {**_defaults(cls), **entry, key: name}
            if group == "sequences":
                whole["multi"] = True
            unbound = {part: value for part, value in whole.items() if part not in ("table", "anchor")}
            alone = {"format": FORMAT, "sparse" if cls is Sparse else group: [unbound]}
            Schema.from_json(alone, f"{place} ({name})")
            found.append(whole)
    return found


def _defaults(cls: type[Any]) -> dict[str, Any]:
    plain = {entry.name: entry.default for entry in fields(cls) if entry.default is not MISSING}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}


def _told(cls: type[Any], value: Mapping[str, Any]) -> dict[str, Any]:
    """What differs from the defaults; a vocabulary says how many rows there are."""
    usual = _defaults(cls)
    told = {key: part for key, part in value.items() if key not in usual or part != usual[key]}
    if told.get("vocabulary"):
        told.pop("rows", None)
    return told


def _flow(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6).removesuffix("\n...\n").strip()


def _comment(notes: Mapping[str, str], name: str) -> str:
    return f"  # {notes[name]}" if name in notes else ""
