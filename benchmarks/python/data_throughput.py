"""From a file to batches: octavo's reader against the toolkits' loaders and what torch's DataLoader can do.

The log has no lists. ``fuxictr`` and ``recbole`` are their own loaders, in environments of their own below
``build/peers``, on their own files, whose ids were encoded beforehand. The others read our parquet, decode nothing but
plain columns and hash nothing: ``rows``, a Dataset of rows, collated (most tutorials' way, large batches); ``slices``,
one float64 array of the file, cut a batch at a time by a batch sampler, the best a DataLoader can do. Each call is a
pass over the whole log, its reading included. Batches are looked at by their length only.

Then the trainer's idle share: time it waits for a batch, of the time of its pass, after the first batch.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import harness
import numpy as np
import peers
import pyarrow.parquet as pq
import torch
from environments import FUXICTR, RECBOLE, Environment
from harness import Entry, Interval, where
from toolkits import prepared, started, write_toolkit_files
from torch.utils.data import BatchSampler, DataLoader, Dataset, SequentialSampler
from train_throughput import DIM, LR, MODELS

from octavo.config import build_config
from octavo.data import AdsWorld, EventLog, prefetched
from octavo.training import Trainer, trainer

PRESET, BATCH = "reference", 4096
EVENTS = {"smoke": 2 * BATCH, "quick": 12 * BATCH, "full": 64 * BATCH}
PASSES = {"smoke": 1, "quick": 3, "full": 5}  # of the trainer


def plain_columns(log: EventLog) -> list[str]:
    """The columns that a flat array can hold: dense features, single-valued ids, outcomes."""
    schema = log.schema
    single = [feature.name for feature in schema.sparse if not feature.multi]
    return [feature.name for feature in schema.dense] + single + schema.tasks


def read_array(log: EventLog) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Every plain column of every file, [events, columns]."""
    names = plain_columns(log)
    parts = [pq.read_table(log.path / file.name, columns=names) for file in log.files]
    return np.concatenate(
        [np.stack([part.column(name).to_numpy().astype(np.float64) for name in names], axis=1) for part in parts]
    )


class Rows(Dataset[torch.Tensor]):
    """The rows of a list of positions."""

    def __init__(self, array: np.ndarray[Any, np.dtype[np.float64]]) -> None:
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, at: Sequence[int]) -> Any:
        return self.array[at]


class Columns(Dataset[dict[str, Any]]):
    """A row as a dict of values."""

    def __init__(self, array: np.ndarray[Any, np.dtype[np.float64]], names: list[str]) -> None:
        self.columns = {name: array[:, at].copy() for at, name in enumerate(names)}
        self.rows = len(array)

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, at: int) -> dict[str, Any]:
        return {name: column[at] for name, column in self.columns.items()}


def consumed(make: Callable[[], Iterable[Any]], expected: int) -> Callable[[int], object]:
    """One pass: every batch made, and no fewer than there are."""

    def call(_: int) -> None:
        if (found := sum(1 for _ in make())) != expected:
            raise RuntimeError(f"{found} batches, expected {expected}")

    return call


def loaders(log: EventLog, workers: int) -> dict[str, Callable[[], Iterable[Any]]]:
    """What a DataLoader does, from file to last batch."""

    def rows() -> Iterable[Any]:
        return DataLoader(Columns(read_array(log), plain_columns(log)), batch_size=BATCH, num_workers=workers)

    def slices() -> Iterable[Any]:
        data = Rows(read_array(log))
        sampler = BatchSampler(SequentialSampler(data), BATCH, drop_last=False)
        return DataLoader(data, sampler=sampler, batch_size=None, num_workers=workers)

    return {"rows": rows, "slices": slices}


def toolkit_loaders(
    run: harness.Run, log: EventLog, folder: Path, children: ExitStack
) -> tuple[list[Entry], dict[str, str]]:
    """FuxiCTR's and RecBole's own loaders, as entries, and why one is absent."""
    rivals: list[Entry] = []
    absent: dict[str, str] = {}
    files = write_toolkit_files(log, folder, BATCH)
    chosen = {**MODELS["dcnv2"], "embedding_dim": DIM, "lr": LR, "reads_only": True, "model": "DCNV2"}
    workers = (0, 2) if run.is_full else (0,)
    cases = [(FUXICTR, f"fuxictr, {count} workers", {"workers": count}) for count in workers]
    for environment, name, own in [*cases, (RECBOLE, "recbole", {})]:

        def entry(environment: Environment = environment, name: str = name, own: dict[str, int] = own) -> Entry:
            passes = started(run, environment, {**files, **chosen, **own}, folder / name, children)

            def call(_: int) -> None:
                if (found := passes.call()["events"]) != len(log):
                    raise RuntimeError(f"{name}: {found} events, expected {len(log)}")

            call(0)
            return Entry(name, call, facts={"kind": environment.name}, items=len(log))

        peers.admit(rivals, absent, name, entry)
    return rivals, absent


def idle_share(log: EventLog, folder: Path) -> tuple[float, int]:
    """Time the trainer waits for its next batch, of its pass; the batches it took."""
    waited, taken, began = 0.0, 0, 0.0

    def watched(items: Iterable[Any], ahead: int = 2) -> Iterator[Any]:
        nonlocal waited, taken, began
        source = prefetched(items, ahead)
        while True:
            start = time.perf_counter()
            item = next(source, None)
            if item is None:
                return
            if taken:
                waited += time.perf_counter() - start
            else:
                began = time.perf_counter()
            taken += 1
            yield item

    training = {"batch_size": BATCH, "checkpoint_every": 0, "holdout": 0.0}
    config = build_config({"training": training, "plan": {}}, [], source="data_throughput")
    with mock.patch.object(trainer, "prefetched", watched):
        for _ in Trainer(config, log, folder).run():
            pass
    if not taken:
        raise RuntimeError("the trainer took no batch through prefetched")
    return waited / (time.perf_counter() - began), taken


def body(run: harness.Run) -> None:
    """One contest, then the idle share."""
    events = EVENTS[run.effort.name]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        world = AdsWorld(PRESET, seed=0).write(folder / "world", events=events)
        log = prepared(world, folder / "log", events, BATCH, lists=False)
        batches = -(-events // BATCH)
        ours = [Entry("octavo EventLog", consumed(lambda: log.batches(BATCH), batches), items=events)]
        with ExitStack() as children:
            rivals, absent = toolkit_loaders(run, log, folder, children)
            for workers in (0, 2):
                for kind, make in loaders(log, workers).items():
                    label = f"DataLoader {kind}, {workers} workers"
                    rivals.append(Entry(label, consumed(make, batches), facts={"kind": kind}, items=events))
            run.contest("data_throughput", {"preset": PRESET, "events": events, "batch": BATCH}, ours, rivals, absent)
        for kind, first in (("fuxictr", "fuxictr, 0 workers"), ("recbole", "recbole")):
            run.finding(f"data_throughput_vs_{kind}", where(), where(kind=kind), [first], 10.0)
        for kind in ("rows", "slices"):
            names = [f"DataLoader {kind}, {workers} workers" for workers in (0, 2)]
            run.finding(f"data_throughput_vs_{kind}", where(), where(kind=kind), names)
        found = [idle_share(world, folder / f"run-{n}") for n in range(PASSES[run.effort.name])]
        shares = sorted(share for share, _ in found)
        middle = Interval(shares[len(shares) // 2], shares[0], shares[-1])
        run.measured("trainer_idle_share", middle, 0.02, at_most=True, batches=found[0][1])


if __name__ == "__main__":
    harness.main("data_throughput", body)
