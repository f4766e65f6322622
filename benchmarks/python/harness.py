"""The one place that times candidates and computes figures: interleaved rounds, quantiles, ratios, bars, JSON lines.

``harness.py --list`` prints the benchmarks' names. Every benchmark has ``--quick`` (under 5 minutes on 2 cores; the
full run under 30), ``--smoke`` (seconds; figures mean nothing), ``--json`` and ``--out FILE``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch reads it at its first allocation: huge pages for torch too

import numpy as np
import roofs
from command_line import command_line, level_of
from machine import facts
from records import print_tables, write

NAMES = ("linear_norm", "linear_mixed", "linear_backward", "embedding_forward", "embedding_backward", "quantize",
         "overhead", "train_step", "isa", "dispatch_regret", "dynamic_table", "simulate", "memory",
         "bayes_gap", "quality_parity", "data_throughput", "train_throughput",
         "loka_prediction", "loka_faults", "loka_quality", "loka_comm", "loka_mods", "loka_inference", "loka_training",
         "loka_dispatch", "loka_overhead", "exfm_stream", "exfm_sweeps", "exfm_real", "exfm_cost", "das_throughput",
         "windows_synthetic", "windows_censoring", "windows_speed", "windows_real")  # fmt: skip
# On a GPU, in the order of `make gpu-bench`, with the seconds each may take there (gpu_run.py).
GPU_BUDGETS = {"gpu_gemm": 90, "gpu_norm_quantize": 75, "gpu_embedding": 90, "gpu_dispatch": 180,
               "gpu_linear_norm": 330, "gpu_model": 330}  # fmt: skip
RESAMPLES = 2000
HOPELESS_US, HOPELESS = 1e5, 6  # torch without AVX-512: 1.7 s a step in BF16 where FP32 takes 0.07 s


@dataclass(frozen=True)
class Effort:
    """How long to look: per contest ``budget_s`` within the bounds on rounds; a sample lasts about ``sample_us``."""

    name: str
    budget_s: float
    min_rounds: int
    max_rounds: int
    sample_us: float
    roof_ms: float


EFFORTS = {
    "smoke": Effort("smoke", 0.02, 3, 3, 5.0, 3.0),
    "quick": Effort("quick", 2.5, 7, 40, 200.0, 60.0),
    "full": Effort("full", 6.0, 11, 80, 300.0, 150.0),
}


@dataclass(frozen=True)
class Entry:
    """One candidate of a contest. ``call(i)`` is its i-th call, so that inputs may vary; with ``prepare``, call gets
    what ``prepare(i)`` returned, and preparing is not timed. ``captures``: on a GPU its calls may be recorded in a CUDA
    graph.

    ``io``: element type at the boundary (for tables: of the rows); a row's ``best_peer`` is the best at the same one.
    ``group``: what kind of peer. ``facts``: further columns of the row (numerics, route). ``flops``, ``bytes``,
    ``items``: work of one call; ``roof``: what the share is of.
    """

    name: str
    call: Callable[[Any], Any]
    prepare: Callable[[int], Any] | None = None
    io: str = ""
    group: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    flops: float = 0.0
    bytes: float = 0.0
    items: float = 0.0
    roof: roofs.Roof | None = None
    captures: bool = True


def where(**wanted: Any) -> Callable[[Entry], bool]:
    """Entries whose attributes or facts have these values; every entry for none."""

    def matches(entry: Entry) -> bool:
        return all(entry.facts.get(key, getattr(entry, key, None)) == value for key, value in wanted.items())

    return matches


def everywhere(shape: Mapping[str, Any]) -> bool:
    """Every contest."""
    return True


def _done(turn: Any) -> None:
    raise RuntimeError("this entry's contest is over")


@dataclass(frozen=True)
class Interval:
    """A figure with its 95% bootstrap interval."""

    figure: float
    low: float
    high: float


@dataclass(frozen=True)
class Contest:
    """One shape: entries and their times, us per call, one per round [rounds]; rounds are interleaved."""

    shape: Mapping[str, Any]
    ours: Sequence[Entry]
    peers: Sequence[Entry]
    absent: Mapping[str, str]
    samples: Mapping[str, np.ndarray]

    def without_calls(self) -> Contest:
        """For the record: calls hold weights and tables."""
        ours, peers = ([replace(e, call=_done, prepare=None) for e in side] for side in (self.ours, self.peers))
        return replace(self, ours=ours, peers=peers)

    def median(self, entry: Entry) -> float:
        return float(np.median(self.samples[entry.name]))

    def best(self, entries: Sequence[Entry]) -> Entry | None:
        """The fastest by median."""
        return min(entries, key=self.median, default=None)

    def ratios(self, ours: Entry, peer: Entry) -> np.ndarray:
        """Peer's time over ours, round by round: above 1, ours is faster."""
        return self.samples[peer.name] / self.samples[ours.name]


