"""Losses for outcomes that come late, behind one interface: what a model must output, which examples a stream gives and
when, what is minimised, and the probability that comes of it. Formulas: methods.md 5b.

========================  ====================================  ==============================  ==================
loss                      examples                              outputs                         windows
========================  ====================================  ==============================  ==================
:class:`DFM`              one, when training happens            convert, rate                   any
:class:`BucketHazard`     one, when training happens            hazard_0 .. hazard_K-1          any up to the last edge
:class:`FNW`              the event as a negative; its outcome  convert                         its own
:class:`FNC`              the same                              convert                         its own
:class:`ESDFM`            after a wait; later outcomes          convert, delayed, real          its own
:class:`DEFER`            after a wait; all again               convert, delayed                its own
:class:`FSIW`             one, when training happens            convert, observed_k, none_k     its own
========================  ====================================  ==============================  ==================

Times are int64 ms, delays and windows here seconds in float32 tensors, logits float32 [B].
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Outputs = Mapping[str, torch.Tensor]
_DAY = 86_400.0


@dataclass(frozen=True)
class Examples:
    """What a stream gives to learn, by time. ``row`` [m]: which event; ``time`` [m] ms: from when on it can be learned;
    ``targets`` {output: [m] float32}, nan = says nothing of it; ``delay`` [m] s, nan = none so far; ``elapsed`` [m] s:
    for how long the event was watched, inf = its outcome can no longer come."""

    row: Ints
    time: Ints
    targets: dict[str, npt.NDArray[np.float32]]
    delay: npt.NDArray[np.float32]
    elapsed: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.row)

    def take(self, places: npt.NDArray[np.int64]) -> ExampleBatch:
        """Some of them as tensors."""
        return ExampleBatch(
            {name: torch.from_numpy(values[places]) for name, values in self.targets.items()},
            torch.from_numpy(self.delay[places]),
            torch.from_numpy(self.elapsed[places]),
        )


@dataclass(frozen=True)
class ExampleBatch:
    """Targets, delays and elapsed times [B] of one update."""

    targets: Mapping[str, torch.Tensor]
    delay: torch.Tensor
    elapsed: torch.Tensor


class DelayedLoss(Protocol):
    """One way to learn from outcomes that come late."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the logits that a model must give, such as the tasks of an :class:`octavo.models.Ranker`."""

    def examples(self, time: Ints, delay: Floats, until: int, closed: Floats | None = None) -> Examples:
        """What events at ``time`` [n] ms, whose outcomes came ``delay`` [n] s later (nan: none), gave to learn up to
        ``until`` (ms). ``closed`` [n] ms: when it was known that no outcome would come any more, nan = never."""

    def loss(self, outputs: Outputs, batch: ExampleBatch) -> torch.Tensor:
        """What is minimised over a batch: a mean."""

    def probability(self, outputs: Outputs, window: float) -> torch.Tensor:
        """P(outcome within ``window`` s) [B] in [0, 1]. Raises ValueError for a window that this loss does not know."""


