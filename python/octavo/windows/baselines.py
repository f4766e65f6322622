"""What Personalized Interpolation is compared with, behind one interface: every model here is fitted on a log's events
as they were known at some time, and answers ``predict(events, rows, window)`` for the windows it knows.

* :class:`FixedWindows` of one window, on matured labels: the retrained model per window, the gold standard
* of several windows: one network with a head for each
* :class:`Interpolated`: such a network and a :class:`PersonalizedInterpolator`; without groups, one interpolation for
  all
* :class:`Delayed`: any loss of :mod:`octavo.training.delayed`
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from octavo import models
from octavo.config import AnyModelConfig
from octavo.data import Batch, EventLog, Label, Schema
from octavo.data.encoding import encode_table
from octavo.ops import Jagged
from octavo.training.delayed import DelayedLoss, ExampleBatch, Examples
from octavo.windows.grid import Floats, Ints, WindowsError, window_ms
from octavo.windows.interpolator import PersonalizedInterpolator

_PREDICT = 8192


class Events:
    """A log's events with one late outcome, in memory.

    ``task``: the outcome, whose label in the log has a delay. ``closed``: a column (ms since 1970) after which the
    outcome can no longer come, as a guest who has arrived cannot cancel; None = it can for ever.
    """

    def __init__(self, log: EventLog, task: str, closed: Ints | None = None) -> None:
        label = log.schema.label(task)
        if label.delay is None:
            raise WindowsError(f"task: {task!r} has no delay column; its outcome is not late")
        self.table: pa.Table = log.columns(log.column_names).combine_chunks()
        self.features = dataclasses.replace(log.schema, labels=())
        self.time: Ints = np.asarray(self.table[log.schema.time].to_numpy()).astype(np.int64)
        self.delay: Floats = self.table[label.delay].to_numpy().astype(np.float64)  # s, nan = none
        self.closed: Floats | None = None if closed is None else closed.astype(np.float64)
        self._log = log
        self._whole = encode_table(self.features, self.table, str(log.path))

    def __len__(self) -> int:
        return len(self.time)

    def batch(self, rows: Ints) -> Batch:
        """Their features as one batch, in any order and as often as they are named."""
        whole, place = self._whole, torch.from_numpy(rows)
        columns = ("user", "item", "request", "domain", "weight", "time", "id")
        return Batch(
            dense=whole.dense[place],
            sparse=_taken(whole.sparse, len(self), place),
            sequences={name: _taken(bags, len(self), place) for name, bags in whole.sequences.items()},
            labels={},
            delay={},
            **{name: getattr(whole, name)[place] for name in columns},
        )

    def labels(self, rows: Ints, window: int, until: int | None = None) -> Floats:
        """[n] 1, 0, or nan = the window was still open at ``until`` (ms; None: all are closed): the outcome came within
        ``window`` ms of the event. Open ones are nan where the outcome came already, too: who learned from those would
        learn positives before negatives."""
        inside = self.delay[rows] * 1000 <= window
        if until is None:
            return inside.astype(np.float64)
        over = self.time[rows] + window <= until
        if self.closed is not None:
            over |= self.closed[rows] <= until
        return np.where(over, inside.astype(np.float64), np.nan)

    def conversions(self, rows: Ints, until: int, columns: Sequence[str]) -> dict[str, Any]:
        """What a :class:`PersonalizedInterpolator` is fitted on: keys, anchor and conversion as known at ``until``."""
        came = self.time[rows] + self.delay[rows] * 1000
        found: dict[str, Any] = {name: self.table[name].take(pa.array(rows)) for name in columns}
        return found | {"anchor": self.time[rows], "converted": np.where(came <= until, came, np.nan)}


@dataclass(frozen=True)
class Recipe:
    """How a baseline's network is trained: Adam for the dense part, the model's own optimizer for the tables."""

    model: AnyModelConfig
    epochs: int = 2
    batch_size: int = 256
    lr: float = 1e-3
    seed: int = 0


class WindowModel(Protocol):
    """What all of them are."""

    def fit(self, events: Events, rows: Ints, until: int) -> WindowModel:
        """Learn from ``rows`` as they were known at ``until`` (ms)."""

    def predict(self, events: Events, rows: Ints, window: str) -> Floats:
        """P(outcome within ``window``) [n]. Raises :class:`WindowsError` for a window it does not know."""


@dataclass
class FixedWindows:
    """A head for each of ``windows``; ``monotone``: they cannot contradict each other (model.heads.windows)."""

    windows: Sequence[str]
    recipe: Recipe
    monotone: bool = True
    seconds: float = field(default=0.0, init=False)  # of CPU, the last fit's

    def fit(self, events: Events, rows: Ints, until: int) -> FixedWindows:
        labels = {f"window@{w}": events.labels(rows, window_ms(w, "windows"), until) for w in self.windows}
        known = ~np.all([np.isnan(column) for column in labels.values()], axis=0)
        targets = {head: column[known].astype(np.float32) for head, column in labels.items()}
        nothing = np.full(int(known.sum()), np.nan, np.float32)
        examples = Examples(np.flatnonzero(known), events.time[rows][known], targets, nothing, nothing)
        label = Label("window", "delay", windows=tuple(self.windows))
        heads = self.recipe.model.heads.model_copy(update={"windows": "monotone" if self.monotone else "free"})
        config = self.recipe.model.model_copy(update={"heads": heads})
        schema = dataclasses.replace(events.features, labels=(label,))
        self._model, self.seconds = _trained(schema, config, self.recipe, events, rows, examples, _known_bce)
        return self

    def predict(self, events: Events, rows: Ints, window: str) -> Floats:
        return self.predict_all(events, rows)[_own(window, self.windows)]

    def predict_all(self, events: Events, rows: Ints) -> dict[str, Floats]:
        """All windows' probabilities [n]."""
        found = _predicted(self._model, events, rows, lambda outputs: {k: v.sigmoid() for k, v in outputs.items()})
        return {window: found[f"window@{window}"] for window in self.windows}