def interleaved(
    entries: Sequence[Entry], effort: Effort, clock: Callable[[], float] = time.perf_counter
) -> dict[str, np.ndarray]:
    """us per call of each entry, one sample per round, each round in a random order: where orders only rotate an
    entry always follows the same one, and a plan measured twice differed from itself by 2 to 8%. Every
    sample follows one untimed call of the same entry, so that no one pays for what the one before left behind (spinning
    or sleeping workers, cold code).
    An entry whose second call, like its first, takes more than a tenth of a second and ``HOPELESS`` times the fastest's
    is not called again: that call stands for all its rounds."""
    turns = {entry.name: itertools.count() for entry in entries}

    def sample(entry: Entry, repeats: int) -> float:
        turn = turns[entry.name]
        if entry.prepare is None:
            call = entry.call
            first = next(turn)
            call(first)
            start = clock()
            for _ in range(repeats):
                call(next(turn))
            return (clock() - start) * 1e6 / repeats
        entry.call(entry.prepare(next(turn)))
        total = 0.0
        for _ in range(repeats):
            state = entry.prepare(next(turn))
            start = clock()
            entry.call(state)
            total += clock() - start
        return total * 1e6 / repeats

    def one_call(entry: Entry) -> float:
        turn = next(turns[entry.name])
        state = turn if entry.prepare is None else entry.prepare(turn)
        start = clock()
        entry.call(state)
        return (clock() - start) * 1e6

    looks = {entry.name: one_call(entry) for entry in entries}

    def slow() -> set[str]:
        limit = max(HOPELESS_US, HOPELESS * min(looks.values()))
        return {name for name, us in looks.items() if us > limit}

    twice: set[str] = set()
    while again := [entry for entry in entries if entry.name in slow() - twice]:  # the fastest may turn out faster yet
        for entry in again:
            looks[entry.name] = min(looks[entry.name], one_call(entry))  # the first one compiled, or packed
            twice.add(entry.name)
    hopeless = {name: looks[name] for name in slow()}
    entries = [entry for entry in entries if entry.name not in hopeless]
    repeats, cost_s = {}, 0.0
    for entry in entries:
        us = min(sample(entry, 1), sample(entry, 2))
        repeats[entry.name] = int(np.clip(np.ceil(effort.sample_us / max(us, 1e-3)), 1, 2000))
        cost_s += us * 1e-6 * (repeats[entry.name] + 1)
    rounds = int(np.clip(effort.budget_s / max(cost_s, 1e-9), effort.min_rounds, effort.max_rounds))
    times: dict[str, list[float]] = {entry.name: [] for entry in entries}
    orders = np.random.default_rng(0)
    for _ in range(rounds):
        for entry in (entries[number] for number in orders.permutation(len(entries))):
            times[entry.name].append(sample(entry, repeats[entry.name]))
    return {name: np.asarray(times.get(name, [hopeless.get(name)] * rounds)) for name in looks}


def median_interval(ratios: Sequence[np.ndarray], seed: int = 0) -> Interval:
    """Geometric mean over contests of the median ratio of each; rounds are resampled within each contest."""
    generator = np.random.default_rng(seed)
    logs = np.zeros(RESAMPLES)
    figure = 0.0
    for values in ratios:
        drawn = generator.integers(0, len(values), (RESAMPLES, len(values)))
        logs += np.log(np.median(values[drawn], axis=1))
        figure += float(np.log(np.median(values)))
    low, high = np.exp(np.quantile(logs / len(ratios), [0.025, 0.975]))
    return Interval(float(np.exp(figure / len(ratios))), float(low), float(high))


