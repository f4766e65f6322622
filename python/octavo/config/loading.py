"""Reading a configuration file, applying ``section.key=value`` overrides, and saving what was resolved."""

from __future__ import annotations

import difflib
import hashlib
import json
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from octavo._files import write_atomically
from octavo.config.sections import RunConfig

AnySection = TypeVar("AnySection", bound=BaseModel)


class ConfigError(ValueError):
    """A configuration that cannot be used: one line that names the source, the key, what was found, what to do."""


class UniqueKeyLoader(yaml.SafeLoader):
    """YAML without silent duplicates: the same key twice in one mapping is an error."""


def _construct_mapping(loader: UniqueKeyLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    loader.flatten_mapping(node)
    mapping: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is not text", key_node.start_mark)
        if key in mapping:
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} appears twice", key_node.start_mark)
        mapping[key] = loader.construct_object(value_node, deep=True)
    return mapping


UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_mapping)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file and apply overrides such as ``training.batch_size=512`` (later ones win).

    Raises :class:`ConfigError` for a file that cannot be read, an unknown key (with the nearest valid ones) or a value
    that does not fit.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot read the configuration ({_one_line(error)})") from error
    try:
        values = yaml.load(text, Loader=UniqueKeyLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {_one_line(error)}") from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected sections ({_known(RunConfig)}) at the top, found {_describe(values)}")
    return build_config(values, overrides, source=str(path))


def build_config(values: Mapping[str, Any], overrides: Sequence[str] = (), source: str = "configuration") -> RunConfig:
    """Validate plain values plus overrides. ``source`` is what errors call the place the values came from.

    An override of a ``kind`` leaves out what ``values`` have in that section and the new kind has not.
    """
    merged = json.loads(json.dumps(values, default=str))
    origin: dict[str, str] = {}
    for override in sorted(overrides, key=_names_no_kind):
        key = _apply_override(merged, override)
        origin[key] = f"override {override!r}"
    try:
        return RunConfig.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(_explain(error, source, origin, RunConfig, merged)) from None


def build_section(section: type[AnySection], values: Mapping[str, Any], source: str = "configuration") -> AnySection:
    """Validate plain values as any section. Raises :class:`ConfigError` as :func:`build_config` does."""
    try:
        return section.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error, source, {}, section, values)) from None


def config_hash(config: BaseModel) -> str:
    """SHA-256 (hex) of the resolved configuration as canonical JSON: sorted keys, no spaces."""
    canonical = json.dumps(config.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode("utf-8")).hexdigest()


def run_id(config: RunConfig) -> str:
    """``<name>-<first 12 hex digits of the configuration's hash>``: the same configuration, the same id."""
    return f"{config.name}-{config_hash(config)[:12]}"


def save_config(config: RunConfig, path: str | Path) -> None:
    """Write the resolved configuration as YAML that :func:`load_config` reads back to an equal one. Atomic."""
    head = f"# run {run_id(config)}, configuration sha256 {config_hash(config)}\n"
    write_atomically(path, head + yaml.safe_dump(config.resolved(), sort_keys=False))


def _apply_override(values: dict[str, Any], override: str) -> str:
    key, separator, text = override.partition("=")
    key = key.strip()
    if not separator or not all(key.split(".")):
        raise ConfigError(f"override {override!r}: expected section.key=value, for example training.batch_size=512")
    try:
        value = yaml.load(text, Loader=UniqueKeyLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not valid YAML: {_one_line(error)}") from error
    *parents, last = key.split(".")
    target = values
    for depth, parent in enumerate(parents):
        child = target.setdefault(parent, {})
        if child is None:
            child = target[parent] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"override {override!r}: {'.'.join(parents[: depth + 1])} holds a value, not keys")
        target = child
    if last == "kind":
        _keep_what_fits(target, parents, value)
    target[last] = value
    return key


def _names_no_kind(override: str) -> bool:
    return not override.partition("=")[0].strip().endswith(".kind")


