"""What a student gains from a lagging teacher: AdsWorld ``exfm`` (methods.md 4e, middle row), NE of clicks, one pass.

The student sees its own domain, 256 events a step; the teacher, a larger model, sees nine times as much, publishes a
snapshot every 10 steps and speaks 20 steps later, through a DAS. Test-then-train; the first quarter is not scored.
Every method runs at its own rates (``exfm_settings.json``; ``--tune`` finds them again, on other worlds). World and
models change with the seed; intervals are paired, over seeds and users. Gains are per cent of the NE without
distillation; positive is better.

Controls, with an answer where the teacher has one: its answers shuffled within each batch (what is left is how its base
rate moves), the label itself as soft label, the teacher of an unrelated world. At a longer lag more of the stream is
without an answer, since the teacher begins with the student: the figures of lags have both in them.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import harness
import numpy as np
import pyarrow as pa
import torch
from harness import Interval

from octavo import models
from octavo.config import AnyModelConfig, OptimizerConfig, build_config
from octavo.data import AdsWorld, Batch, EventLog, Label, Schema
from octavo.evaluation import ne, paired
from octavo.exfm import DAS, Adapter, Distillation, Student
from octavo.store import Records
from octavo.training import Group
from octavo.training.learning import build_optimizer, loss_of, total_weights, update

SETTINGS = Path(__file__).resolve().with_name("exfm_settings.json")
TASK, OWN = "click", 0
STEP, OWN_STEP, PUBLISH_EVERY, STEP_MS = 2304, 256, 10, 600_000
STEPS = {"smoke": 40, "quick": 400, "full": 400}
SEEDS = {"smoke": 2, "quick": 3, "full": 6}
LAG = 20  # steps
LAGS = {"smoke": (5,), "quick": (0, 60), "full": (0, 5, 60, 144, 288)}
TUNE_SEEDS = (100, 101)
METHODS: dict[str, Distillation | None] = {
    "none": None,
    "one_head": Distillation("one_head"),
    "ah": Distillation(),
    "ah_beta3": Distillation(gradient_scale=3.0),
    "ah_alpha3": Distillation(label_scale=3.0),
    "ah_sa": Distillation(adapter=Adapter("adds")),
    "ah_sa_replaces": Distillation(adapter=Adapter("replaces")),
    "ah_platt": Distillation(adapter=Adapter("replaces", hidden=None)),
}
CONTROLS = ("shuffled", "label", "unrelated")
GRID = {"table_lr": (0.05, 0.1, 0.2, 0.4, 0.8), "lr": (3e-4, 1e-3, 3e-3, 1e-2)}
MODEL = {"kind": "dcnv2", "embedding_dim": 8, "cross_layers": 1, "deep": [32], "norm": None, "activation": "relu"}
LARGE = {**MODEL, "embedding_dim": 32, "cross_layers": 2, "deep": [128, 64]}
LARGE_RATES = {"table_lr": 0.05, "lr": 3e-3}


def chosen_rates() -> dict[str, dict[str, float]]:
    """By method."""
    found: dict[str, dict[str, float]] = json.loads(SETTINGS.read_text(encoding="utf-8"))
    return found


def model_config(shape: dict[str, Any], rates: dict[str, float], seed: int) -> AnyModelConfig:
    """A model of one of the two sizes."""
    tables = {"kind": "row_wise_adagrad", "lr": rates["table_lr"]}
    return build_config({"model": {**shape, "seed": seed, "table_optimizer": tables}}).model


@dataclass
class World:
    """The student's stream in batches, and what each teacher said of them."""

    schema: Schema
    batches: list[Batch]
    soft: dict[str, list[Records]]

    @property
    def scored(self) -> int:
        """Events of the first quarter, which are not."""
        return sum(len(batch) for batch in self.batches[: len(self.batches) // 4])

    def column(self, of: Callable[[Batch], torch.Tensor]) -> np.ndarray:
        """A column of the scored events."""
        found: np.ndarray = torch.cat([of(batch) for batch in self.batches]).numpy()[self.scored :]
        return found


def ids_and_clicks(schema: Schema) -> Schema:
    """What is left of a world's schema for both models."""
    of = {feature.name: feature for feature in schema.sparse}
    return Schema(
        sparse=(of["user"], of["item"], of["domain"]), labels=(Label(TASK),), user="user", item="item", domain="domain"
    )


def reduced(log: EventLog, path: Path, own: bool) -> EventLog:
    """Ids and clicks alone; ``own``: of the student's domain."""
    schema = ids_and_clicks(log.schema)
    table = log.columns(schema.columns())
    if own:
        table = table.filter(pa.compute.equal(table["domain"], OWN))
    return EventLog.write(path, schema, [table])


def teach(log: EventLog, services: Callable[[int], dict[int, DAS]], seed: int) -> None:
    """One pass of the teacher over all domains; every tenth step's model goes to each service for that number of steps,
    with its lag in steps."""
    config = model_config(LARGE, LARGE_RATES, seed)
    model = models.build(log.schema, config)
    for step, (batch, _) in enumerate(trained(model, list(log.batches(STEP)), LARGE_RATES["lr"])):
        if (step + 1) % PUBLISH_EVERY == 0:
            for lag, das in services(step + 1).items():
                das.publish("fm", model, config, int(batch.time[-1]), lag * STEP_MS)
            model.train()


def trained(
    model: models.Ranker, batches: Sequence[Batch], lr: float, learn: Callable[[int, Batch], Any] | None = None,
    heads: Sequence[torch.nn.Parameter] = (),
) -> Any:  # fmt: skip
    """Test-then-train: each batch and the logits predicted for it. ``learn`` gives (logits, further loss)."""
    optimizer = build_optimizer([*model.parameters(), *heads], OptimizerConfig(kind="adam", lr=lr))
    for number, batch in enumerate(batches):
        logits, further = (model(batch), None) if learn is None else learn(number, batch)
        loss = loss_of(logits, batch, total_weights(batch, [TASK]))
        predicted = logits[TASK].detach()
        update(model, optimizer, loss if further is None else loss + further, lr, None, Group())
        yield batch, predicted


def world(seed: int, steps: int, lags: Sequence[int], folder: Path, unrelated: bool = True) -> World:
    """A world, its teacher at each lag (``fm@lag``), and the controls' soft labels."""
    folder = folder / f"world-{seed}"
    whole = AdsWorld("exfm", seed).write(folder / "world", events=STEP * steps)
    everything, own = reduced(whole, folder / "all", False), reduced(whole, folder / "own", True)
    services = {lag: DAS.create(folder / f"das-{lag}", everything.schema) for lag in lags}
    for das in services.values():
        das.ingest({"own": own})
    teach(everything, lambda step: services, seed)
    batches = list(own.batches(OWN_STEP))
    made = World(everything.schema, batches, {})
    for lag, das in services.items():
        made.soft[f"fm@{lag}"] = asked(das, batches)
    said = made.soft[f"fm@{LAG}"]
    rng = torch.Generator().manual_seed(seed)
    shuffled = [torch.randperm(len(records), generator=rng) for records in said]
    made.soft["shuffled"] = [with_logits(r, r.logits[TASK][order]) for r, order in zip(said, shuffled, strict=True)]
    made.soft["label"] = [with_logits(r, (2 * b.labels[TASK] - 1) * 30.0) for r, b in zip(said, batches, strict=True)]
    if unrelated:
        other = AdsWorld("exfm", 1000 + seed).write(folder / "unrelated", events=STEP * steps)
        stranger = models.build(everything.schema, model_config(LARGE, LARGE_RATES, seed))
        stream = trained(stranger, list(reduced(other, folder / "other", False).batches(STEP)), LARGE_RATES["lr"])
        for _ in stream:
            pass
        with torch.no_grad():
            made.soft["unrelated"] = [with_logits(r, stranger(b)[TASK]) for r, b in zip(said, batches, strict=True)]
    return made


def asked(das: DAS, batches: Sequence[Batch]) -> list[Records]:
    """What the teacher says of each batch."""
    for _ in das.annotate("fm"):
        pass
    answers = das.soft_labels("fm")
    return [answers(batch) for batch in batches]


def with_logits(records: Records, logits: torch.Tensor) -> Records:
    """The records with other answers, none where there was none."""
    return replace(records, logits={TASK: logits.masked_fill(records.logits[TASK].isnan(), float("nan"))})


def logits_of(made: World, method: str, soft: str, rates: dict[str, float], seed: int) -> np.ndarray:
    """The scored events' logits of a student."""
    model = models.build(made.schema, model_config(MODEL, rates, seed))
    chosen = METHODS[method]
    if chosen is None:
        stream = trained(model, made.batches, rates["lr"])
    else:
        student = Student(model, {"fm": chosen}, seed=seed)
        heads = [parameter for _, parameter in student.learned_parameters()]
        stream = trained(
            model, made.batches, rates["lr"], lambda at, batch: student.learn(batch, {"fm": made.soft[soft][at]}), heads
        )
    found: np.ndarray = torch.cat([z for _, z in stream]).double().numpy()[made.scored :]
    return found


def body(run: harness.Run) -> None:
    """Every method on every seed's world; then the controls, and other lags."""
    torch.set_num_threads(1)
    chosen = chosen_rates()
    steps, seeds = STEPS[run.effort.name], range(SEEDS[run.effort.name])
    lags = (LAG, *LAGS[run.effort.name])
    plans = [
        (name, name, f"fm@{LAG}") for name in METHODS if not run.is_smoke or name in ("none", "one_head", "ah", "ah_sa")
    ]
    plans += [(f"control_{name}", "ah", name) for name in CONTROLS]
    plans += [(f"{method}_lag{lag}", method, f"fm@{lag}") for lag in lags[1:] for method in ("one_head", "ah")]
    found: dict[str, list[np.ndarray]] = {name: [] for name, _, _ in plans}
    found["teacher"] = []
    labels, users = [], []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as temporary:
            made = world(seed, steps, lags, Path(temporary))
        labels.append(made.column(lambda batch: batch.labels[TASK]).astype(np.float64))
        users.append(made.column(lambda batch: batch.user))
        for name, method, soft in plans:
            found[name].append(logits_of(made, method, soft, chosen[method], seed))
        said = torch.cat([records.logits[TASK] for records in made.soft[f"fm@{LAG}"]])
        found["teacher"].append(said.double().numpy()[made.scored :])
    report(run, found, labels, users)


def report(
    run: harness.Run, found: dict[str, list[np.ndarray]], labels: list[np.ndarray], users: list[np.ndarray]
) -> None:
    """A bar for each method, control and lag."""
    resamples = {"smoke": 100, "quick": 400, "full": 1000}[run.effort.name]
    plain = float(np.mean([ne(z, y, logits=True) for z, y in zip(found["none"], labels, strict=True)]))

    def gain(of: str, over: str = "none") -> Interval:
        """In per cent of the NE without distillation."""
        gap = paired("ne", found[over], found[of], labels, users, resamples=resamples)
        return Interval(*(100 * value / plain for value in (gap.estimate, gap.low, gap.high)))

    run.measured("exfm_stream_ah", gain("ah"), 0.0, lower_end=True, ne_without=plain)
    run.measured("exfm_stream_ah_over_one_head", gain("ah", "one_head"), 0.0, lower_end=True)
    for control in CONTROLS:
        run.measured(f"exfm_stream_control_{control}", gain(f"control_{control}"), 0.2, inside=True)
    rest = [name for name in found if name not in ("none", "ah", "teacher") and not name.startswith("control")]
    for name in rest:
        run.measured(f"exfm_stream_{name}", gain(name))
    run.measured("exfm_stream_sa_over_ah", gain("ah_sa", "ah"))
    spoke = [~np.isnan(z) for z in found["teacher"]]  # a short run scores events from before its first version
    columns = (
        [x[at] for x, at in zip(of, spoke, strict=True)] for of in (found["none"], found["teacher"], labels, users)
    )
    gap = paired("ne", *columns, resamples=resamples)
    run.measured("exfm_stream_teacher", Interval(*(100 * v / plain for v in (gap.estimate, gap.low, gap.high))))


def tune(run: harness.Run) -> None:
    """The best rates of each method, by NE over worlds that are not scored."""
    torch.set_num_threads(1)
    chosen = {}
    with tempfile.TemporaryDirectory() as temporary:
        worlds = {seed: world(seed, STEPS["full"], (LAG,), Path(temporary), False) for seed in TUNE_SEEDS}
    points = [dict(zip(GRID, values, strict=True)) for values in itertools.product(*GRID.values())]
    for method in METHODS:
        scores = []
        for rates in points:
            each = [
                ne(
                    logits_of(made, method, f"fm@{LAG}", rates, seed),
                    made.column(lambda b: b.labels[TASK]),
                    logits=True,
                )
                for seed, made in worlds.items()
            ]
            scores.append(float(np.mean(each)))
            run.row("exfm_stream tune", rates, method, Interval(scores[-1], min(each), max(each)), {})
        chosen[method] = points[int(np.argmin(scores))]
    SETTINGS.write_text(json.dumps(chosen, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    harness.main("exfm_stream", body, tune=tune)
