"""What Probe keeps of the rows a layer saw: mean, covariance and tails; streaming, mergeable (C++: statistics.hpp)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from octavo import _core
from octavo.ops._types import DTYPES

FULL_COVARIANCE = 1024  # columns up to which the whole matrix is kept
SKETCH_RANK = 128  # columns of the sketch above
_MOMENTS = ("counts", "mean", "scatter", "diagonal")
_TAILS = ("tail_counts", "tail_sums", "row_amax", "shares")


class Statistics:
    """Moments and tails of rows of ``k`` numbers.

    Up to ``full`` columns the covariance is exact (FP64 sums); above, a sketch of it gives a covariance of rank
    ``rank`` plus a diagonal [Tropp et al. 2017]. Rows that hold NaN or infinities are counted and left out. ``tails``:
    also histograms of each row's largest magnitude and of x over it, kurtosis, and how much would round to zero or
    saturate. State: FP64 and int64 tensors on the CPU.
    """

    def __init__(self, k: int, tails: bool = True, full: int = FULL_COVARIANCE, rank: int = SKETCH_RANK) -> None:
        self.k, self.rank, self.tails = k, 0 if k <= full else rank, tails
        self._state = {
            "counts": torch.zeros(len(_core.MomentCount), dtype=torch.int64),
            "mean": torch.zeros(k, dtype=torch.float64),
            "scatter": torch.zeros(k, self.rank or k, dtype=torch.float64),
            "diagonal": torch.zeros(k if self.rank else 0, dtype=torch.float64),
        }
        if tails:
            self._state |= {
                "tail_counts": torch.zeros(len(_core.TailCount), dtype=torch.int64),
                "tail_sums": torch.zeros(len(_core.TailSum), dtype=torch.float64),
                "row_amax": torch.zeros(_core.AMAX_BINS, dtype=torch.int64),
                "shares": torch.zeros(2, _core.SHARE_BINS, dtype=torch.int64),
            }
        self._moments = _core.Moments(k, self.rank, *(self._state[name].data_ptr() for name in _MOMENTS))
        self._tails = _core.Tails(*(self._state[name].data_ptr() for name in _TAILS)) if tails else None

    def observe(self, x: torch.Tensor) -> None:
        """Take in the rows of x [M, k], float32 or bfloat16 on the CPU, rows contiguous. Raises ValueError for another
        width."""
        m, stride = x.shape[0], x.stride(0) if x.shape[0] > 1 else self.k
        _core.observe(x.data_ptr(), m, x.shape[1], stride, int(DTYPES[x.dtype]), self._moments, self._tails)

    def merge(self, other: Statistics) -> None:
        """Take in what ``other`` saw. Raises ValueError when it is of another width, rank or without the same tails."""
        if self.tails != other.tails:
            raise ValueError("tails: one side keeps tails and the other does not; build both Probes alike")
        if self._tails is not None and other._tails is not None:
            self._tails.merge(other._tails)
        self._moments.merge(other._moments)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Copies of the state's tensors."""
        return {name: tensor.clone() for name, tensor in self._state.items()}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """The inverse. Raises ValueError for missing, unknown or differently shaped tensors."""
        if state.keys() != self._state.keys():
            raise ValueError(f"state: has {', '.join(state)}; expected {', '.join(self._state)}")
        for name, tensor in self._state.items():
            if state[name].shape != tensor.shape or state[name].dtype != tensor.dtype:
                raise ValueError(
                    f"state: {name} is {list(state[name].shape)} {state[name].dtype}; expected {list(tensor.shape)} "
                    f"{tensor.dtype}"
                )
        for name, tensor in self._state.items():
            tensor.copy_(state[name])

    # --- what it knows ------------------------------------------------------------------------------------------------
    def count(self, name: str) -> int:
        """One of ``rows``, ``nan_rows``, ``infinite_rows`` or, with tails, of ``_core.TailCount``."""
        if name in _core.MomentCount.__members__:
            return int(self._state["counts"][_core.MomentCount[name]])
        return int(self._state["tail_counts"][_core.TailCount[name]])

    @property
    def rows(self) -> int:
        return self.count("rows")

    @property
    def mean(self) -> torch.Tensor:
        """[k] FP64."""
        return self._state["mean"].clone()

    def covariance(self) -> torch.Tensor:
        """[k, k] FP64, of a sketch what its factors give; zeros before the second row."""
        if self.rank:
            factor, rest = self.factors()
            return factor @ factor.T + torch.diag(rest)
        upper = self._state["scatter"].triu()
        return (upper + upper.triu(1).T) / max(self.rows - 1, 1)

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A sketch's covariance as F [k, rank] and d [k]: F F^T + diag(d), d >= 0 such that variances are exact."""
        sketch, diagonal = self._state["scatter"], self._state["diagonal"]
        signs = torch.empty(self.k, self.rank)
        _core.sketch_signs(self.k, self.rank, signs.data_ptr())
        signs = signs.double()
        # Nystrom with a shift that makes the core positive definite, taken off again from the eigenvalues.
        shift = 1e-8 * float(sketch.norm()) / math.sqrt(max(self.k, 1))
        if shift == 0:
            return torch.zeros(self.k, self.rank, dtype=torch.float64), diagonal / max(self.rows - 1, 1)
        shifted = sketch + shift * signs
        core = signs.T @ shifted
        lower = torch.linalg.cholesky((core + core.T) / 2)
        half = torch.linalg.solve_triangular(lower, shifted.T, upper=False).T
        u, s, _ = torch.linalg.svd(half, full_matrices=False)
        factor = u * (s.square() - shift).clamp_min(0).sqrt()
        scale = max(self.rows - 1, 1)
        return factor / math.sqrt(scale), (diagonal - factor.square().sum(1)).clamp_min(0) / scale

    def share_of(self, name: str) -> float:
        """An element count of ``_core.TailCount`` over all elements; nan before the first."""
        elements = self.count("elements")
        return self.count(name) / elements if elements else math.nan

    @property
    def kurtosis(self) -> float:
        """Fourth moment of all elements over the square of their variance: 3 for normal numbers, nan for constants."""
        sums = self._state["tail_sums"]
        second, fourth = float(sums[_core.TailSum.second]), float(sums[_core.TailSum.fourth])
        return self.count("elements") * fourth / second**2 if second > 0 else math.nan

    @property
    def crest(self) -> float:
        """A row's largest magnitude over its root mean square (over all rows, from the mean square of |x| / largest):
        about 3 for normal rows of 500, sqrt(k) where one element is all; nan without rows that are not zero."""
        squares = float(self._state["tail_sums"][_core.TailSum.share_squares])
        cells = (self.rows - self.count("zero_rows")) * self.k
        return math.sqrt(cells / squares) if squares > 0 else math.nan

    def amax_quantiles(self, q: torch.Tensor) -> torch.Tensor:
        """Quantiles of rows' largest magnitudes, rows of zeros among them; FP64, to 1/16 of an octave before linear
        interpolation. Raises ValueError before the first row."""
        if self.rows == 0:
            raise ValueError("statistics: no finite row was seen, so there are no quantiles")
        counts = torch.cat([self._state["tail_counts"][_core.TailCount.zero_rows].reshape(1), self._state["row_amax"]])
        edges = torch.arange(_core.AMAX_BINS + 1, dtype=torch.int64).mul(1 << 19).clamp_max(0x7F7FFFFF)
        edges = edges.to(torch.int32).view(torch.float32).double()
        edges = torch.cat([torch.zeros(1, dtype=torch.float64), edges])  # a bin of width zero for rows of zeros
        return _quantiles(counts, edges, q)

    def share_quantiles(self, q: torch.Tensor) -> torch.Tensor:
        """Quantiles of x / its row's largest magnitude, in [-1, 1], over the elements of rows that are not zero; to 1/8
        of an octave before linear interpolation. Raises ValueError before the first such row."""
        zeros = self.count("zeros") - self.count("zero_rows") * self.k
        negative, positive = self._state["shares"]
        counts = torch.cat([negative, torch.tensor([zeros]), positive.flip(0)])
        if not int(counts.sum()):
            raise ValueError("statistics: no row that is not zero was seen, so there are no quantiles")
        upper = (0x3F8 + 1 - torch.arange(_core.SHARE_BINS, dtype=torch.int64)) << 20
        upper = upper.to(torch.int32).view(torch.float32).double().clamp_max(1)
        edges = torch.cat([-upper, torch.zeros(2, dtype=torch.float64), upper.flip(0)])  # zeros: a bin of width zero
        return _quantiles(counts, edges, q)

    def summary(self) -> dict[str, float | int]:
        """Plain figures for reports."""
        found: dict[str, float | int] = {name: self.count(name) for name in _core.MomentCount.__members__}
        found["mean_square_share"] = _offset_share(self)
        if not self.tails or self.rows == 0:
            return found
        low, middle, high = self.amax_quantiles(torch.tensor([0.01, 0.5, 0.999], dtype=torch.float64)).tolist()
        found |= {"amax_p1": low, "amax_p50": middle, "amax_p999": high, "kurtosis": self.kurtosis, "crest": self.crest}
        elements = [name for name in _core.TailCount.__members__ if name not in ("zero_rows", "elements")]
        return found | {name: self.share_of(name) for name in elements}


def _offset_share(statistics: Statistics) -> float:
    """Share of the mean over the mean square of all columns: 0 centred, near 1 mostly a common offset."""
    variance = statistics._state["diagonal"] if statistics.rank else statistics._state["scatter"].diagonal()
    offset = float(statistics._state["mean"].square().sum())
    total = offset + float(variance.sum()) / max(statistics.rows, 1)
    return offset / total if total > 0 else 0.0


def _quantiles(counts: torch.Tensor, edges: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Of a histogram with ``edges`` [bins + 1], linear inside a bin."""
    used = counts.nonzero()[:, 0]
    above = counts[used].double().cumsum(0)
    wanted = q.double().clamp(0, 1) * above[-1]
    at = torch.searchsorted(above, wanted).clamp_max(len(used) - 1)
    inside = 1 - ((above[at] - wanted) / counts[used[at]].double()).clamp(0, 1)
    low, high = edges[used[at]], edges[used[at] + 1]
    return low + inside * (high - low)