def _keep_what_fits(values: dict[str, Any], parents: Sequence[str], kind: Any) -> None:
    """Drop the keys of a section that it would not have as ``kind``; all stay where there is no such kind."""
    options: list[type[BaseModel]] = [RunConfig]
    for parent in parents:
        found = [option.model_fields[parent] for option in options if parent in option.model_fields]
        options = [section for field in found for section in _sections(field.annotation)]
    kinds = {o.model_fields["kind"].default: o for o in options if "kind" in o.model_fields}
    section = kinds.get(kind) if isinstance(kind, str) else None
    if section is not None:
        for key in values.keys() - section.model_fields.keys():
            del values[key]


def _explain(
    error: ValidationError, source: str, origin: Mapping[str, str], root: type[BaseModel], values: Mapping[str, Any]
) -> str:
    """The first problem in one line, and how many more there are."""
    problems = error.errors()
    unknown = [p for p in problems if p["type"] == "extra_forbidden"]
    problem = (unknown or problems)[0]
    keys, section = _place(problem["loc"], root)
    key = ".".join(keys)
    place = next((text for name, text in origin.items() if key == name or key.startswith(f"{name}.")), source)
    if problem["type"] == "extra_forbidden":
        *parents, last = keys
        message = f"unknown key {key!r}"
        nearest = _nearest(last, parents, section, _all_keys(root, values))
        if nearest:
            message += f"; did you mean {' or '.join(nearest)}?"
        message += f" (known in {'.'.join(parents) or 'the top level'}: {_known(section)})"
    else:
        text = problem["msg"].removeprefix("Value error, ")
        message = f"{key}: {text}" if key else text
        if not isinstance(problem["input"], (dict, BaseModel)):
            message += f", found {_describe(problem['input'])}"
    more = len(problems) - 1
    return f"{place}: {message}" + (f" (and {more} more problem{'s' if more > 1 else ''})" if more else "")


def _place(loc: Sequence[str | int], root: type[BaseModel]) -> tuple[list[str], type[BaseModel]]:
    """A problem's keys as a file has them, and the section of the last one. A union's kind, which pydantic puts after
    its key, is none.
    """
    keys: list[str] = []
    owner, options = root, [root]
    for part in loc:
        if isinstance(part, int):  # the place in a list
            keys.append(str(part))
            continue
        if len(options) > 1:
            options = [option for option in options if option.model_fields["kind"].default == part]
            continue
        keys.append(part)
        if options:
            owner = options[0]
            field = owner.model_fields.get(part)
            options = [] if field is None else _sections(field.annotation)
    return keys, owner


def _nearest(name: str, parents: Sequence[str], section: type[BaseModel], everywhere: Sequence[str]) -> list[str]:
    """Full names of the closest keys: first in the same section, else anywhere."""
    here = difflib.get_close_matches(name, list(section.model_fields), n=2, cutoff=0.5)
    if here:
        return [".".join([*parents, match]) for match in here]
    last = {full: full.rsplit(".", 1)[-1] for full in everywhere}
    matches = difflib.get_close_matches(name, list(last.values()), n=1, cutoff=0.8)
    return [full for full, short in last.items() if matches and short == matches[0]][:2]


def _all_keys(section: type[BaseModel], values: Any, prefix: str = "") -> list[str]:
    """Every key below ``section``, of the kinds that ``values`` name."""
    keys: list[str] = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        value = values.get(name) if isinstance(values, dict) else None
        kind = value.get("kind") if isinstance(value, dict) else None
        options = _sections(field.annotation)
        inner = next((o for o in options if len(options) > 1 and o.model_fields["kind"].default == kind), None)
        if options:
            keys += _all_keys(inner or options[0], value, f"{prefix}{name}.")
    return keys


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """Every section a field may hold, in lists and unions too."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for option in typing.get_args(annotation) for section in _sections(option)]


def _known(section: type[BaseModel]) -> str:
    return ", ".join(section.model_fields)


def _describe(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
