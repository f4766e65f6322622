"""Where distillation gains and where it loses: ``exfm_stream``'s world and methods over one condition at a time.

* ``lag``, days from a version's last event to what it may speak of: 0 .. 7, on a world whose teacher has been at work
  for longer than that when the student begins, so that every event has an answer. A greater lag is also a teacher that
  has learned less: the version that speaks is that much older.
* ``events_per_user`` of the student's own stream: a share of its events kept at random, in as many updates, or a world
  of a tenth of the users and ads (the dense end).
* ``drift``, times the preset's rotation of the items' factors; ``bias``, the logits by which the teacher's other domain
  is above the student's.

All but ``lag`` have the teacher of ``exfm_stream``, which begins with the student and speaks 20 steps later. Methods
run at the rates that were tuned for that benchmark's world, everywhere: they are not tuned again for each condition.
Gains are per cent of the NE without distillation, paired over seeds and users, 95%.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import exfm_stream as stream
import harness
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from exfm_stream import LAG, OWN, PUBLISH_EVERY, STEP, STEP_MS, TASK
from harness import Interval

from octavo.data import AdsWorld, AdsWorldConfig, EventLog, preset
from octavo.evaluation import ne, paired
from octavo.exfm import DAS

METHODS = ("one_head", "ah", "ah_beta3", "ah_sa")
STEPS = {"smoke": 40, "quick": 200, "full": 400}
SEEDS = {"smoke": 2, "quick": 2, "full": 3}
DAY = 144  # steps
LAG_DAYS = {"smoke": (0.0,), "quick": (0.0, 1.0), "full": (0.0, 0.25, 1.0, 2.0, 4.0, 7.0)}
SHARES = {"smoke": (0.5,), "quick": (0.25,), "full": (0.125, 0.25, 0.5)}
DRIFTS = {"smoke": (), "quick": (4.0,), "full": (0.0, 2.0, 4.0)}
BIASES = {"smoke": (1.6,), "quick": (1.6,), "full": (0.0, 1.6, 2.4)}
RESAMPLES = {"smoke": 100, "quick": 400, "full": 1000}
WARM = 40  # steps of the teacher before the first version that a student hears at the greatest lag
FEWER_IDS = 10


@dataclass
class Point:
    """One condition of one seed: labels, users and each method's logits over the scored events, the teacher's too."""

    labels: np.ndarray
    users: np.ndarray
    logits: dict[str, np.ndarray]
    per_user: float


def drifting(times: float) -> AdsWorldConfig:
    """The preset with another drift."""
    base = preset("exfm")
    return base.model_copy(update={"drift": base.drift.model_copy(update={"rotation": base.drift.rotation * times})})


def biased(offset: float) -> AdsWorldConfig:
    """The preset with another bias of the other domain."""
    base = preset("exfm")
    own, other = base.domains
    return base.model_copy(update={"domains": (own, other.model_copy(update={"offset": offset}))})


def dense() -> AdsWorldConfig:
    """The preset with fewer users and ads."""
    base = preset("exfm")
    fewer = {
        name: of.model_copy(update={"initial": of.initial // FEWER_IDS})
        for name, of in (("users", base.users), ("items", base.items))
    }
    return base.model_copy(update=fewer)


def worlds(
    seed: int, config: AdsWorldConfig, steps: int, warm: int, lags: Sequence[int], shares: Sequence[float], folder: Path
) -> list[stream.World]:
    """``steps`` of a student's stream after ``warm`` of its teacher's alone, and what the teacher said of it at each
    lag (steps); one for each share of the student's events."""
    play = AdsWorld(config, seed)
    schema = stream.ids_and_clicks(play.schema)
    tables = (table.select(schema.columns()) for table in play.tables(events=STEP * (warm + steps)))
    everything = EventLog.write(folder / "all", schema, tables)
    table = everything.columns(schema.columns(), STEP * warm)
    first, last = (int(table["time"][at].as_py()) for at in (0, -1))
    own = EventLog.write(folder / "own", schema, [table.filter(pc.equal(table["domain"], OWN))])
    services = {lag: DAS.create(folder / f"das-{lag}", schema) for lag in lags}
    for das in services.values():
        das.ingest({"own": own})

    def heard(step: int) -> dict[int, DAS]:
        """The services whose student may hear what has seen ``step`` steps."""
        until = int(everything.read(STEP * step - 1, STEP * step).time)
        since = first - 2 * PUBLISH_EVERY * STEP_MS
        return {lag: das for lag, das in services.items() if since <= until + lag * STEP_MS <= last}

    stream.teach(everything, heard, seed)
    found, rng = [], np.random.default_rng(seed)
    for share in shares:
        log = own
        if share < 1:
            rows = own.columns(schema.columns()).filter(pa.array(rng.random(len(own)) < share))
            log = EventLog.write(folder / f"own-{share}", schema, [rows])
        batches = list(log.batches(round(stream.OWN_STEP * share)))
        soft = {f"fm@{lag}": stream.asked(das, batches) for lag, das in services.items()}
        found.append(stream.World(schema, batches, soft))
    return found


