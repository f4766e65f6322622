"""What layers see lately: a few figures of recent rows, for those who train without a Probe."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch

from octavo.loka.sites import picked_rows, rows_of
from octavo.ops.dispatch.plan import canonical, is_linear, weight_key

MOST_ROWS = 512  # of a batch; eight batches of them say where the 99.9% quantile lies


@runtime_checkable
class Watcher(Protocol):
    """What a :class:`octavo.loka.SafetyValve` needs of a Probe."""

    def summary(self, site: str) -> Mapping[str, float]:
        """Figures of the input rows that ``site`` saw (canonical module path; of layers that share a weight the first
        one), those that are known of: ``rows``, ``nan_rows``, ``infinite_rows``; ``mean_square_share``, what the
        columns' means have of the mean square (0 to 1); ``crest``, a row's largest magnitude over its root mean square;
        ``amax_p50`` and ``amax_p999``, quantiles of the rows' largest magnitudes. Others are passed over. Raises
        KeyError for an unknown site."""


class RecentRows:
    """Watches the inputs of ``model``'s linear layers: figures of the last ``batches`` batches, one every ``every``
    steps, each of at most ``most_rows`` of its rows, picked at random; NaN and infinities are looked for in all.
    ``only``: asked of a layer when it is called, whether to watch it; None: every layer.

    A Probe's statistics are of all of training, in which a drift shows late; these forget. Call :meth:`step` after each
    training step. Calls inside a ``torch.compile``'d graph are not seen: there, call the model itself once in
    ``every`` steps (under ``torch.no_grad()``, in training mode). :meth:`close` removes the hooks.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        every: int = 100,
        batches: int = 8,
        most_rows: int = MOST_ROWS,
        only: Callable[[torch.nn.Module], bool] | None = None,
    ) -> None:
        for name, value in (("every", every), ("batches", batches), ("most_rows", most_rows)):
            if value < 1:
                raise ValueError(f"{name}: expected 1 or more, found {value}")
        self.every, self.most_rows, self.only, self.steps = every, most_rows, only, 0
        self._paused = False
        self._recent: dict[str, deque[_Batch]] = {}
        self._hooks = []
        first_path: dict[int, str] = {}
        for path, module in model.named_modules():
            if is_linear(module):
                site = first_path.setdefault(weight_key(module), canonical(path))
                kept = self._recent.setdefault(site, deque(maxlen=batches))
                self._hooks.append(module.register_forward_pre_hook(self._hook(kept), with_kwargs=True))
        if not self._recent:
            raise ValueError("model: has no torch.nn.Linear, octavo.nn.Linear or octavo.nn.LinearNorm to watch")

    def step(self) -> None:
        """A training step is over."""
        self.steps += 1

    def summary(self, site: str) -> dict[str, float]:
        """See :class:`Watcher`; empty before the first batch."""
        if site not in self._recent:
            raise KeyError(f"site: {site!r} is not watched; there are {', '.join(self._recent)}")
        return _joined(list(self._recent[site]))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Calls of the model inside are not its training's, and are not watched."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def close(self) -> None:
        """Stop watching."""
        for hook in self._hooks:
            hook.remove()

    def state_dict(self) -> dict[str, torch.Tensor]:
        """What it holds, as tensors by name."""
        state = {"steps": torch.tensor([self.steps])}
        for site, kept in self._recent.items():
            for place, batch in enumerate(kept):
                state |= {f"{site}/{place}/{name}": tensor for name, tensor in batch.state().items()}
        return state

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from :meth:`state_dict`. Raises ValueError for the state of another model."""
        unknown = {name.split("/")[0] for name in state if name != "steps"} - self._recent.keys()
        if unknown:
            raise ValueError(f"state: is of another model; it has {', '.join(sorted(unknown))}")
        self.steps = int(state["steps"])
        for site, kept in self._recent.items():
            kept.clear()
            while f"{site}/{len(kept)}/amax" in state:
                start = f"{site}/{len(kept)}/"
                own = {name.removeprefix(start): value for name, value in state.items() if name.startswith(start)}
                kept.append(_Batch.of_state(own))

    def _hook(self, kept: deque[_Batch]) -> Callable[..., None]:
        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if torch.compiler.is_compiling() or self._paused or self.steps % self.every or not module.training:
                return
            if self.only is not None and not self.only(module):
                return
            x = args[0] if args else kwargs["x" if "x" in kwargs else "input"]
            if x.numel():
                kept.append(_Batch(x.detach(), self.most_rows, self.steps))

        return hook


class _Batch:
    """Sums over finite rows of one batch, at most ``most``; how many of all its rows are not finite."""

    def __init__(self, batch: torch.Tensor, most: int, seed: int) -> None:
        self.nan_rows, self.infinite_rows = _not_finite(batch)
        x = rows_of(batch, picked_rows(batch.shape[:-1].numel(), most, seed)).float()
        amax = x.abs().amax(1)
        finite = amax.isfinite()
        if not bool(finite.all()):
            x, amax = x[finite], amax[finite]
        self.rows, self.amax = len(x), amax
        self.total = x.sum(0, dtype=torch.float64)
        used = amax > 0
        shares = (x / torch.where(used, amax, 1.0)[:, None]).square().sum(1, dtype=torch.float64)  # of (|x| / amax)^2
        self.squares = float((shares * amax.double().square()).sum())
        self.shares = float(shares.sum())
        self.cells = int(used.sum()) * x.shape[1]

    def state(self) -> dict[str, torch.Tensor]:
        counts = [self.nan_rows, self.infinite_rows, self.rows, self.cells, self.squares, self.shares]
        figures = torch.tensor(counts, dtype=torch.float64)
        return {"figures": figures, "amax": self.amax.clone(), "total": self.total.clone()}

    @classmethod
    def of_state(cls, state: Mapping[str, torch.Tensor]) -> _Batch:
        """The inverse of :meth:`state`."""
        found = cls.__new__(cls)
        *counts, found.squares, found.shares = state["figures"].tolist()
        found.nan_rows, found.infinite_rows, found.rows, found.cells = map(int, counts)
        found.amax, found.total = state["amax"].clone(), state["total"].clone()
        return found


def _not_finite(batch: torch.Tensor) -> tuple[int, int]:
    """Rows with NaN, and others with infinities. A finite sum has seen neither, in one pass."""
    if bool(batch.sum().isfinite()):
        return 0, 0
    amax = batch.abs().amax(-1)
    return int(amax.isnan().sum()), int(amax.isinf().sum())


def _joined(batches: list[_Batch]) -> dict[str, float]:
    rows = sum(batch.rows for batch in batches)
    found: dict[str, float] = {
        "rows": rows,
        "nan_rows": sum(batch.nan_rows for batch in batches),
        "infinite_rows": sum(batch.infinite_rows for batch in batches),
    }
    if rows == 0:
        return found if batches else {}
    squares, shares = sum(batch.squares for batch in batches), sum(batch.shares for batch in batches)
    mean = torch.stack([batch.total for batch in batches]).sum(0) / rows
    found["mean_square_share"] = float(mean.square().sum()) * rows / squares if squares > 0 else 0.0
    if shares > 0:
        found["crest"] = math.sqrt(sum(batch.cells for batch in batches) / shares)
    amax = torch.cat([batch.amax for batch in batches]).double()
    found["amax_p50"], found["amax_p999"] = torch.quantile(amax, torch.tensor([0.5, 0.999]).double()).tolist()
    return found