Timing = Callable[[Sequence[Entry], Effort], dict[str, np.ndarray]]


class Run:
    """One run of a benchmark: its contests, the rows they gave, the bars they end in. ``timing`` takes the samples of a
    contest, ``machine`` says more of where (a GPU's: gpu_run.py)."""

    def __init__(
        self,
        name: str,
        effort: Effort,
        as_json: bool,
        timing: Timing | None = None,
        machine: Mapping[str, Any] | None = None,
    ) -> None:
        self.name, self.effort, self._as_json, self._timing = name, effort, as_json, timing
        self.contests: list[Contest] = []
        self.cuts = 0
        self.bars: list[dict[str, Any]] = []
        self.records: list[dict[str, Any]] = []
        self.machine = {**facts(), **(machine or {})}
        self.roofs = roofs.Roofs(effort.roof_ms)
        self._emit({"benchmark": name, "effort": effort.name, **self.machine})

    @property
    def is_smoke(self) -> bool:
        return self.effort.name == "smoke"

    @property
    def is_full(self) -> bool:
        return self.effort.name == "full"

    def contest(
        self,
        op: str,
        shape: Mapping[str, Any],
        ours: Sequence[Entry],
        peers: Sequence[Entry],
        absent: Mapping[str, str] | None = None,
    ) -> Contest:
        """Time one shape and print a row for each entry of ours. ``absent``: peer -> why it did not run."""
        kernels = {entry.name: _kernel_of(op, entry) for entry in ours}
        samples = (self._timing or interleaved)([*ours, *peers], self.effort)
        contest = Contest(shape, ours, peers, absent or {}, samples)
        self.contests.append(contest.without_calls())
        for entry in ours:
            self._emit(self._row(op, shape, contest, entry, kernels[entry.name]))
        return contest

    def skip(self, op: str, shape: Mapping[str, Any], reason: str) -> None:
        """Say that a shape did not run, and why."""
        self._emit({**self._identity(), "op": op, "shape": dict(shape), "skipped": reason})

    def cut(self, op: str, shape: Mapping[str, Any], reason: str) -> None:
        """:meth:`skip` a shape of the gates: no bar of this run holds."""
        self.cuts += 1
        self.skip(op, shape, reason)

    def row(self, op: str, shape: Mapping[str, Any], entry: str, found: Interval, facts: Mapping[str, Any]) -> None:
        """A row of something that is no time: an estimate with its interval, and facts."""
        interval = {key: _digits(getattr(found, key)) for key in ("figure", "low", "high")}
        self._emit({**self._identity(), "op": op, "shape": dict(shape), "entry": entry, **interval, **facts})

    def finding(
        self,
        name: str,
        ours: Callable[[Entry], bool],
        peers: Callable[[Entry], bool],
        named: Sequence[str] = (),
        bar: float | None = None,
        among: Callable[[Mapping[str, Any]], bool] = everywhere,
        worst: bool = False,
    ) -> None:
        """A bar: how many times faster the best of ``ours`` is than the best of ``peers`` in contests whose shape is
        ``among``: geometric mean, or the ``worst`` of them. ``holds`` is None for a finding (no ``bar``), False when a
        peer of ``named`` did not run somewhere."""
        found: list[tuple[Contest, np.ndarray]] = []
        missing: set[str] = set()
        for contest in self.contests:
            mine = contest.best([e for e in contest.ours if ours(e)])
            theirs = contest.best([e for e in contest.peers if peers(e)])
            if mine is None or not among(contest.shape):
                continue
            missing |= set(named) - {e.name for e in contest.peers}
            if theirs is not None:
                found.append((contest, contest.ratios(mine, theirs)))
        self._bar(name, found, bar, worst, missing)

    def rivalry(
        self,
        name: str,
        ours: str,
        other: str,
        bar: float | None = None,
        among: Callable[[Mapping[str, Any]], bool] = everywhere,
        worst: bool = False,
    ) -> None:
        """A bar between two entries of ours, by name: how many times faster the first is; else as :meth:`finding`."""
        found = []
        for contest in self.contests:
            by_name = {entry.name: entry for entry in contest.ours}
            if among(contest.shape) and ours in by_name and other in by_name:
                found.append((contest, contest.ratios(by_name[ours], by_name[other])))
        self._bar(name, found, bar, worst, set())

    def share(
        self,
        name: str,
        ours: Callable[[Entry], bool],
        bar: float | None = None,
        among: Callable[[Mapping[str, Any]], bool] = everywhere,
        worst: bool = False,
    ) -> None:
        """A bar on the share of its roof that the best of ``ours`` reaches."""
        found = []
        for contest in self.contests:
            mine = contest.best([e for e in contest.ours if ours(e) and e.roof is not None])
            if mine is not None and among(contest.shape):
                found.append((contest, _shares(mine, contest.samples[mine.name])))
        self._bar(name, found, bar, worst, set())

    def won(
        self,
        name: str,
        ours: Callable[[Entry], bool],
        peers: Callable[[Entry], bool],
        bar: float | None = None,
        among: Callable[[Mapping[str, Any]], bool] = everywhere,
    ) -> None:
        """A bar on the share of contests in which the best of ``ours`` is faster than the best of ``peers``, by
        medians; its interval counts those that are surely so, and those that may be."""
        found = []
        for contest in self.contests:
            mine = contest.best([e for e in contest.ours if ours(e)])
            theirs = contest.best([e for e in contest.peers if peers(e)])
            if mine is not None and theirs is not None and among(contest.shape):
                found.append(median_interval([contest.ratios(mine, theirs)]))
        if not found:
            self._bar(name, [], bar, False, set())
            return
        shares = {end: float(np.mean([getattr(i, end) > 1 for i in found])) for end in ("figure", "low", "high")}
        self.measured(name, Interval(**shares), bar, contests=len(found))

    def measured(
        self,
        name: str,
        figure: Interval,
        bar: float | None = None,
        at_most: bool = False,
        lower_end: bool = False,
        inside: bool = False,
        **facts: Any,
    ) -> None:
        """A bar on a figure that is no race: it holds when the figure is at least (``at_most``: at most) ``bar``, or
        when its interval lies above (``lower_end``), or within ``bar`` of 0 (``inside``)."""
        entry: dict[str, Any] = {"name": name, "figure": figure.figure, "low": figure.low, "high": figure.high}
        entry |= {"bar": bar, "holds": None, **facts}
        if bar is not None:
            entry["holds"] = figure.figure <= bar if at_most else figure.figure >= bar
            if lower_end:
                entry["holds"] = figure.low > bar
            if inside:
                entry["holds"] = -bar < figure.low and figure.high < bar
            entry["holds"] = entry["holds"] and self.cuts == 0
        self.bars.append(entry)

    def _bar(
        self, name: str, found: Sequence[tuple[Contest, np.ndarray]], bar: float | None, worst: bool, missing: set[str]
    ) -> None:
        entry: dict[str, Any] = {"name": name, "figure": None, "low": None, "high": None, "bar": bar, "holds": None}
        if found:
            entry["contests"] = len(found)
            if worst:
                found = [min(found, key=lambda pair: float(np.median(pair[1])))]
                entry["worst"] = dict(found[0][0].shape)
            interval = median_interval([values for _, values in found])
            entry |= {key: round(getattr(interval, key), 4) for key in ("figure", "low", "high")}
            entry["holds"] = None if bar is None else interval.figure >= bar and self.cuts == 0
        if missing or not found:
            entry |= {"holds": False, "did_not_run": sorted(missing)}
        self.bars.append(entry)

    def finish(self) -> None:
        """The last line."""
        summary = {"summary": self.name, "bars": self.bars, "effort": self.effort.name, **self._identity()}
        self._emit(summary | ({"cut_shapes": self.cuts} if self.cuts else {}))
        if not self._as_json:
            print_tables(self.records)

    def _identity(self) -> dict[str, Any]:
        return {key: self.machine[key] for key in ("commit", "device", "isa")}

    def _row(
        self, op: str, shape: Mapping[str, Any], contest: Contest, entry: Entry, kernel: str | None
    ) -> dict[str, Any]:
        p10, p50, p90 = np.quantile(contest.samples[entry.name], [0.1, 0.5, 0.9])
        row = {**self._identity(), "op": op, "shape": dict(shape), "entry": entry.name, "io": entry.io, **entry.facts,
               "kernel": kernel, "p10_us": _digits(p10), "p50_us": _digits(p50), "p90_us": _digits(p90),
               "rounds": len(contest.samples[entry.name])}  # fmt: skip
        rates = {"gflops": entry.flops, "gbps": entry.bytes, "mitems": entry.items * 1e3}
        row |= {key: _digits(work / p50 * 1e-3) for key, work in rates.items() if work}
        if entry.roof is not None:
            row["roof"] = {"name": entry.roof.name, "value": _digits(entry.roof.value), "unit": entry.roof.unit}
            row["share_of_roof"] = _digits(float(_shares(entry, p50)))
        row["peers"] = {p.name: {"io": p.io, "p50_us": _digits(contest.median(p))} for p in contest.peers}
        row["peers"] |= {name: {"absent": reason} for name, reason in contest.absent.items()}
        for key, eligible in (("best_peer", [p for p in contest.peers if p.io == entry.io]),
                              ("best_peer_any", list(contest.peers))):  # fmt: skip
            peer = contest.best(eligible)
            if peer is None:
                row[key] = None
                continue
            interval = median_interval([contest.ratios(entry, peer)])
            row[key] = {"name": peer.name, "ratio": _digits(interval.figure), "low": _digits(interval.low),
                        "high": _digits(interval.high)}  # fmt: skip
        return row

    def _emit(self, record: dict[str, Any]) -> None:
        self.records.append(record)
        if self._as_json:
            print(json.dumps(record), flush=True)
        elif "shape" in record:
            words = " ".join(f"{k}={v}" for k, v in record["shape"].items())
            print(f"{record['op']} {words}: {record.get('entry', record.get('skipped'))}", file=sys.stderr, flush=True)


