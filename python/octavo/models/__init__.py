"""Rankers over a Schema: ``forward(batch) -> {task: logits [B]}``, ``embed(batch) -> [B, embed_dim]``."""

from __future__ import annotations

import torch

from octavo import nn
from octavo.config import AnyModelConfig
from octavo.data import Schema
from octavo.models.dcnv2 import DCNv2
from octavo.models.deepfm import DeepFM
from octavo.models.din import DIN
from octavo.models.dlrm import DLRM
from octavo.models.ranker import Ranker
from octavo.models.wukong import Wukong

__all__ = ["DIN", "DLRM", "DCNv2", "DeepFM", "Ranker", "Wukong", "build"]

_KINDS = {"dlrm": DLRM, "dcnv2": DCNv2, "deepfm": DeepFM, "din": DIN, "wukong": Wukong}


def build(schema: Schema, config: AnyModelConfig) -> Ranker:
    """The model that ``config.kind`` names. Initial values depend on ``config.seed`` only; torch's generator is left as
    it was. Raises ValueError for a schema that the model cannot take.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model: Ranker = _KINDS[config.kind](schema, config)
        if config.layer_init == "xavier":
            model.apply(_start_xavier)
    return model


def _start_xavier(module: torch.nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.LinearNorm):
        torch.nn.init.xavier_normal_(module.weight)
        if module.bias is not None:
            torch.nn.init.zeros_(module.bias)
