"""AdsWorld: seeded days of ad traffic whose truth is known. docs/adsworld.md has the equations and every knob."""

from __future__ import annotations

from octavo.data.adsworld.config import AdsWorldConfig
from octavo.data.adsworld.presets import PRESETS, preset, preset_hash
from octavo.data.adsworld.truth import BayesOptimum, bayes_optimum
from octavo.data.adsworld.world import AdsWorld

__all__ = ["PRESETS", "AdsWorld", "AdsWorldConfig", "BayesOptimum", "bayes_optimum", "preset", "preset_hash"]
