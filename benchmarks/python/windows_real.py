"""Personalized Interpolation on real outcomes: hotel_bookings (cancellation; heads of 1, 7, 30 and 365 days of one
model; 3, 14 and 60 days unseen; agents in market segments as groups) and deskdrop (likes; heads of 1 and 24 hours; 3, 6
and 12 hours unseen; device families). Against one model retrained for each window (gold) and every baseline.

At each of the rolling cut dates everything is trained on what was known then, and scored on the month that follows. All
networks are alike (``--tune`` chose their settings on a month before the first cut). A guest who has arrived cannot
cancel, so a booking's label is known at its arrival at the latest, to every method that waits for one (FNW and FNC take
an event as a negative at once). Intervals are bootstraps by day; ``gold again`` is gold with another seed. Besides its
rows it writes a page with table and plots for each set, ``build/windows/NAME.html``.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import harness
import numpy as np
import windows_page
from harness import Interval

from octavo import evaluation
from octavo.config import build_config
from octavo.data import SETS, DataError
from octavo.evaluation import calibration, log_loss, ne, paired_difference
from octavo.evaluation.paired import expanded_tail
from octavo.report import Rival
from octavo.training.delayed import DEFER, DFM, ESDFM, FNC, FNW, FSIW, BucketHazard
from octavo.windows import PersonalizedInterpolator
from octavo.windows.baselines import Delayed, Events, FixedWindows, Interpolated, Recipe, WindowModel

HOUR_S, DAY_S, DAY_MS = 3_600.0, 86_400.0, 86_400_000
TESTED_DAYS, RESAMPLES, ENOUGH = 30, 1000, 100.0
NE_GATE, CALIBRATED, GROUP_CALIBRATED, GROUP_SHARE = 0.003, 0.03, 0.1, 0.9


@dataclass(frozen=True)
class Study:
    """One data set: anchors' windows, unseen ones, groups, cuts (days since 1970)."""

    name: str
    task: str
    anchors: tuple[str, ...]
    unseen: tuple[str, ...]
    group: tuple[str, ...]
    vertical: tuple[str, ...]
    half_life: str | None
    cuts: tuple[int, ...]
    tuned_at: int
    edges: tuple[float, ...]  # s, of the hazard's buckets
    wait: float  # s, of ES-DFM and DEFER
    streamed: str  # the unseen window that losses of one window are trained for
    recipe: Mapping[str, Any] = field(default_factory=dict)


def _days(*dates: str) -> tuple[int, ...]:
    return tuple(int(np.datetime64(date, "D").astype(np.int64)) for date in dates)


STUDIES = {
    "hotel_bookings": Study(
        "hotel_bookings", "cancel", ("1d", "7d", "30d", "365d"), ("3d", "14d", "60d"), ("agent",), ("market_segment",),
        "90d",
        _days("2016-10-01", "2016-11-01", "2016-12-01", "2017-01-01", "2017-02-01", "2017-03-01", "2017-04-01",
              "2017-05-01"),
        _days("2016-07-01")[0],
        tuple(DAY_S * d for d in (0, 0.5, 1.5, 3.5, 7.5, 14.5, 30.5, 60.5, 120.5, 365.5)), DAY_S, "14d",
        {"epochs": 1, "lr": 0.003},
    ),
    "deskdrop": Study(
        "deskdrop", "like", ("1h", "24h"), ("3h", "6h", "12h"), ("family",), (), None,
        _days("2016-08-01", "2016-09-01", "2016-10-01", "2016-11-01", "2016-12-01", "2017-01-01"),
        _days("2016-07-01")[0],
        tuple(HOUR_S * h for h in (0, 0.05, 0.25, 1, 3, 6, 12, 24)), HOUR_S, "6h",
        {"epochs": 1, "lr": 0.003},
    ),
}  # fmt: skip
CUTS = {"smoke": 1, "quick": 5, "full": 8}
FAMILIES = ("linear", "log_time", "exponential", "weibull", "empirical")
GRID = tuple(itertools.product((1, 2, 4), (0.001, 0.003)))


def recipe_of(study: Study, seed: int = 0) -> Recipe:
    """A small DCN-V2, the same for every method."""
    model = build_config({"model": {
        "kind": "dcnv2", "embedding_dim": 8, "cross_layers": 2, "deep": [64, 32],
    }}).model  # fmt: skip
    return Recipe(model, batch_size=256, seed=seed, **study.recipe)