def _kernel_of(op: str, entry: Entry) -> str | None:
    """The kernels of the op's family that one call of ours really ran, by octavo's counters."""
    from octavo import _core
    from octavo.ops import dispatch

    before = dispatch.counters()
    state = 0 if entry.prepare is None else entry.prepare(0)
    entry.call(state)
    ran = [name for name, calls in dispatch.counters().items() if calls > before.get(name, 0)]
    family = [name for name in ran if _core.kernel(name).op.name == op.split()[0]]
    return " + ".join(family or ran) or None


def _shares(entry: Entry, us: Any) -> Any:
    """The share of its roof that an entry reaches when a call takes ``us``."""
    assert entry.roof is not None
    done = {"GFLOP/s": entry.flops, "GB/s": entry.bytes, "M rows/s": entry.items * 1e3}[entry.roof.unit]
    return done / us * 1e-3 / entry.roof.value


def _digits(value: float) -> float:
    return float(f"{value:.4g}")


def main(
    name: str,
    body: Callable[[Run], None],
    argv: Sequence[str] | None = None,
    tune: Callable[[Run], None] | None = None,
) -> None:
    """The command line every benchmark shares."""
    parser = command_line(name)
    if tune is not None:
        parser.add_argument("--tune", action="store_true", help="find the committed settings again, nothing else")
    arguments = parser.parse_args(argv)
    run = Run(name, EFFORTS[level_of(arguments)], arguments.json)
    (tune if tune is not None and arguments.tune else body)(run)
    run.finish()
    if arguments.out is not None:
        write(arguments.out, run.records)


if __name__ == "__main__":
    listing = argparse.ArgumentParser(prog="harness.py")
    listing.add_argument("--list", action="store_true", required=True, help="the benchmarks' names, one a line")
    listing.add_argument("--gpu", action="store_true", help="of those that run on a GPU")
    print("\n".join(GPU_BUDGETS if listing.parse_args().gpu else NAMES))
