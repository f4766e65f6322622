"""Predictions, labels and weights of any origin as float64 arrays of the events whose label is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Floats = npt.NDArray[np.float64]


def as_array(value: Any, argument: str) -> npt.NDArray[Any]:
    """A one-dimensional numpy array of a tensor (any device), array or sequence."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = (value.float() if value.dtype in (torch.bfloat16, torch.float16) else value).numpy()
    array = np.asarray(value)
    if array.ndim != 1:
        raise ValueError(f"{argument}: expected 1 dimension, found shape {list(array.shape)}")
    return array


def known_events(
    predictions: Any, labels: Any, weight: Any, logits: bool, *, binary: bool = False
) -> tuple[Floats, Floats, Floats, npt.NDArray[np.bool_]]:
    """Predictions, labels, weights (ones when None) [n_known] and which events [n] have a known (not nan) label.

    Raises ValueError for shapes that differ, a nan prediction with a known label, probabilities or labels outside
    0..1 (labels other than 0 and 1 when ``binary``) and weights that are negative or not finite.
    """
    scores = as_array(predictions, "predictions").astype(np.float64)
    truth = as_array(labels, "labels").astype(np.float64)
    loads = np.ones(len(truth)) if weight is None else as_array(weight, "weight").astype(np.float64)
    for argument, array in (("predictions", scores), ("weight", loads)):
        if len(array) != len(truth):
            raise ValueError(f"{argument}: expected one per label ({len(truth)}), found {len(array)}")
    known = ~np.isnan(truth)
    scores, truth, loads = scores[known], truth[known], loads[known]
    if np.isnan(scores).any():
        raise ValueError(f"predictions: nan at known event {int(np.isnan(scores).argmax())}; the model diverged")
    if not logits:
        _expect_span("predictions", scores, "; pass logits=True for logits")
    _expect_span("labels", truth, "")
    if binary and ((truth != 0) & (truth != 1)).any():
        found = truth[(truth != 0) & (truth != 1)][0]
        raise ValueError(f"labels: expected 0 or 1, found {found}; ranking metrics need outcomes")
    if not (np.isfinite(loads) & (loads >= 0)).all():
        raise ValueError("weight: expected finite values >= 0")
    return scores, truth, loads, known


def _expect_span(argument: str, values: Floats, advice: str) -> None:
    wrong = (values < 0) | (values > 1)
    if wrong.any():
        raise ValueError(f"{argument}: expected 0..1, found {values[wrong][0]}{advice}")
