"""The page of ``windows_real``: the table, every method against the retrained models, calibration and laws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from octavo.report import Rival, write_windows_report
from octavo.windows import PersonalizedInterpolator
from octavo.windows.reporting import calibration_of, results_of

FOLDER = Path(__file__).resolve().parents[2] / "build" / "windows"


def write(
    name: str,
    fit: PersonalizedInterpolator,
    rivals: Sequence[Rival],
    p: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray],
    day: np.ndarray,
    groups: np.ndarray,
) -> Path:
    """``build/windows/NAME.html``. ``fit``: the last cut's; ``p``, ``labels``: of each unseen window [n], all cuts'
    test events; ``day``, ``groups`` [n]."""
    calibration = [calibration_of(window, False, p[window], labels[window], day, groups) for window in p]
    results = results_of(fit, f"{name}: windows that no model was trained for")
    FOLDER.mkdir(parents=True, exist_ok=True)
    return write_windows_report(replace(results, calibration=calibration, rivals=list(rivals)), FOLDER / f"{name}.html")