def point(made: stream.World, soft: str, methods: Sequence[str], seed: int, without: np.ndarray | None = None) -> Point:
    """Every method's student; ``without``: the logits without distillation, where they are known."""
    rates = stream.chosen_rates()
    users = made.column(lambda batch: batch.user)
    found = {"none": stream.logits_of(made, "none", soft, rates["none"], seed) if without is None else without}
    found |= {method: stream.logits_of(made, method, soft, rates[method], seed) for method in methods}
    said = torch.cat([records.logits[TASK] for records in made.soft[soft]]).double().numpy()
    found["teacher"] = said[made.scored :]
    labels = made.column(lambda batch: batch.labels[TASK]).astype(np.float64)
    seen = torch.cat([batch.user for batch in made.batches])
    return Point(labels, users, found, len(seen) / len(seen.unique()))


def of_seed(effort: str, seed: int) -> dict[tuple[str, float], Point]:
    """All conditions, by sweep and value."""
    steps, methods = STEPS[effort], METHODS[:2] if effort == "smoke" else METHODS
    lags = {days: round(days * DAY) for days in LAG_DAYS[effort]}
    found: dict[tuple[str, float], Point] = {}
    with tempfile.TemporaryDirectory() as folder:
        warm = WARM + max(lags.values())
        (made,) = worlds(seed, preset("exfm"), steps, warm, list(lags.values()), [1.0], Path(folder))
    without = None
    for days, lag in lags.items():
        found["lag", days] = point(made, f"fm@{lag}", methods, seed, without)
        without = found["lag", days].logits["none"]

    def played(config: AdsWorldConfig, shares: Sequence[float] = (1.0,)) -> list[Point]:
        with tempfile.TemporaryDirectory() as folder:
            made = worlds(seed, config, steps, 0, [LAG], shares, Path(folder))
        return [point(one, f"fm@{LAG}", methods, seed) for one in made]

    shares = [*SHARES[effort], 1.0]
    found |= zip([("events_per_user", share) for share in shares], played(preset("exfm"), shares), strict=True)
    found["events_per_user", float(FEWER_IDS)] = played(dense())[0]
    found |= {("drift", times): played(drifting(times))[0] for times in DRIFTS[effort]}
    found |= {("bias", offset): played(biased(offset))[0] for offset in BIASES[effort]}
    base, bias = found["events_per_user", 1.0], preset("exfm").domains[1].offset
    assert bias is not None
    return found | {("drift", 1.0): base, ("bias", bias): base}


def body(run: harness.Run) -> None:
    """Every condition of every seed; a row for each method, a finding for the auxiliary head."""
    torch.set_num_threads(1)
    seeds = [of_seed(run.effort.name, seed) for seed in range(SEEDS[run.effort.name])]
    for sweep, value in sorted(seeds[0]):
        report(run, sweep, value, [found[sweep, value] for found in seeds])


def report(run: harness.Run, sweep: str, value: float, points: list[Point]) -> None:
    """One condition."""
    labels, users = [p.labels for p in points], [p.users for p in points]
    plain = float(np.mean([ne(p.logits["none"], p.labels, logits=True) for p in points]))
    x = round(float(np.mean([p.per_user for p in points])), 1) if sweep == "events_per_user" else value
    for method in points[0].logits:
        if method == "none":
            continue
        spoke = [~np.isnan(p.logits[method]) for p in points]
        pair = [[p.logits[name][at] for p, at in zip(points, spoke, strict=True)] for name in ("none", method)]
        rest = [[c[at] for c, at in zip(column, spoke, strict=True)] for column in (labels, users)]
        gap = paired("ne", pair[0], pair[1], *rest, resamples=RESAMPLES[run.effort.name])
        gain = Interval(*(100 * v / plain for v in (gap.estimate, gap.low, gap.high)))
        answered = float(np.mean([(~np.isnan(p.logits["teacher"])).mean() for p in points]))
        facts = {"ne_without": round(plain, 5), "answered": round(answered, 4), "seeds": len(points)}
        run.row("exfm_sweeps", {"sweep": sweep, "x": x}, method, gain, facts)
        if method in ("ah", "one_head"):
            run.measured(f"exfm_sweeps_{sweep}_{x:.3g}_{method}", gain)


if __name__ == "__main__":
    harness.main("exfm_sweeps", body)
