"""Optimizers of embedding tables: what the backward does to their rows."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.ops._types import expect_number


@dataclass(frozen=True)
class SGD:
    """row -= lr * g, where g includes weight_decay * row; for rows that a batch touched."""

    lr: float
    weight_decay: float = 0.0
    kind = "sgd"
    lazy = True
    eps = 0.0
    betas = (0.0, 0.0)

    def __post_init__(self) -> None:
        _check_rates(self)


@dataclass(frozen=True)
class Adagrad:
    """state += g^2; row -= lr * g / (sqrt(state) + eps), elementwise; g includes weight_decay * row.

    State [rows, dim] per table; :class:`RowWiseAdagrad` has one number per row.
    """

    lr: float
    eps: float = 1e-10
    weight_decay: float = 0.0
    kind = "adagrad"
    lazy = True
    betas = (0.0, 0.0)

    def __post_init__(self) -> None:
        _check_rates(self)


@dataclass(frozen=True)
class RowWiseAdagrad:
    """state += mean(g^2) over the row; row -= lr / (sqrt(state) + eps) * g; g includes weight_decay * row.

    One FP32 of state per row, as FBGEMM's EXACT_ROWWISE_ADAGRAD.
    """

    lr: float
    eps: float = 1e-8
    weight_decay: float = 0.0
    kind = "row_wise_adagrad"
    lazy = True
    betas = (0.0, 0.0)

    def __post_init__(self) -> None:
        _check_rates(self)


@dataclass(frozen=True)
class Adam:
    """m += (1 - beta1) (g - m); v += (1 - beta2) (g^2 - v); row -= lr sqrt(1 - beta2^t) / (1 - beta1^t) m / (sqrt(v) +
    eps), where g includes weight_decay * row and t counts the module's updates, not the row's.

    ``lazy``: as torch.optim.SparseAdam, rows that a batch did not touch keep their row, m and v as they are. Otherwise
    as torch.optim.Adam (eps too), every row takes every update, for which one that was not touched has the gradient
    weight_decay * row: what FuxiCTR, RecBole and dense torch embeddings do. It regularizes rare ids far more, and each
    update passes over all rows: for fixed tables of up to some 100,000. An update is a backward through the module, so
    call it once a step. State [rows, 2, dim] per table: m, then v.
    """

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    lazy: bool = True
    kind = "adam"

    def dense_eps(self, step: int) -> float:
        """What makes of the kernel's eps, uncorrected as SparseAdam's, that of torch.optim.Adam in update ``step``."""
        return float(self.eps * (1 - self.betas[1] ** step) ** 0.5)

    def __post_init__(self) -> None:
        _check_rates(self)
        if len(self.betas) != 2 or not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ValueError(f"betas: found {self.betas}, expected two numbers in [0, 1)")


def _check_rates(optimizer: Optimizer) -> None:
    """Raise TypeError or ValueError for a rate that is no number, not finite or below zero."""
    for name in ("lr", "eps", "weight_decay"):
        expect_number(name, getattr(optimizer, name), least=0.0)


Optimizer = SGD | Adagrad | RowWiseAdagrad | Adam
