"""Rankers over a Schema: ``forward(batch) -> {task: logits [B]}``."""

from __future__ import annotations

import torch

from octavo.config import DLRMConfig
from octavo.data import Schema
from octavo.models.dlrm import DLRM

__all__ = ["DLRM", "build"]


def build(schema: Schema, config: DLRMConfig) -> torch.nn.Module:
    """The model that ``config.kind`` names."""
    return DLRM(schema, config)
