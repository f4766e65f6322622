"""Presets (placeholder while tuned)."""
from __future__ import annotations
from octavo.data.adsworld.config import *
from octavo.data.adsworld.laws import *
from octavo.config import ConfigError, config_hash
PRESETS = {"reference": AdsWorldConfig()}
def preset(name: str) -> AdsWorldConfig:
    return PRESETS[name]