def events_of(study: Study) -> tuple[Events, np.ndarray]:
    """The events, and which of them have an outcome at all (a like before the first view is none)."""
    log = SETS[study.name].open()
    closed = None
    if study.name == "hotel_bookings":
        columns = log.columns(["time", "lead_time"])
        closed = columns["time"].to_numpy() + np.asarray(columns["lead_time"].to_numpy(), np.int64) * DAY_MS
    events = Events(log, study.task, closed)
    return events, ~np.isnan(events.table[study.task].to_numpy(zero_copy_only=False).astype(np.float64))


def interpolators(study: Study) -> dict[str, PersonalizedInterpolator]:
    """By name: personal, global, and single families."""
    base: dict[str, Any] = {"group": study.group, "vertical": study.vertical, "half_life": study.half_life}
    made = {"personalized": PersonalizedInterpolator(study.anchors, **base)}
    made["global"] = PersonalizedInterpolator(study.anchors, half_life=study.half_life)
    made |= {f"personalized {f}": PersonalizedInterpolator(study.anchors, family=f, **base) for f in FAMILIES}
    return made


@dataclass
class Found:
    """Test events of all cuts: p {method: {window: [n]}}, labels {window: [n]}, rows, day; seconds of training."""

    p: dict[str, dict[str, list[np.ndarray]]] = field(default_factory=dict)
    labels: dict[str, list[np.ndarray]] = field(default_factory=dict)
    rows: list[np.ndarray] = field(default_factory=list)
    fit: PersonalizedInterpolator | None = None  # the last cut's
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, method: str, window: str, p: np.ndarray) -> None:
        self.p.setdefault(method, {}).setdefault(window, []).append(p)

    def spent(self, method: str, seconds: float) -> None:
        self.seconds[method] = self.seconds.get(method, 0.0) + seconds

    def of(self, method: str, window: str) -> np.ndarray:
        return np.concatenate(self.p[method][window])


def at_cut(study: Study, events: Events, usable: np.ndarray, cut: int, found: Found, smoke: bool) -> None:
    """Everything trained on what was known at ``cut`` (day), scored on the month after."""
    until = cut * DAY_MS
    train = np.flatnonzero(usable & (events.time <= until - 1))
    test = np.flatnonzero(usable & (events.time >= until) & (events.time < until + TESTED_DAYS * DAY_MS))
    found.rows.append(test)
    for window in study.unseen:
        found.labels.setdefault(window, []).append(events.labels(test, _ms(window)))
    recipe = recipe_of(study)
    heads = FixedWindows(study.anchors, recipe).fit(events, train, until)
    found.spent("personalized", heads.seconds)
    p = heads.predict_all(events, test)
    for name, pi in interpolators(study).items():
        if smoke and name not in ("personalized", "global"):
            continue
        model = Interpolated(heads, pi).refit(events, train, until)
        found.fit = pi if name == "personalized" else found.fit
        for window in study.unseen:
            found.add(name, window, model.from_heads(p, events, test, window))
    for window in study.unseen:
        for name, seed in (("gold", 0), ("gold again", 1)):
            gold = FixedWindows([window], replace(recipe, seed=seed)).fit(events, train, until)
            found.spent(name, gold.seconds)
            found.add(name, window, gold.predict(events, test, window))
    for window in study.anchors:  # what it costs that they share a network
        found.labels.setdefault(window, []).append(events.labels(test, _ms(window)))
        found.add("heads", window, p[window])
        alone = FixedWindows([window], recipe).fit(events, train, until)
        found.add("gold", window, alone.predict(events, test, window))
    if smoke:
        return
    every: dict[str, WindowModel] = {
        "multi-head": FixedWindows(_sorted((*study.anchors, *study.unseen)), recipe),
        "dfm": Delayed(DFM(), recipe),
        "bucket hazard": Delayed(BucketHazard(study.edges), recipe),
    }
    own = _ms(study.streamed) / 1000
    one: dict[str, WindowModel] = {
        "fnw": Delayed(FNW(own), recipe), "fnc": Delayed(FNC(own), recipe),
        "es-dfm": Delayed(ESDFM(study.wait, own), recipe), "defer": Delayed(DEFER(study.wait, own), recipe),
        "fsiw": Delayed(FSIW((*(edge for edge in study.edges if edge < own), own)), recipe),
    }  # fmt: skip
    for name, model_ in (every | one).items():
        model_.fit(events, train, until)
        found.spent(name, model_.seconds)  # type: ignore[attr-defined]
        for window in study.unseen if name in every else (study.streamed,):
            found.add(name, window, model_.predict(events, test, window))


