"""What every section of a configuration is: frozen, closed, and chosen by ``kind`` where there are several."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, BeforeValidator, ConfigDict


class Section(BaseModel):
    """A group of keys: frozen, no unknown keys, no NaN or infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def kinds(*names: str) -> BeforeValidator:
    """For a union of sections that ``kind`` tells apart: the first name where a file leaves ``kind`` out."""

    def choose(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        kind = value.get("kind", names[0])
        if kind not in names:
            raise ValueError(f"unknown kind {kind!r}; expected one of {', '.join(names)}")
        return {**value, "kind": kind}

    return BeforeValidator(choose)
