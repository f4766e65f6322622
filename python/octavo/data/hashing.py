"""splitmix64, vectorised."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def mix_bits(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Its next number for each state in ``keys``: a bijection whose every output bit depends on every input bit."""
    z = keys + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
