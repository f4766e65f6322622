"""Mods that exchange a module for another: No Bias, BlockNorm, Hard Swish, SwishRMSNorm."""

from __future__ import annotations

from typing import Any

import torch

from octavo import nn
from octavo.loka.mods.parts import norm_of_module
from octavo.loka.mods.places import LINEAR, Place, Places
from octavo.loka.mods.record import Change, Record

_BATCH_NORMS = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d, torch.nn.SyncBatchNorm)
_SWISHES = ("silu", "gelu")


def drop_biases(places: Places, record: Record) -> None:
    """No Bias: linear layers and norms lose their biases, prediction layers keep theirs: linear layers of one output,
    or the last linear layer of a model that has none.
    """
    linears = [m for m in places.model.modules() if type(m) in LINEAR]
    last = None if not linears or any(layer.out_features == 1 for layer in linears) else linears[-1]
    for place in places:
        module = place.module
        if type(module) in LINEAR and module.bias is not None and (module.out_features == 1 or module is last):
            what = "the last linear layer" if module is last else "one output"
            record.changes.append(Change(place.path, "no_bias", "bias", None, f"a prediction layer ({what})"))
            continue
        if type(module) in (*LINEAR, torch.nn.LayerNorm, nn.Norm):
            names = ["bias"]
        elif isinstance(module, nn.LinearNorm):
            names = ["bias", "norm_bias"]
        else:
            continue
        for name in names:
            bias = getattr(module, name)
            if bias is not None:
                note = f"values change: largest |{name}| {_largest(bias):.3g}"
                record.changes.append(Change(place.path, "no_bias", name, "none", note))
                record.edits.assign(module, name, None)


def block_norms(places: Places, record: Record, block: int) -> None:
    """BlockNorm for norms over the feature dimension."""
    for place in places.every:
        module: Any = place.module
        if isinstance(module, _BATCH_NORMS):
            why = "normalises over the batch, which no norm of single rows replaces; retrain with nn.BlockNorm instead"
            record.changes.append(Change(place.path, "block_norm", type(module).__name__, None, why))
        elif type(module) in (torch.nn.LayerNorm, torch.nn.RMSNorm, nn.Norm):
            part = norm_of_module(module)
            if part is None:
                why = "" if type(module) is nn.Norm else "normalises over several dimensions; blocks are of the last"
                if why:
                    record.changes.append(Change(place.path, "block_norm", type(module).__name__, None, why))
                continue
            if part.kind == "block" and part.block == block:
                continue
            before = type(module).__name__ if type(module) is not nn.Norm else f"Norm({part.kind})"
            record.edits.replace(place.parent, place.name, nn.BlockNorm(block, part.eps))
            note = _lost(module.weight, getattr(module, "bias", None))
            record.changes.append(Change(place.path, "block_norm", before, f"BlockNorm({block})", note))
    for place in places:
        if isinstance(place.module, nn.LinearNorm):
            _block_norm_in(place, place.module, record, block)


def _block_norm_in(place: Place, layer: nn.LinearNorm, record: Record, block: int) -> None:
    before = f"{layer.norm}" + (f" -> {layer.activation}" if layer.activation else "")
    if layer.norm is None or (layer.norm == "block" and layer.block == block):
        return
    note = _lost(layer.norm_weight, layer.norm_bias)
    if layer.norm == "swish_rms":
        record.edits.assign(layer, "activation", "silu")
    for name, value in (("norm", "block"), ("block", block), ("norm_weight", None), ("norm_bias", None)):
        record.edits.assign(layer, name, value)
    after = f"block({block})" + (f" -> {layer.activation}" if layer.activation else "")
    record.changes.append(Change(place.path, "block_norm", before, after, note))


def hard_swishes(places: Places, record: Record) -> None:
    """Hard Swish for SiLU and GELU; of SwishRMSNorm the RMS norm stays."""
    note = "values change"
    for place in places.every:
        if type(place.module) in (torch.nn.SiLU, torch.nn.GELU):
            hard = torch.nn.Hardswish(getattr(place.module, "inplace", False))
            before = type(place.module).__name__
            record.edits.replace(place.parent, place.name, hard)
            record.changes.append(Change(place.path, "hard_swish", before, "Hardswish", note))
    for place in places:
        layer = place.module
        if not isinstance(layer, nn.LinearNorm):
            continue
        if layer.norm == "swish_rms":
            record.changes.append(Change(place.path, "hard_swish", "swish_rms", "rms -> hardswish", note))
            record.edits.assign(layer, "norm", "rms")
            record.edits.assign(layer, "activation", "hardswish")
        elif layer.activation in _SWISHES:
            record.changes.append(Change(place.path, "hard_swish", layer.activation, "hardswish", note))
            record.edits.assign(layer, "activation", "hardswish")


def swish_rms_norms(places: Places, record: Record) -> None:
    """SwishRMSNorm for layer or RMS norm followed by SiLU, GELU or Hard Swish in a LinearNorm."""
    for place in places:
        layer = place.module
        if not isinstance(layer, nn.LinearNorm) or layer.activation not in (*_SWISHES, "hardswish"):
            continue
        before = f"{layer.norm} -> {layer.activation}"
        if layer.norm not in ("layer", "rms"):
            why = f"{layer.norm or 'no'} norm before the activation; SwishRMSNorm replaces layer and RMS norm"
            record.changes.append(Change(place.path, "swish_rms", before, None, why))
            continue
        exact = (layer.norm, layer.activation) == ("rms", "silu")
        note = "same values" if exact else _lost(None, layer.norm_bias)
        record.edits.assign(layer, "norm", "swish_rms")
        record.edits.assign(layer, "activation", None)
        if layer.norm_bias is not None:
            record.edits.assign(layer, "norm_bias", None)
        record.changes.append(Change(place.path, "swish_rms", before, "swish_rms", note))


def _largest(values: torch.Tensor) -> float:
    return float(values.detach().abs().max()) if values.numel() else 0.0


def _lost(weight: torch.Tensor | None, bias: torch.Tensor | None) -> str:
    parts = ["values change"]
    if weight is not None:
        parts.append(f"largest |weight - 1| {_largest(weight - 1):.3g}")
    if bias is not None:
        parts.append(f"largest |bias| {_largest(bias):.3g}")
    return parts[0] + (": " + ", ".join(parts[1:]) if parts[1:] else "")
