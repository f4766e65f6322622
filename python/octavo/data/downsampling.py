"""Fewer negatives: which events stay, and how far a model of the others is off.

Of events whose outcome is 0, a share ``rate`` stays (He et al. 2014, section 6.3). The odds of a positive grow by
1 / rate: logit(q) = logit(p) - ln(rate) for q on the sample and p in truth.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from octavo.data.errors import DataError
from octavo.data.hashing import mix_bits
from octavo.data.schema import Schema


def logit_shift(rate: float) -> float:
    """What a logit of the truth needs to be one of the sample: -ln(rate)."""
    if not 0 < rate <= 1:
        raise ValueError(f"negatives: expected a rate above 0 and up to 1, found {rate}")
    return -math.log(rate)


def kept(ids: npt.NDArray[np.int64], outcome: npt.NDArray[np.float64], rate: float, seed: int) -> npt.NDArray[np.bool_]:
    """Which of n events stay: all but a share of those whose outcome is 0, by (id, seed) alone, so that no cut into
    tables or batches changes the sample. Unknown outcomes (nan) stay."""
    logit_shift(rate)
    drawn = mix_bits(mix_bits(ids.view(np.uint64)) + np.uint64(seed))
    return (outcome != 0) | (drawn < np.uint64(min(round(rate * 2**64), 2**64 - 1))) | (rate == 1)


def sampled(schema: Schema, tables: Iterable[pa.Table], rate: float, seed: int) -> Iterator[pa.Table]:
    """The events of ``tables`` that stay. Raises :class:`DataError` for a schema of more than one head: what is a
    negative of one task may be an event of another, whose odds would change in no known way."""
    if schema.heads != schema.tasks[:1]:
        heads = ", ".join(schema.heads) or "none"
        raise DataError(f"negatives: the schema has the heads {heads}; expected one task without windows")
    task = schema.tasks[0]
    for table in tables:
        outcome = table.column(task).cast(pa.float64()).to_numpy()
        stays = kept(table.column(schema.id).cast(pa.int64()).to_numpy(), outcome, rate, seed)
        yield table.filter(pa.array(stays))
