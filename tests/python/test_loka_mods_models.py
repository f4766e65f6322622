"""Mods of octavo's models, of compiled and of exported ones."""

import torch
from models_support import SCHEMA, model_config, scramble

from octavo.models import build_model

ALL = {"no_bias": True, "block_norm": 4, "hard_swish": True, "fuse": True, "group": True, "tables": "int8",
       "keep": ["heads.*"]}  # fmt: skip


def _model(kind: str, **changes: object) -> torch.nn.Module:
    config = model_config(kind, norm="layer", activation="silu", bias=True, **changes)
    return scramble(build_model(SCHEMA, config)).eval()
