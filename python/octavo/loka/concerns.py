"""Why a class is doubtful or useless at a site (docs/definitions.md, Concerns)."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from octavo.loka.candidates import Candidate
from octavo.loka.statistics import Statistics

LEAST = 0.02  # errors up to here raise no concern of the first two
OFFSET = 2.0  # signal-relative error over relative L1
TAIL = 2.0  # relative L1 or post-norm error over the same on N(0, 1) inputs
SPREAD = 8.0  # of rows' largest magnitudes: 99.9% quantile over the median
CREST = 3.0  # a row's largest magnitude over its rms, in units of what normal rows of that length have
UNDERFLOW = 0.05  # share of elements that are not zero and become it
SATURATION = 1e-3  # share of elements beyond the scale of the batch before
SPEEDUP = 1.05  # high precision's time over the class's


def concerns(
    candidate: Candidate,
    errors: Mapping[str, float],
    normal: Mapping[str, float],
    seen: Statistics,
    normal_crest: float,
    speedup: float | None,
    other: Statistics | None = None,
) -> tuple[str, ...]:
    """``errors`` on learned inputs, ``normal`` on N(0, 1) inputs; ``seen``: of what the candidate quantizes, rows of
    which would have ``normal_crest`` were they normal; ``speedup``: None where it was not timed; ``other``: of x, where
    the candidate multiplies gradients with it."""
    operands = [seen] if other is None else [seen, other]
    has_tails = seen.tails and _has_tails(seen, normal_crest)
    worse = {name for name in ("rel_l1", "post_norm") if errors.get(name, 0) > max(LEAST, TAIL * normal.get(name, 0))}
    hides = errors.get("signal_rel", 0) > max(LEAST, OFFSET * errors["rel_l1"])
    found = {
        "offset": hides or (worse == {"post_norm"} and not has_tails),  # the norm takes off what the product is mostly
        "tail": bool(worse) and has_tails,
        "underflow": _underflow(candidate, seen) > UNDERFLOW,
        "saturation": any(s.count("infinite_rows") > 0 for s in operands) or _saturation(candidate, seen) > SATURATION,
        "nan": any(s.count("nan_rows") > 0 for s in operands),
        "speed": speedup is not None and speedup < SPEEDUP,
    }
    return tuple(name for name, holds in found.items() if holds)


def _has_tails(seen: Statistics, normal_crest: float) -> bool:
    middle, high = seen.amax_quantiles(torch.tensor([0.5, 0.999], dtype=torch.float64)).tolist()
    return bool(high > SPREAD * middle or seen.crest > CREST * normal_crest)


def _underflow(candidate: Candidate, seen: Statistics) -> float:
    if candidate.format is None or not seen.tails:
        return 0.0
    return seen.share_of(f"underflow_{candidate.format}_{candidate.scaling}")


def _saturation(candidate: Candidate, seen: Statistics) -> float:
    if candidate.scaling != "tensor" or not seen.tails:
        return 0.0  # scales made from the very row saturate nothing but infinities
    return seen.share_of("beyond_last_amax")