@dataclass(frozen=True)
class DFM:
    """Delayed feedback model [Chapelle, KDD 2014]: p = P(converts at all), delay ~ Exp(lambda(x)).

        outcome after d:  -ln p - ln lambda + lambda d          none after e:  -ln(1 - p + p e^(-lambda e))

    ``rate`` is ln lambda with lambda per day. ``detach``: no gradient to lambda from events without outcome, which else
    explain themselves by slowness [TWICE].
    """

    detach: bool = False

    @property
    def outputs(self) -> tuple[str, ...]:
        return ("convert", "rate")

    def examples(self, time: Ints, delay: Floats, until: int, closed: Floats | None = None) -> Examples:
        return _watched(time, delay, until, closed, {})

    def loss(self, outputs: Outputs, batch: ExampleBatch) -> torch.Tensor:
        z, rate = outputs["convert"], outputs["rate"].clamp(-20.0, 20.0)
        came = ~batch.delay.isnan()
        days = batch.delay.nan_to_num(0.0) / _DAY
        positive = -functional.logsigmoid(z) - rate + rate.exp() * days
        waiting = rate.detach() if self.detach else rate
        # inf: its outcome can no longer come, so that e^(-lambda e) is 0; times 0 in the gradient it must not be nan.
        survived = -waiting.exp() * batch.elapsed.clamp_max(1e9) / _DAY
        negative = -torch.logaddexp(functional.logsigmoid(-z), functional.logsigmoid(z) + survived)
        return torch.where(came, positive, negative).mean()

    def probability(self, outputs: Outputs, window: float) -> torch.Tensor:
        rate = outputs["rate"].clamp(-20.0, 20.0).exp()
        return outputs["convert"].sigmoid() * -torch.expm1(-rate * (window / _DAY))


@dataclass(frozen=True)
class BucketHazard:
    """Survival over buckets of delay [NoDeF's nonparametric kin]: S(d) = prod_{k < d} (1 - h_k), h_k = sigmoid of
    ``hazard_k`` for delays in (edges[k], edges[k + 1]] s. Events say something of the buckets that they were watched
    through.
    """

    edges: tuple[float, ...]

    def __post_init__(self) -> None:
        _expect_edges(self.edges)

    @property
    def outputs(self) -> tuple[str, ...]:
        return tuple(f"hazard_{k}" for k in range(len(self.edges) - 1))

    def examples(self, time: Ints, delay: Floats, until: int, closed: Floats | None = None) -> Examples:
        return _watched(time, delay, until, closed, {})

    def loss(self, outputs: Outputs, batch: ExampleBatch) -> torch.Tensor:
        z = torch.stack([outputs[name] for name in self.outputs], 1)
        ends = z.new_tensor(self.edges[1:])
        came = ~batch.delay.isnan()
        bucket = torch.bucketize(batch.delay.nan_to_num(0.0), ends)  # right edges belong to their bucket
        survived = torch.where(came, bucket, torch.bucketize(batch.elapsed, ends, right=True))
        place = torch.arange(len(ends), device=z.device)
        through = place < survived[:, None]
        inside = came[:, None] & (place == bucket[:, None])
        terms = functional.softplus(z) * through + functional.softplus(-z) * inside
        return terms.sum(1).mean()

    def probability(self, outputs: Outputs, window: float) -> torch.Tensor:
        if not 0 <= window <= self.edges[-1]:
            raise ValueError(f"window: found {window} s; expected 0 to the last edge, {self.edges[-1]} s")
        z = torch.stack([outputs[name] for name in self.outputs], 1)
        edges = z.new_tensor(self.edges)
        share = ((window - edges[:-1]) / edges.diff()).clamp(0.0, 1.0)  # of a bucket, at a constant hazard within it
        return -torch.expm1(-(functional.softplus(z) * share).sum(1))


@dataclass(frozen=True)
class _FakeNegatives:
    """A stream in which an event is a negative at once, and a positive when its outcome comes within ``window`` s."""

    window: float

    @property
    def outputs(self) -> tuple[str, ...]:
        return ("convert",)

    def examples(self, time: Ints, delay: Floats, until: int, closed: Floats | None = None) -> Examples:
        late = delay <= self.window
        first = _part(time, 0.0, {"convert": np.zeros(len(time))}, np.ones(len(time), bool))
        return _joined([first, _part(time, delay, {"convert": np.ones(len(time))}, late)], until, self.outputs)


