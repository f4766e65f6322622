"""Definition of octavo's torch operators: schema, implementation, fake. Autograd stays outside the operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_LIBRARY = torch.library.Library("octavo", "DEF")


def define(schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Define ``octavo::<schema>`` for CPU and CUDA tensors, with ``fake`` for tracing."""
    name = _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,)).split("::")[-1].split("(")[0]
    for key in ("CPU", "CUDA"):
        _LIBRARY.impl(name, implementation, key)
    torch.library.register_fake(f"octavo::{name}", fake, lib=_LIBRARY)