def body(run: harness.Run) -> None:
    """Both sets; a row for each method and window; the gates."""
    for study in STUDIES.values():
        try:
            events, usable = events_of(study)
        except DataError as error:
            print(f"windows_real: {study.name} left out: {error}", file=sys.stderr)
            run.skip("windows_real", {"set": study.name}, str(error))
            continue
        found = Found()
        cuts = study.cuts[: CUTS[run.effort.name]]
        for cut in cuts:
            at_cut(study, events, usable, cut, found, run.is_smoke)
        report(run, study, events, found, len(cuts))


def report(run: harness.Run, study: Study, events: Events, found: Found, cuts: int) -> None:
    """Rows and bars of one set."""
    rows = np.concatenate(found.rows)
    day = events.time[rows] // DAY_MS
    name = "hotel" if study.name == "hotel_bookings" else study.name
    rivals: list[Rival] = []
    for window in study.unseen:
        y = np.concatenate(found.labels[window])
        gold = found.of("gold", window)
        spread = abs(ne(found.of("gold again", window), y) - ne(gold, y)) / ne(gold, y)
        for method, by_window in found.p.items():
            if window not in by_window:
                continue
            p = found.of(method, window)
            gap = paired_difference(log_loss(p, y), log_loss(gold, y), day, y, resamples=RESAMPLES)
            ratio = ratio_of(p, gold, day)
            facts = {
                "calibration": round(calibration(p, y), 4), "gold_calibration": round(calibration(gold, y), 4),
                "ne": round(ne(p, y), 5), "ratio_to_gold": [round(v, 4) for v in (ratio.figure, ratio.low, ratio.high)],
                "events": len(y), "positives": int(y.sum()), "cuts": cuts,
                "seconds": round(found.seconds.get(method, 0.0), 1),
            }  # fmt: skip
            shape = {"set": study.name, "window": window, "what": "NE - gold's, % of gold's"}
            scale = 100 / ne(gold, y)
            percent = Interval(*(v * scale for v in (gap.estimate, gap.low, gap.high)))
            run.row("windows_real", shape, method, percent, facts)
            if method != "gold":
                rivals.append(Rival(method, window, _shown(percent), _shown(ratio), calibration(p, y)))
        p = found.of("personalized", window)
        ratio = ratio_of(p, gold, day)
        off = Interval(ratio.figure - 1, ratio.low - 1, ratio.high - 1)
        run.measured(f"windows_{name}_{window}_ratio_to_gold_less_1", off, CALIBRATED, holds_within=CALIBRATED)
        _within(run.bars[-1])
        gap = paired_difference(log_loss(p, y), log_loss(gold, y), day, y, resamples=RESAMPLES)
        relative = Interval(*(v / ne(gold, y) for v in (gap.estimate, gap.low, gap.high)))
        bar = NE_GATE + spread
        run.measured(f"windows_{name}_{window}_ne_less_golds", relative, bar, at_most=True, spread=spread)
        run.bars[-1]["holds"] = relative.high <= bar
        calibrated = {method: round(calibration(found.of(method, window), y), 4) for method in ("personalized", "gold")}
        run.bars[-1]["calibration"] = calibrated
        again = found.of("gold again", window)
        for kind, keys in (("groups", [*study.vertical, *study.group]), ("verticals", [*study.vertical])):
            if keys:
                slug = f"windows_{name}_{window}_{kind}_within_10"
                groups(run, slug, names_of(events, keys)[rows], p, gold, again, day)
    for window in study.anchors:
        y, gold = np.concatenate(found.labels[window]), found.of("gold", window)
        gap = paired_difference(log_loss(found.of("heads", window), y), log_loss(gold, y), day, y, resamples=RESAMPLES)
        relative = Interval(*(v / ne(gold, y) for v in (gap.estimate, gap.low, gap.high)))
        run.measured(f"windows_{name}_{window}_head_less_a_model_of_its_own", relative)
    assert found.fit is not None
    unseen = {window: found.of("personalized", window) for window in study.unseen}
    labels = {window: np.concatenate(found.labels[window]) for window in study.unseen}
    where = names_of(events, [*study.vertical, *study.group])[rows]
    page = windows_page.write(study.name, found.fit, rivals, unseen, labels, day, where)
    print(f"windows_real: {page}", file=sys.stderr)
    own, others = found.seconds["personalized"], found.seconds["gold"]
    run.measured(f"windows_{name}_training_seconds_vs_golds", Interval(own / others, own / others, own / others), None,
                 models=[1, len(study.unseen)])  # fmt: skip


