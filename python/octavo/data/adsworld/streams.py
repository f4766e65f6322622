"""Random streams: one generator per (seed, purpose, numbers), so that no draw depends on how many others were made."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What a generator is for. Numbers are part of every world's content: append, never renumber."""

    USERS = 1
    ITEMS = 2
    ADVERTISERS = 3
    CENTRES = 4
    EFFECTS = 5
    RESHUFFLE = 6
    DELAY_SHIFT = 7
    SESSIONS = 8
    CANDIDATES = 9
    RANKING = 10
    SIGNALS = 11
    CLICKS = 12
    CONVERSIONS = 13
    POISON = 14
    CALIBRATION = 15


def generator(seed: int, stream: Stream, *numbers: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(int(stream), *numbers)))
