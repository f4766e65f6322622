"""Personalized Interpolation: the probability to convert within any window, from models of fixed windows."""

from __future__ import annotations

from octavo.windows.calibration import Calibration, CalibrationWarning
from octavo.windows.grid import Grid, WindowsError
from octavo.windows.interpolator import PersonalizedInterpolator
from octavo.windows.laws import FAMILIES
from octavo.windows.table import ExtrapolationWarning, LookupTable

__all__ = [
    "FAMILIES",
    "Calibration",
    "CalibrationWarning",
    "ExtrapolationWarning",
    "Grid",
    "LookupTable",
    "PersonalizedInterpolator",
    "WindowsError",
]
