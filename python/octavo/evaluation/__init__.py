"""Ranking metrics, progressive validation, and differences with intervals: each defined once."""

from __future__ import annotations

from octavo.evaluation.bins import CalibrationBin, calibration_bins, wilson_interval
from octavo.evaluation.metrics import Quality, auc, calibration, gauc, log_loss, ne, quality
from octavo.evaluation.paired import Interval, paired_difference
from octavo.evaluation.progressive import Progressive, ProgressPoint

__all__ = [
    "CalibrationBin",
    "Interval",
    "ProgressPoint",
    "Progressive",
    "Quality",
    "auc",
    "calibration",
    "calibration_bins",
    "gauc",
    "log_loss",
    "ne",
    "paired_difference",
    "quality",
    "wilson_interval",
]
