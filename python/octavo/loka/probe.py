"""Probe: what every linear layer of a model sees while it trains, and what low precision would make of it (LoKA)."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, Self

import torch

from octavo.loka import sites as _sites
from octavo.loka.candidates import Candidate
from octavo.loka.eager import run_eagerly
from octavo.loka.evaluation import Evaluation, Inputs
from octavo.loka.findings import Report
from octavo.loka.layers import fingerprint, is_of
from octavo.loka.ranks import states_of_ranks
from octavo.ops._types import choice
from octavo.ops.dispatch import Requirement

MOST_ROWS = 128  # with all their columns, at every=100, within 1% of training time
WEIGHT_MODELS = ("snapshot", "matrix_normal")


class Probe:
    """Watches the linear layers of ``model`` in every ``every``-th training step.

    Sites are ``torch.nn.Linear`` and octavo's ``nn.Linear`` and ``nn.LinearNorm``, as
    :func:`octavo.ops.dispatch.plan` finds them, but for parametrized ones, in which no plan can be installed (the log
    of ``octavo.loka`` names them); layers that share a weight are one. Call :meth:`step` after each training step. In
    an observed step, at most ``most_rows`` rows of each call, picked at random, enter the statistics of the layer's
    input and of the gradient of x W^T + bias; in the steps between, the model has no hooks at all.

    Gradients: of ``torch.nn.Linear`` and ``nn.Linear`` the gradient of their output; of ``nn.LinearNorm``, whose norm
    and activation are inside, that gradient carried back through them (FP32, x W^T + bias computed again for the rows
    taken), so that it is what ``grad_input`` and ``grad_weight`` kernels multiply there too.

    ``tails``: keep tail statistics (:class:`octavo.loka.Statistics`). ``weights``: ``snapshot``, or ``matrix_normal``
    to model the weight's drift, updated every ``weights_every``-th step. What ``torch.compile`` compiled runs eagerly
    in observed steps: compiled graphs call no hooks. Use it as a context manager, or :meth:`close` it.

    Raises ValueError when the model has no such layer.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        every: int = 100,
        tails: bool = True,
        weights: str = "snapshot",
        *,
        weights_every: int = 1000,
        most_rows: int = MOST_ROWS,
    ) -> None:
        if not isinstance(model, torch.nn.Module):
            raise TypeError(f"model: expected a torch.nn.Module, found {type(model).__name__}")
        choice("weights", weights, WEIGHT_MODELS)
        for name, value in (("every", every), ("weights_every", weights_every), ("most_rows", most_rows)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: expected a whole number of at least 1, found {value}")
        self.model, self.every, self.weights_every, self.most_rows = model, every, weights_every, most_rows
        self.weights, self.tails = weights, tails
        self.sites = _sites.find_sites(model, tails, weights == "matrix_normal")
        self.fingerprint = fingerprint(model)
        self.steps = 0
        self.observed = 0
        self._is_open = True
        self._watch: ExitStack | None = None
        self._watch_if_due()

    def step(self) -> None:
        """A training step is over. Raises RuntimeError when it was to be observed and no layer was reached."""
        if not self._is_open:
            raise RuntimeError("probe: is closed; make a new one and load this one's state_dict into it")
        self.steps += 1
        if self._watch is not None:
            self._unwatch()
            if all(site.m == 0 for site in self.sites.values()):
                raise RuntimeError(
                    "probe: none of the model's linear layers was called through its module in an observed step; run "
                    "the very model that was given to the Probe between two calls of step(), and where its forward "
                    "was exported, traced or put into another graph, probe the eager module it came from"
                )
            self.observed += 1
        if self.weights == "matrix_normal" and self.steps % self.weights_every == 0:
            for site in self.sites.values():
                assert site.weights is not None
                site.weights.observe(site.weight)
        self._watch_if_due()

    def close(self) -> None:
        """Leave the model without hooks. What was seen stays; :meth:`evaluate` goes on working."""
        self._is_open = False
        self._unwatch()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Calls of the model inside are not its training's, and are not watched."""
        self._unwatch()
        try:
            yield
        finally:
            self._watch_if_due()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def unreached(self) -> tuple[str, ...]:
        """Sites that no observed step called."""
        return tuple(site.path for site in self.sites.values() if site.m == 0)

    def summary(self, site: str) -> dict[str, float | int]:
        """Figures of the input rows that ``site`` (canonical module path) saw so far, as
        :class:`octavo.loka.SafetyValve` compares them. Raises KeyError for a site the model does not have."""
        if site not in self.sites:
            raise KeyError(f"site: {site!r} is not a linear layer of the model; there are {', '.join(self.sites)}")
        return self.sites[site].input.summary()

    def evaluate(
        self,
        candidates: Sequence[str | Candidate] | None = None,
        draws: int = 100,
        *,
        requirement: Requirement | None = None,
        inputs: Inputs = "learned",
        rows: int = 256,
        measure_costs: bool = True,
        seed: int = 0,
    ) -> Report:
        """Errors, cost and concerns of every class at every site and direction.

        For each site and direction, pairs of operands of ``rows`` rows are drawn from what was seen, run through the
        real kernels of each class, and compared with FP64 of the same operands; intervals are 95% bootstrap over the
        draws. ``candidates``: names of numerics classes, or :class:`Candidate` for kernels of your own; None: every
        class that this machine serves. ``draws``: at most this many; with a ``requirement`` a site's drawing stops as
        soon as every interval lies on one side of its limits. ``inputs``: ``learned`` or, as the benchmark Probe is to
        beat, ``standard_normal``. ``measure_costs``: time the candidates at the site's m; else costs are dispatch's
        calibrated ones, or None. Sites never reached are named in ``report.settings["unreached"]``.

        Raises RuntimeError when nothing was observed, ValueError or TypeError for an argument.
        """
        if self.observed == 0:
            raise RuntimeError(
                f"probe: none of {self.steps} steps was observed (every={self.every}); call step() after each training "
                "step and train longer, or probe with a smaller every"
            )
        evaluation = Evaluation(candidates, draws, requirement, inputs, rows, measure_costs, seed)
        own = {"every": self.every, "most_rows": self.most_rows, "weights": self.weights, "observed": self.observed}
        settings = {**own, "unreached": list(self.unreached)}
        reached = [site for site in self.sites.values() if site.m > 0]
        return evaluation.report(reached, self.fingerprint, self.steps, settings)

    # --- state --------------------------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, torch.Tensor]:
        """All that was seen, as tensors by name; no weights but those of ``matrix_normal``."""
        state = {
            "fingerprint": torch.frombuffer(bytearray.fromhex(self.fingerprint), dtype=torch.uint8),
            "steps": torch.tensor([self.steps, self.observed]),
        }
        for site in self.sites.values():
            state[f"{site.path}/call"] = torch.tensor([site.m, _sites.DTYPES.index(site.dtype)])
            for part, content in _sites.parts_of(site):
                state |= {f"{site.path}/{part}/{name}": tensor for name, tensor in content.state_dict().items()}
        return state

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from :meth:`state_dict`. Raises ValueError for the state of another model or other settings."""
        self._expect_same_set_up(state)
        for site in self.sites.values():
            for part, content in _sites.parts_of(site):
                start = f"{site.path}/{part}/"
                own = {name.removeprefix(start): tensor for name, tensor in state.items() if name.startswith(start)}
                try:
                    content.load_state_dict(own)
                except ValueError as error:
                    raise ValueError(f"{site.path}: {part}: {error}; was it saved with other settings?") from error
            site.m, dtype = state[f"{site.path}/call"].tolist()
            site.dtype = _sites.DTYPES[dtype]
        self.steps, self.observed = state["steps"].tolist()
        self._unwatch()
        self._watch_if_due()

    def merge(self, other: Probe | Mapping[str, torch.Tensor]) -> None:
        """Take in what another process's Probe of the same model saw: the Probe, or its :meth:`state_dict`.

        Raises ValueError when it watched another model or keeps other statistics (``tails``, ``weights``), before
        anything is changed.
        """
        state = other.state_dict() if isinstance(other, Probe) else other
        if not isinstance(state, Mapping):
            raise TypeError(f"other: expected a Probe or its state_dict, found {type(state).__name__}")
        twin = Probe(self.model, self.every, self.tails, self.weights, weights_every=self.weights_every)
        twin.close()
        twin.load_state_dict(state)
        for site, seen in zip(self.sites.values(), twin.sites.values(), strict=True):
            for (_, mine), (_, theirs) in zip(_sites.parts_of(site), _sites.parts_of(seen), strict=True):
                mine.merge(theirs)  # type: ignore[arg-type]
            if seen.m > site.m:
                site.m, site.dtype = seen.m, seen.dtype
        self.steps, self.observed = max(self.steps, twin.steps), self.observed + twin.observed

    def merge_ranks(self, group: Any = None) -> Probe:
        """What the ranks of a process group saw, all together: a new Probe, closed, equal on every rank bit for bit;
        this one goes on as it is. Every rank must call it at the same step; ``group``: None for torch's default one.

        Raises ValueError, on every rank, when one watches another model or was set up otherwise; RuntimeError without a
        process group.
        """
        states = states_of_ranks(self.state_dict(), group)
        whole = Probe(self.model, self.every, self.tails, self.weights, weights_every=self.weights_every,
                      most_rows=self.most_rows)  # fmt: skip
        whole.close()
        whole.load_state_dict(states[0])
        for state in states[1:]:
            whole.merge(state)
        return whole

    def _expect_same_set_up(self, state: Mapping[str, torch.Tensor]) -> None:
        if "fingerprint" not in state:
            raise ValueError("state: is not the state_dict of a Probe (it has no fingerprint)")
        found = bytes(state["fingerprint"].tolist()).hex()
        if not is_of(self.model, found):  # states of before have none
            theirs = {name.removesuffix("/call") for name in state if name.endswith("/call")}
            different = sorted(theirs ^ set(self.sites)) or ["the same paths with other shapes or epilogues"]
            raise ValueError(
                f"state: is of another model ({', '.join(different[:5])}); ranks and runs that are merged must have "
                "the same linear layers"
            )
        kept = self.state_dict().keys()
        extra, missing = sorted(state.keys() - kept), sorted(kept - state.keys())
        if extra or missing:
            raise ValueError(
                f"state: is of a Probe that was set up otherwise: it has {', '.join(extra[:3]) or 'nothing else'} and "
                f"lacks {', '.join(missing[:3]) or 'nothing'}; give both the same tails and weights"
            )

    def _watch_if_due(self) -> None:
        if not self._is_open or (self.steps + 1) % self.every:
            return
        self._watch = _sites.watch(self.sites, self.most_rows)
        run_eagerly(self._watch)
        self._finalizer = weakref.finalize(self, self._watch.close)  # of a Probe that nobody closed

    def _unwatch(self) -> None:
        if self._watch is not None:
            self._finalizer()
            self._watch = None