@dataclass(frozen=True)
class FNW(_FakeNegatives):
    """Fake negative weighted [Ktena et al., RecSys 2019]: an event is a negative at once, and a positive when its
    outcome comes within ``window`` s; weights turn the biased stream into the truth, with p the model's own (no
    gradient): positives 1 + p, negatives (1 - p)(1 + p).
    """

    def loss(self, outputs: Outputs, batch: ExampleBatch) -> torch.Tensor:
        z, y = outputs["convert"], batch.targets["convert"]
        p = z.detach().sigmoid()
        return _weighted(z, y, 1 + p, (1 - p) * (1 + p))

    def probability(self, outputs: Outputs, window: float) -> torch.Tensor:
        _expect_own(window, self.window)
        return outputs["convert"].sigmoid()


@dataclass(frozen=True)
class FNC(_FakeNegatives):
    """Fake negative calibration [Ktena et al., RecSys 2019]: the same stream, learned as it is; the truth is
    p = q / (1 - q) of its share q of positives, cut at 1."""

    def loss(self, outputs: Outputs, batch: ExampleBatch) -> torch.Tensor:
        z, y = outputs["convert"], batch.targets["convert"]
        return _weighted(z, y, torch.ones_like(z), torch.ones_like(z))

    def probability(self, outputs: Outputs, window: float) -> torch.Tensor:
        _expect_own(window, self.window)
        return outputs["convert"].clamp_max(0.0).exp()  # the odds of q


@dataclass(frozen=True)
class ESDFM:
    """Elapsed-time sampling [Yang et al., AAAI 2021]: an event is learned ``wait`` s after it, with what had happened;
    an outcome that comes later, within ``window`` s, is learned once more. Weights, without gradient: positives
    1 + f_dp, negatives (1 + f_dp) f_rn, with f_dp = P(outcome after the wait), f_rn = P(no outcome at all | none
    within the wait). Both are outputs (``delayed``, ``real``), learned from events whose window, or whose chance of an
    outcome, is over.
    """

    wait: float
    window: float

    @property
    def outputs(self) -> tuple[str, ...]:
        return ("convert", "delayed", "real")

    def examples(self, time: Ints, delay: Floats, until: int, closed: Floats | None = None) -> Examples:
        early, late = delay <= self.wait, (delay > self.wait) & (delay <= self.window)
        every = np.ones(len(time), bool)
        first = _part(time, self.wait, {"convert": early.astype(float)}, every)
        again = _part(time, delay, {"convert": np.ones(len(time))}, late)
        truth = {"delayed": late.astype(float), "real": np.where(early, np.nan, (~late).astype(float))}
        over = _known_after(time, delay, self.window, closed)
        return _joined([first, again, _part(time, over, truth, every)], until, self.outputs)

    def loss(self, outputs: Outputs, batch: ExampleBatch) -> torch.Tensor:
        delayed, real = outputs["delayed"].detach().sigmoid(), outputs["real"].detach().sigmoid()
        main = _weighted(outputs["convert"], batch.targets["convert"], 1 + delayed, (1 + delayed) * real)
        return main + _plain(outputs, batch, ("delayed", "real"))

    def probability(self, outputs: Outputs, window: float) -> torch.Tensor:
        _expect_own(window, self.window)
        return outputs["convert"].sigmoid()


