"""Ranking metrics, progressive validation, and differences with intervals: each defined once."""

from __future__ import annotations

from octavo.evaluation.bins import CalibrationBin, calibration_bins, wilson_interval
from octavo.evaluation.intervals import Metric, interval, paired
from octavo.evaluation.metrics import Quality, auc, calibration, gauc, log_loss, ne, quality
from octavo.evaluation.paired import Interval, paired_difference
from octavo.evaluation.progressive import Progressive
from octavo.evaluation.ratios import (
    coverage,
    detection_auc,
    expected_calibration_error,
    r_score,
    transfer_ratio,
    utilisation,
)
from octavo.evaluation.windows import ProgressPoint

__all__ = [
    "CalibrationBin",
    "Interval",
    "Metric",
    "ProgressPoint",
    "Progressive",
    "Quality",
    "auc",
    "calibration",
    "calibration_bins",
    "coverage",
    "detection_auc",
    "expected_calibration_error",
    "gauc",
    "interval",
    "log_loss",
    "ne",
    "paired",
    "paired_difference",
    "quality",
    "r_score",
    "transfer_ratio",
    "utilisation",
    "wilson_interval",
]
