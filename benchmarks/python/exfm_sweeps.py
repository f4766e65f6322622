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
Gains are per cent of the NE without distillation, paired over seeds and users, 95%. Finished worlds are kept below
``build/loka_quality``, as that benchmark's are: a run that was cut goes on.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import exfm_stream as stream
import harness
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from exfm_stream import LAG, OWN, PUBLISH_EVERY, STEP, STEP_MS, TASK
from harness import Interval
from loka_quality_runs import side_by_side

from octavo._files import file_hash
from octavo.data import AdsWorld, AdsWorldConfig, EventLog, preset
from octavo.evaluation import ne, paired
from octavo.exfm import DAS

METHODS = ("one_head", "ah", "ah_beta3")
STEPS = {"smoke": 40, "quick": 200, "full": 400}
SEEDS = {"smoke": 2, "quick": 2, "full": 3}
DAY = 144  # steps
LAG_DAYS = {"smoke": (0.0,), "quick": (0.0, 1.0), "full": (0.0, 1.0, 3.0, 7.0)}
SHARES = {"smoke": (0.5, 1.0), "quick": (0.25, 1.0), "full": (0.125, 0.25, 1.0)}
DRIFTS = {"smoke": (), "quick": (4.0,), "full": (0.0, 4.0)}
BIASES = {"smoke": (1.6,), "quick": (1.6,), "full": (0.0, 1.6)}
RESAMPLES = {"smoke": 100, "quick": 400, "full": 1000}
WARM = 40  # steps of the teacher before the first version that a student hears at the greatest lag
FEWER_IDS = 10


@dataclass(frozen=True)
class Condition:
    """One point of one sweep, at ``x`` (None: the events a user has): the job of a seed that has it, and the share and
    the lag (steps) there."""

    sweep: str
    x: float | None
    world: str
    share: float = 1.0
    lag: int = LAG


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


WORLDS = {"lag": preset("exfm"), "base": preset("exfm"), "dense": dense()}
WORLDS |= {f"drift {times:g}": drifting(times) for of in DRIFTS.values() for times in of}
WORLDS |= {f"bias {offset:g}": biased(offset) for of in BIASES.values() for offset in of}
BIAS = preset("exfm").domains[1].offset or 0.0


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


def played(
    seed: int, world: str, steps: int, warm: int, lags: Sequence[int], shares: Sequence[float], methods: Sequence[str],
    code: str,
) -> dict[str, np.ndarray]:  # fmt: skip
    """One world of one seed: by share labels and users of the scored events and the events a user has; by share, lag
    and method the students' logits, and the teacher's own. ``code``: of what this is made with, for the cache."""
    rates = stream.chosen_rates()
    with tempfile.TemporaryDirectory() as folder:
        made = worlds(seed, WORLDS[world], steps, warm, lags, shares, Path(folder))
    found: dict[str, np.ndarray] = {}
    for share, one in zip(shares, made, strict=True):
        seen = torch.cat([batch.user for batch in one.batches])
        found[f"{share}/per_user"] = np.array(len(seen) / len(seen.unique()))
        found[f"{share}/labels"] = one.column(lambda batch: batch.labels[TASK])
        found[f"{share}/users"] = one.column(lambda batch: batch.user)
        found[f"{share}/none"] = stream.logits_of(one, "none", "", rates["none"], seed)
        for lag in lags:
            soft = f"fm@{lag}"
            for method in methods:
                found[f"{share}/{lag}/{method}"] = stream.logits_of(one, method, soft, rates[method], seed)
            said = torch.cat([records.logits[TASK] for records in one.soft[soft]]).numpy()
            found[f"{share}/{lag}/teacher"] = said[one.scored :]
    return found


def plan(effort: str) -> tuple[list[Condition], dict[str, dict[str, Any]]]:
    """What is looked at, and the settings of the jobs that it takes, by world."""
    lags = {days: round(days * DAY) for days in LAG_DAYS[effort]}
    shares, common = SHARES[effort], {"steps": STEPS[effort], "warm": 0, "lags": [LAG], "shares": [1.0]}
    warm = WARM + max(lags.values())
    jobs: dict[str, dict[str, Any]] = {
        "lag": {**common, "warm": warm, "lags": list(lags.values())},
        "base": {**common, "shares": list(shares)},
        "dense": common,
    }
    conditions = [Condition("lag", days, "lag", lag=lag) for days, lag in lags.items()]
    conditions += [Condition("events_per_user", None, "base", share) for share in shares]
    conditions += [Condition("events_per_user", None, "dense")]
    for sweep, values, usual in (("drift", DRIFTS[effort], 1.0), ("bias", BIASES[effort], BIAS)):
        for value in values:
            jobs[f"{sweep} {value:g}"] = common
        conditions += [Condition(sweep, value, f"{sweep} {value:g}") for value in values]
        conditions += [Condition(sweep, usual, "base")]
    return conditions, jobs


def body(run: harness.Run) -> None:
    """Every condition of every seed; a row for each method, a finding for each head."""
    effort = run.effort.name
    conditions, jobs = plan(effort)
    common = {"methods": METHODS[:2] if run.is_smoke else METHODS, "code": file_hash(Path(stream.__file__))}
    todo = [
        (played, {"seed": seed, "world": world, **settings, **common})
        for seed in range(SEEDS[effort])
        for world, settings in jobs.items()
    ]
    made = iter(side_by_side(todo, keep=not run.is_smoke))
    seeds = [{world: next(made) for world in jobs} for _ in range(SEEDS[effort])]
    for condition in conditions:
        report(run, condition, [found[condition.world] for found in seeds])


def report(run: harness.Run, at: Condition, seeds: list[dict[str, np.ndarray]]) -> None:
    """One condition."""

    def column(name: str) -> list[np.ndarray]:
        return [found[f"{at.share}/{name}"].astype(np.float64) for found in seeds]

    labels, users, none, teacher = (column(name) for name in ("labels", "users", "none", f"{at.lag}/teacher"))
    plain = float(np.mean([ne(z, y, logits=True) for z, y in zip(none, labels, strict=True)]))
    x = round(float(np.mean(column("per_user"))), 1) if at.x is None else at.x
    facts = {
        "ne_without": round(plain, 5),
        "answered": round(float(np.mean([(~np.isnan(z)).mean() for z in teacher])), 4),
        "seeds": len(seeds),
    }
    methods = [key.split("/")[2] for key in seeds[0] if key.startswith(f"{at.share}/{at.lag}/")]
    for method in methods:
        logits = column(f"{at.lag}/{method}")
        spoke = [~np.isnan(z) for z in logits]  # a teacher says nothing before its first version
        kept = ([c[rows] for c, rows in zip(of, spoke, strict=True)] for of in (none, logits, labels, users))
        gap = paired("ne", *kept, resamples=RESAMPLES[run.effort.name])
        gain = Interval(*(100 * v / plain for v in (gap.estimate, gap.low, gap.high)))
        run.row("exfm_sweeps", {"sweep": at.sweep, "x": x}, method, gain, facts)
        if method != "teacher":
            run.measured(f"exfm_sweeps_{at.sweep}_{x:.3g}_{method}", gain)


if __name__ == "__main__":
    harness.main("exfm_sweeps", body)