@dataclass(frozen=True)
class DEFER:
    """Every event twice, after [Gu et al., 2021]: ``wait`` s after it with what had happened, and with the truth when
    it is known: at a later outcome, else when ``window`` s, or the chance of one, are over. The events' distribution
    stays the true one; with
    q(1) = p - f_dp / 2 the weights, without gradient, are p / (p - f_dp / 2) and (1 - p) / (1 - p + f_dp / 2).
    """

    wait: float
    window: float

    @property
    def outputs(self) -> tuple[str, ...]:
        return ("convert", "delayed")

    def examples(self, time: Ints, delay: Floats, until: int, closed: Floats | None = None) -> Examples:
        early, late = delay <= self.wait, (delay > self.wait) & (delay <= self.window)
        every = np.ones(len(time), bool)
        first = _part(time, self.wait, {"convert": early.astype(float)}, every)
        over = _known_after(time, delay, self.window, closed)
        again = _part(time, np.where(late, delay, over), {"convert": (early | late).astype(float)}, every)
        closing = _part(time, over, {"delayed": late.astype(float)}, every)
        return _joined([first, again, closing], until, self.outputs)

    def loss(self, outputs: Outputs, batch: ExampleBatch) -> torch.Tensor:
        p = outputs["convert"].detach().sigmoid()
        half = torch.minimum(outputs["delayed"].detach().sigmoid(), p) / 2
        tiny = torch.finfo(p.dtype).tiny
        positive, negative = p / (p - half).clamp_min(tiny), (1 - p) / (1 - p + half).clamp_min(tiny)
        return _weighted(outputs["convert"], batch.targets["convert"], positive, negative) + _plain(
            outputs, batch, ("delayed",)
        )

    def probability(self, outputs: Outputs, window: float) -> torch.Tensor:
        _expect_own(window, self.window)
        return outputs["convert"].sigmoid()


@dataclass(frozen=True)
class FSIW:
    """Feedback shift importance weighting [Yasui et al., WWW 2020]: each event once, positive when its outcome had come
    by then. Weights, without gradient: positives 1 / P(had come | converts), negatives P(does not convert | had not
    come), both of x and of the time e that the event was watched; 1 once ``window`` s are over.

    Both are outputs, ``observed_k`` and ``none_k`` for e in (edges[k], edges[k + 1]] s, the last edge being ``window``.
    They are learned as the paper does, at a counterfactual deadline: the one a window earlier, by which events between
    one and two windows old are young, and have turned out since.
    """

    edges: tuple[float, ...]

    def __post_init__(self) -> None:
        _expect_edges(self.edges)

    @property
    def window(self) -> float:
        return self.edges[-1]

    @property
    def outputs(self) -> tuple[str, ...]:
        kinds = [f"{kind}_{k}" for kind in ("observed", "none") for k in range(len(self.edges) - 1)]
        return ("convert", *kinds)

    def examples(self, time: Ints, delay: Floats, until: int, closed: Floats | None = None) -> Examples:
        found = _watched(time, delay, until, closed, {})
        came = delay <= self.window  # nan: never
        seen = came & (delay <= (until - time) / 1000)
        young = (until - time) / 1000 - self.window  # how old it was at the counterfactual deadline
        early = came & (delay <= young)
        open_ = (young >= 0) & (young < self.window)
        if closed is not None:
            open_ &= ~(closed <= until - self.window * 1000)
        bucket = np.searchsorted(self.edges[1:], young, side="left")
        targets = {"convert": seen.astype(np.float32)}
        for k in range(len(self.edges) - 1):
            here = open_ & (bucket == k)
            targets[f"observed_{k}"] = np.where(here & came, early, np.nan).astype(np.float32)
            targets[f"none_{k}"] = np.where(here & ~early, ~came, np.nan).astype(np.float32)
        return replace(found, targets=targets)

    def loss(self, outputs: Outputs, batch: ExampleBatch) -> torch.Tensor:
        kinds = self.outputs[1:]
        buckets = len(kinds) // 2
        weights = torch.stack([outputs[name].detach().sigmoid() for name in kinds], 1)
        ends = weights.new_tensor(self.edges[1:])
        open_ = batch.elapsed < self.window
        bucket = torch.bucketize(batch.elapsed, ends).clamp_max(buckets - 1)[:, None]
        observed, none = (part.gather(1, bucket)[:, 0] for part in weights.split(buckets, 1))
        one = torch.ones_like(observed)
        # A weight of an outcome that hardly ever comes so early would be all of its batch: at most 100.
        positive = torch.where(open_, 1 / observed.clamp_min(0.01), one)
        main = _weighted(outputs["convert"], batch.targets["convert"], positive, torch.where(open_, none, one))
        return main + _plain(outputs, batch, kinds)

    def probability(self, outputs: Outputs, window: float) -> torch.Tensor:
        _expect_own(window, self.window)
        return outputs["convert"].sigmoid()


