"""A weight that moves, as a matrix-normal distribution: W ~ MN(M0, U, V), estimated while it trains (LoKA, Probe)."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from octavo.loka.row_model import cholesky

MEMORY = 0.99  # of the moving averages; early ones are plain means
_JITTER = 1e-6  # on the diagonals, relative to their mean


class WeightModel:
    """M0 [n, k], U [n, n] (between rows) and V [k, k] (between columns), FP64, Cov(vec W) = V kron U.

    Streaming flip-flop with exponential averages: each observed weight's deviation from M0, whitened by one factor,
    is a sample of the other; trace(U) = n fixes the scale that the two share. Consecutive weights of a training run
    are much alike, so U and V describe the drift around M0, not a posterior.
    """

    def __init__(self, n: int, k: int, memory: float = MEMORY) -> None:
        if not 0 < memory < 1:
            raise ValueError(f"memory: expected a number between 0 and 1, found {memory}")
        self.n, self.k, self.memory = n, k, memory
        self._state = {
            "updates": torch.zeros(1, dtype=torch.int64),
            "mean": torch.zeros(n, k, dtype=torch.float64),
            "rows": torch.eye(n, dtype=torch.float64),
            "columns": torch.eye(k, dtype=torch.float64),
        }

    @property
    def updates(self) -> int:
        return int(self._state["updates"])

    @torch.no_grad()
    def observe(self, weight: torch.Tensor) -> None:
        """Take in the weight [n, k] of this moment. One with NaN or infinities is left out."""
        if list(weight.shape) != [self.n, self.k]:
            raise ValueError(f"weight: is {list(weight.shape)}; expected [{self.n}, {self.k}]")
        w = weight.detach().to("cpu", torch.float64)
        if self.n == 0 or self.k == 0 or not bool(w.isfinite().all()):
            return
        seen, state = self.updates, self._state
        state["updates"] += 1
        keep = min(self.memory, seen / (seen + 1))
        deviation = w - state["mean"]
        state["mean"] += (1 - keep) * deviation
        if seen == 0:
            return  # the first weight is the mean
        rows, columns = state["rows"], state["columns"]
        # The deviation is from a mean that the weight is not in: its variance is this much too large.
        excess = 1 + (1 / seen if seen < 1 / (1 - self.memory) else (1 - self.memory) / (1 + self.memory))
        if seen == 1:  # independent elements of this size count as one observation: whitening needs full rank
            columns = columns * (deviation.square().mean() / excess).clamp_min(1e-300)
        by_columns = torch.linalg.solve_triangular(cholesky(columns), deviation.T, upper=False)  # [k, n]
        by_rows = torch.linalg.solve_triangular(cholesky(rows), deviation, upper=False)  # [n, k]
        state["rows"] = _renewed(rows, by_columns.T @ by_columns / (self.k * excess), keep)
        state["columns"] = _renewed(columns, by_rows.T @ by_rows / (self.n * excess), keep)
        scale = state["rows"].trace() / self.n
        if float(scale) > 0:
            state["rows"], state["columns"] = state["rows"] / scale, state["columns"] * scale

    def draw(self, generator: torch.Generator) -> torch.Tensor:
        """[n, k] FP32; the mean while fewer than two weights were seen."""
        mean = self._state["mean"]
        if self.updates < 2:
            return mean.float()
        z = torch.randn(self.n, self.k, generator=generator, dtype=torch.float64)
        return (mean + cholesky(self._state["rows"]) @ z @ cholesky(self._state["columns"]).T).float()

    def covariances(self) -> tuple[torch.Tensor, torch.Tensor]:
        """U and V."""
        return self._state["rows"].clone(), self._state["columns"].clone()

    def merge(self, other: WeightModel) -> None:
        """Average both, weighted by their numbers of updates."""
        a, b = self.updates, other.updates
        if b == 0:
            return
        for name in ("mean", "rows", "columns"):
            self._state[name] = (a * self._state[name] + b * other._state[name]) / (a + b)
        self._state["updates"] += b

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Copies of the state's tensors."""
        return {name: tensor.clone() for name, tensor in self._state.items()}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """The inverse. Raises ValueError for missing or differently shaped tensors."""
        for name, tensor in self._state.items():
            if name not in state or state[name].shape != tensor.shape:
                raise ValueError(f"state: expected {name} of shape {list(tensor.shape)}")
        self._state = {name: state[name].to(tensor.dtype).clone() for name, tensor in self._state.items()}


def _renewed(average: torch.Tensor, sample: torch.Tensor, keep: float) -> torch.Tensor:
    mixed = keep * average + (1 - keep) * (sample + sample.T) / 2
    mixed.diagonal().add_(_JITTER * mixed.trace() / len(mixed))
    return mixed