@dataclass
class Delayed:
    """A network trained by a loss for late outcomes."""

    loss: DelayedLoss
    recipe: Recipe
    seconds: float = field(default=0.0, init=False)

    def fit(self, events: Events, rows: Ints, until: int) -> Delayed:
        closed = None if events.closed is None else events.closed[rows]
        examples = self.loss.examples(events.time[rows], events.delay[rows], until, closed)
        schema = dataclasses.replace(events.features, labels=tuple(Label(name) for name in self.loss.outputs))
        self._model, self.seconds = _trained(
            schema, self.recipe.model, self.recipe, events, rows, examples, self.loss.loss
        )
        return self

    def predict(self, events: Events, rows: Ints, window: str) -> Floats:
        span = window_ms(window, "window") / 1000

        def probability(outputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            try:
                return {"p": self.loss.probability(outputs, span)}
            except ValueError as error:
                raise WindowsError(str(error)) from None

        return _predicted(self._model, events, rows, probability)["p"]


@dataclass
class Interpolated:
    """A network of fixed windows, and what comes between by ``interpolator``, fitted on the same events."""

    model: FixedWindows
    interpolator: PersonalizedInterpolator

    def fit(self, events: Events, rows: Ints, until: int) -> Interpolated:
        self.model.fit(events, rows, until)
        return self.refit(events, rows, until)

    def refit(self, events: Events, rows: Ints, until: int) -> Interpolated:
        """The delay laws alone."""
        columns = self._keys()
        self.interpolator.fit(events.conversions(rows, until, columns), until)
        return self

    def predict(self, events: Events, rows: Ints, window: str) -> Floats:
        return self.from_heads(self.model.predict_all(events, rows), events, rows, window)

    def from_heads(self, heads: Mapping[str, Floats], events: Events, rows: Ints, window: str) -> Floats:
        """The same, from predictions that were made before."""
        p = [heads[own] for own in self.interpolator.windows]
        groups: Any = {name: events.table[name].take(pa.array(rows)) for name in self._keys()} or rows
        found: Floats = self.interpolator.predict(*p, groups, window=window).astype(np.float64)
        return found

    def _keys(self) -> list[str]:
        settings = self.interpolator.settings
        return [*settings["vertical"], *settings["group"]]


def _taken(bags: Jagged, events: int, rows: torch.Tensor) -> Jagged:
    """The bags of ``rows`` [n] of every feature."""
    features = bags.bags // events
    places = (torch.arange(features)[:, None] * events + rows).flatten()
    first, length = bags.offsets[places], bags.offsets[places + 1] - bags.offsets[places]
    offsets = torch.cat([length.new_zeros(1), length.cumsum(0)])
    inside = torch.repeat_interleave(first - offsets[:-1], length) + torch.arange(int(offsets[-1]))
    return Jagged(bags.values[inside], offsets, None if bags.weights is None else bags.weights[inside])


def _known_bce(outputs: Mapping[str, torch.Tensor], batch: ExampleBatch) -> torch.Tensor:
    losses = []
    for head, target in batch.targets.items():
        known = ~target.isnan()
        bce = torch.nn.functional.binary_cross_entropy_with_logits(
            outputs[head], target.nan_to_num(0.0), reduction="none"
        )
        losses.append((bce * known).sum() / known.sum().clamp_min(1))
    return torch.stack(losses).mean()


def _trained(
    schema: Schema,
    config: AnyModelConfig,
    recipe: Recipe,
    events: Events,
    rows: Ints,
    examples: Examples,
    loss: Callable[[Mapping[str, torch.Tensor], ExampleBatch], torch.Tensor],
) -> tuple[torch.nn.Module, float]:
    """The model after ``recipe.epochs`` shuffled passes over the examples, and the CPU seconds that they took: a cost
    that does not depend on what else the machine does."""
    if not len(examples):
        raise WindowsError("rows: no event's outcome is known; give older events or shorter windows")
    start = time.process_time()
    model = models.build(schema, config.model_copy(update={"seed": recipe.seed}))
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.lr, fused=True)
    for epoch in range(recipe.epochs):
        order = np.random.default_rng((recipe.seed, epoch)).permutation(len(examples))
        for begin in range(0, len(order), recipe.batch_size):
            places = order[begin : begin + recipe.batch_size]
            value = loss(model(events.batch(rows[examples.row[places]])), examples.take(places))
            if not math.isfinite(float(value.detach())):
                raise WindowsError(f"loss is {float(value.detach())} in epoch {epoch}; lower recipe.lr")
            optimizer.zero_grad(set_to_none=True)
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return model, time.process_time() - start


def _predicted(
    model: torch.nn.Module,
    events: Events,
    rows: Ints,
    read: Callable[[Mapping[str, torch.Tensor]], dict[str, torch.Tensor]],
) -> dict[str, Floats]:
    model.eval()
    parts: dict[str, list[npt.NDArray[Any]]] = {}
    with torch.inference_mode():
        for begin in range(0, len(rows), _PREDICT):
            outputs = model(events.batch(rows[begin : begin + _PREDICT]))
            for name, value in read({k: v.double() for k, v in outputs.items()}).items():
                parts.setdefault(name, []).append(value.numpy())
    return {name: np.concatenate(values) for name, values in parts.items()}


def _own(window: str, windows: Sequence[str]) -> str:
    for own in windows:
        if window_ms(own, "windows") == window_ms(window, "window"):
            return own
    raise WindowsError(f"window: found {window}; this model knows {', '.join(windows)} alone")