def names_of(events: Events, keys: Sequence[str]) -> np.ndarray:
    """[events]: the values of the key columns, as one word."""
    columns = [events.table[key].to_pylist() for key in keys]
    return np.array(["/".join(map(str, values)) for values in zip(*columns, strict=True)])


def groups(
    run: harness.Run, slug: str, names: np.ndarray, p: np.ndarray, gold: np.ndarray, again: np.ndarray, day: np.ndarray
) -> None:
    """The share of groups ``names`` [n] with enough expected conversions whose sum of p is within a tenth of gold's;
    and the same of ``again``, gold with another seed."""
    label, number = np.unique(names, return_inverse=True)
    days, when = np.unique(day, return_inverse=True)
    place = number * len(days) + when
    parts = (p, gold, again)
    sums = [np.bincount(place, v, minlength=len(label) * len(days)).reshape(len(label), -1) for v in parts]
    big = sums[1].sum(axis=1) >= ENOUGH
    if not big.any():
        run.measured(slug, Interval(math.nan, math.nan, math.nan), None, groups=0)
        return
    ratios, others = (sums[i][big].sum(axis=1) / sums[1][big].sum(axis=1) for i in (0, 2))
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(RESAMPLES):
        times = np.bincount(rng.integers(0, len(days), len(days)), minlength=len(days))
        again = (sums[0][big] @ times) / np.maximum(sums[1][big] @ times, 1e-9)
        drawn.append(np.mean(np.abs(again - 1) <= GROUP_CALIBRATED))
    low, high = np.quantile(drawn, [0.025, 0.975])
    share, other = (float(np.mean(np.abs(r - 1) <= GROUP_CALIBRATED)) for r in (ratios, others))
    worst = np.argsort(-np.abs(ratios - 1))[:3]
    shown = {str(label[big][at]): round(float(ratios[at]), 3) for at in worst}
    facts = {"groups": int(big.sum()), "worst": shown, "gold_again": other}
    run.measured(slug, Interval(share, float(low), float(high)), GROUP_SHARE, **facts)


def ratio_of(p: np.ndarray, gold: np.ndarray, day: np.ndarray) -> Interval:
    """sum(p) / sum(gold), days resampled."""
    _, when = np.unique(day, return_inverse=True)
    sums = np.stack([np.bincount(when, p), np.bincount(when, gold)], 1)
    rng = np.random.default_rng(0)
    drawn = sums[rng.integers(0, len(sums), (RESAMPLES, len(sums)))].sum(axis=1)
    tail = expanded_tail(len(sums))
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [tail, 1 - tail])
    return Interval(float(p.sum() / gold.sum()), float(low), float(high))


def _shown(interval: Interval) -> evaluation.Interval:
    return evaluation.Interval(interval.figure, interval.low, interval.high)


def _within(bar: dict[str, Any]) -> None:
    """The gate is on the figure: within ``bar`` of 0."""
    bar["holds"] = abs(bar["figure"]) <= bar["bar"]


def _ms(window: str) -> int:
    from octavo.data.durations import parse_duration

    return parse_duration(window, "window")


def _sorted(windows: Sequence[str]) -> list[str]:
    return sorted(windows, key=_ms)


def tune(run: harness.Run) -> None:
    """Epochs and learning rate, by the NE of gold for the streamed window in the month before the first cut's data."""
    for study in STUDIES.values():
        events, usable = events_of(study)
        until = study.tuned_at * DAY_MS
        train = np.flatnonzero(usable & (events.time < until))
        test = np.flatnonzero(usable & (events.time >= until) & (events.time < until + TESTED_DAYS * DAY_MS))
        y = events.labels(test, _ms(study.streamed))
        for epochs, lr in GRID:
            recipe = replace(recipe_of(study), epochs=epochs, lr=lr)
            gold = FixedWindows([study.streamed], recipe).fit(events, train, until)
            value = ne(gold.predict(events, test, study.streamed), y)
            run.row("windows_real tune", {"set": study.name, "epochs": epochs, "lr": lr}, "gold",
                    Interval(value, value, value), {"seconds": round(gold.seconds, 1)})  # fmt: skip


if __name__ == "__main__":
    harness.main("windows_real", body, tune=tune)