def _known_after(time: Ints, delay: Floats, window: float, closed: Floats | None) -> Floats | float:
    """Seconds after each event at which it is known what came of it within ``window`` s: when that is over, or sooner
    where ``closed`` [n] ms says that nothing can come any more; never before an outcome that did come."""
    if closed is None:
        return window
    chance = np.fmax(np.maximum((closed - time) / 1000, 0.0), delay)
    return np.fmin(window, chance)


def _watched(
    time: Ints, delay: Floats, until: int, closed: Floats | None, targets: dict[str, npt.NDArray[np.float32]]
) -> Examples:
    """Each event once, as it stood at ``until``."""
    age = (until - time) / 1000
    _expect_past(age)
    known = np.where(delay <= age, delay, np.nan)
    elapsed = age if closed is None else np.where(closed <= until, np.inf, age)
    row = np.arange(len(time), dtype=np.int64)
    return Examples(row, time, targets, known.astype(np.float32), elapsed.astype(np.float32))


@dataclass(frozen=True)
class _Part:
    row: Ints
    time: Ints
    targets: dict[str, Floats]


def _part(time: Ints, after: Floats | float, targets: Mapping[str, Floats], which: npt.NDArray[np.bool_]) -> _Part:
    """Some of the events, ``after`` s after them; a ms later than rounding would have it, never earlier."""
    row = np.flatnonzero(which)
    wait = np.broadcast_to(np.asarray(after, np.float64), time.shape)[row]
    return _Part(row, time[row] + np.ceil(wait * 1000).astype(np.int64), {k: v[row] for k, v in targets.items()})


def _joined(parts: Sequence[_Part], until: int, outputs: Sequence[str]) -> Examples:
    """All parts' examples that could be learned by ``until``, by time; equal times in the order of the parts."""
    time = np.concatenate([part.time for part in parts])
    row = np.concatenate([part.row for part in parts])
    order = np.argsort(time, kind="stable")
    order = order[time[order] <= until]
    targets = {}
    for name in outputs:
        columns = [part.targets.get(name, np.full(len(part.row), np.nan)) for part in parts]
        targets[name] = np.concatenate(columns)[order].astype(np.float32)
    nothing = np.full(len(order), np.nan, np.float32)
    return Examples(row[order], time[order], targets, nothing, nothing)


def _weighted(z: torch.Tensor, y: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
    """Mean over known targets of -w_1 y ln p - w_0 (1 - y) ln(1 - p); 0 where none is known."""
    known = ~y.isnan()
    y = y.nan_to_num(0.0)
    terms = -positive * y * functional.logsigmoid(z) - negative * (1 - y) * functional.logsigmoid(-z)
    return (terms * known).sum() / known.sum().clamp_min(1)


def _plain(outputs: Outputs, batch: ExampleBatch, names: Sequence[str]) -> torch.Tensor:
    ones = [torch.ones_like(outputs[name]) for name in names]
    losses = [_weighted(outputs[name], batch.targets[name], one, one) for name, one in zip(names, ones, strict=True)]
    return torch.stack(losses).sum()


def _expect_edges(edges: Sequence[float]) -> None:
    if len(edges) < 2 or edges[0] != 0 or any(b <= a for a, b in itertools.pairwise(edges)):
        raise ValueError(f"edges: found {edges}; expected 0 and then increasing seconds")


def _expect_own(window: float, own: float) -> None:
    if not math.isclose(window, own, rel_tol=1e-9):
        raise ValueError(f"window: found {window} s; this loss knows its own, {own} s, alone: train one for each")


def _expect_past(age: Floats) -> None:
    if (age < 0).any():
        raise ValueError(f"until: {-age.min():g} s before event {int(age.argmin())}; leave later events out")
