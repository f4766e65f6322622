"""Paired training runs behind ``loka_quality``, ``loka_comm`` and ``loka_mods``: one model per arm, the same events.

All arms of a job take each batch in turn: its logits are kept, then it is trained on (one streaming pass, as
:class:`octavo.training.Trainer` makes it). Jobs are kept below ``build/loka_quality`` under a hash of their settings
and of the code that makes them, so a run that was cut goes on; ``--smoke`` keeps nothing. Every job computes on one
thread; as many run side by side as this process may use cores.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import json
import math
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorwise
import torch

import octavo
from octavo import loka, models
from octavo.config import RunConfig, build_config, load_config
from octavo.data import AdsWorld, Batch, EventLog
from octavo.loka.identity import machine
from octavo.ops.dispatch import Plan, Requirement
from octavo.training import Group, learning, open_log

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "build" / "loka_quality"
PRESET, BATCH = "reference", 1024
ROWS = {"smoke": 4096, "quick": 64 * BATCH, "full": 977 * BATCH}  # 977 batches: the first whole number over a million
SEEDS = {"smoke": 2, "quick": 2, "full": 5}
DRAWS = {"smoke": 8, "quick": 32, "full": 100}  # of Probe's, at most
WARM = 1000  # seed of the world and the weights that plans are made on; those of the runs count from 0
EVERY = 10  # steps between the Probe's looks, in the second half of the warm run
# What each plan demands: ``plan`` by what classes cost on this machine, the others by WIDTH.
DEMANDS = {"plan": Requirement(max_post_norm=0.05), "narrow": Requirement(max_post_norm=0.05),
           "strict": Requirement(max_post_norm=0.01)}  # fmt: skip
MIN_SPEEDUP = 1.05
WIDTH = {"int8_dynamic": 1.0, "e4m3_row": 1.0, "e4m3_weight_only": 1.5, "bf16": 2.0, "fp32": 4.0}  # bytes an operand
MODELS: dict[str, dict[str, Any]] = {
    "wukong": {"kind": "wukong", "embedding_dim": 16, "layers": 2, "fmb": [128], "top": [256, 128]},
    "dcnv2": {"kind": "dcnv2", "embedding_dim": 16, "cross_layers": 2, "deep": [256, 128]},
}
RATES = {"wukong": (0.03, 0.003), "dcnv2": (0.3, 0.001)}  # of tables and the rest: bayes_gap's
REAL = ("movielens", "deskdrop")  # by examples/NAME.yaml
Found = dict[str, np.ndarray]


# --- jobs -------------------------------------------------------------------------------------------------------------
def side_by_side(jobs: Sequence[tuple[Callable[..., Found], Mapping[str, Any]]], keep: bool) -> list[Found]:
    """Every job's ``make(**settings)``, in their order."""
    workers = min(len(jobs), len(os.sched_getaffinity(0)))
    if workers < 2 or not keep:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return [kept(make, settings, keep) for make, settings in jobs]
        finally:
            torch.set_num_threads(threads)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        futures = [pool.submit(kept, make, settings, keep) for make, settings in jobs]
        return [future.result() for future in futures]


def kept(make: Callable[..., Found], settings: Mapping[str, Any], keep: bool) -> Found:
    """``make(**settings)``, made once by the same code on the same machine, whose costs plans depend on."""
    if not keep:
        return make(**settings)
    code = _digest(inspect.getsourcefile(make) or "")
    key = hashlib.sha256(json.dumps([make.__name__, settings, code, machine()], sort_keys=True).encode()).hexdigest()[
        :20
    ]
    path = KEPT / f"{make.__name__}-{key}.npz"
    if not path.exists():
        found = make(**settings)
        KEPT.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=KEPT, suffix=".tmp", delete=False) as file:
            np.savez(file, **found)
        os.replace(file.name, path)
    with np.load(path) as content:
        return dict(content)


@functools.cache
def _digest(caller: str) -> str:
    """Of octavo, of this module and of the caller's."""
    package = Path(octavo.__file__).parent
    files = sorted([*package.rglob("*.py"), *package.glob("*.so")])
    whole = hashlib.sha256()
    for file in [*files, Path(__file__), Path(tensorwise.__file__), Path(caller)]:
        whole.update(file.read_bytes())
    return whole.hexdigest()


# --- sources, models, arms --------------------------------------------------------------------------------------------
@contextlib.contextmanager
def opened(source: str, seed: int, rows: int) -> Iterator[tuple[EventLog, RunConfig]]:
    """The log and the configuration of a seed. ``source``: a model on AdsWorld, whose world has the seed too, or a real
    set with its example's model. ``rows``: of the log, at most."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name:
        folder = Path(name)
        if source in MODELS:
            log = AdsWorld(PRESET, seed).write(folder / "log", events=rows)
            tables, dense = RATES[source]
            model = {**MODELS[source], "seed": seed, "table_optimizer": {"lr": tables}}
            training = {"batch_size": min(BATCH, max(1, rows // 32)), "optimizer": {"lr": dense}}
            yield log, build_config({"name": "loka-quality", "model": model, "training": training})
        else:
            config = load_config(ROOT / "examples" / f"{source}.yaml")
            config = config.model_copy(update={"model": config.model.model_copy(update={"seed": seed})})
            log = open_log(config.data, folder)
            yield log.head(min(rows, len(log))), config


class Arm:
    """A model that trains as ``config.training`` says, on this process's part of ``group``'s batches."""

    def __init__(self, model: torch.nn.Module, config: RunConfig, group: Group | None = None) -> None:
        self.model, self.group = model.train(), group or Group()
        self.group.attach(model)
        self.tasks = list(model.tasks)
        self.lr = config.training.optimizer.lr
        self.optimizer = learning.build_optimizer(list(model.parameters()), config.training.optimizer)

    def take(self, batch: Batch) -> torch.Tensor:
        """Logits [tasks, B] of the whole batch before the update on it."""
        part, totals = self.group.part(batch), learning.total_weights(batch, self.tasks)
        logits = self.model(part)
        loss = learning.loss_of(logits, part, totals)
        learning.update(self.model, self.optimizer, loss, self.lr, None, self.group)
        own = torch.stack([logits[task].detach() for task in self.tasks], 1)
        return self.group.join(own, self.group.sizes(len(batch))).T


def nudged(model: torch.nn.Module) -> torch.nn.Module:
    """Every dense weight one ulp up."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.nextafter(parameter, torch.tensor(math.inf)))
    return model


def arm_model(model: torch.nn.Module, arm: str, plans: Mapping[str, str]) -> torch.nn.Module:
    """A new model turned into an arm: ``fp32``, ``aa``, ``naive``, or what ``plans`` names."""
    if arm == "aa":
        return nudged(model)
    if arm == "naive":
        return tensorwise.install(model)
    return model if arm == "fp32" else loka.install(model, plan_of(plans[arm]), training=True)


def plan_of(text: Any) -> Plan:
    """A plan kept as JSON."""
    return Plan.from_json(json.loads(str(text)))


def text_of(plan: Plan) -> str:
    return json.dumps(plan.to_json())


# --- what jobs do -----------------------------------------------------------------------------------------------------
def warm(log: EventLog, model: torch.nn.Module, config: RunConfig, stop: int) -> loka.Probe:
    """Train ``model`` in FP32 on the first ``stop`` events; the Probe, closed, that watched the second half of them."""
    arm, size = Arm(model, config), config.training.batch_size
    half = stop // size // 2 * size
    for batch in log.batches(size, 0, half):
        arm.take(batch)
    every = min(EVERY, max(1, (stop - half) // size // 4))
    with loka.Probe(model, every=every) as probe:
        for batch in log.batches(size, half, stop):
            arm.take(batch)
            probe.step()
    return probe


def judged(probe: loka.Probe, draws: int, arms: Sequence[str] = tuple(DEMANDS)) -> dict[str, loka.Report]:
    """The report that each plan is solved from. ``plan``: with costs of this machine; the others: as if a class cost
    its bytes, so that each site gets the narrowest one that meets the demand (E4M3 before INT8), whatever it costs
    here: the quality of eight bits is not that of a plan left in FP32 for speed."""
    by_demand: dict[Requirement, loka.Report] = {}
    found = {}
    for arm in arms:
        demand = DEMANDS[arm]
        if demand not in by_demand:
            by_demand[demand] = probe.evaluate(draws=draws, requirement=demand)
        report = by_demand[demand]
        found[arm] = report if arm == "plan" else replace(report, findings=tuple(map(by_width, report.findings)))
    return found


def by_width(finding: loka.Finding) -> loka.Finding:
    """Costs as bytes an operand."""
    return replace(finding, us=WIDTH[finding.numerics], reference_us=WIDTH["fp32"], pack_us=0.0, unpack_us=0.0)


def solved(reports: Mapping[str, loka.Report], training: bool) -> dict[str, Plan]:
    """Each report's plan."""
    return {arm: loka.solve(report, DEMANDS[arm], MIN_SPEEDUP, training) for arm, report in reports.items()}


def training_plans(reports: Mapping[str, loka.Report]) -> dict[str, str]:
    """Each report's plan for training, as JSON."""
    return {arm: text_of(plan) for arm, plan in solved(reports, training=True).items()}


def warm_plans(source: str, rows: int, draws: int) -> Found:
    """The training plans of a source, by its warm run."""
    with opened(source, WARM, rows) as (log, config):
        probe = warm(log, models.build(log.schema, config.model), config, len(log))
    return {arm: np.array(text) for arm, text in training_plans(judged(probe, draws)).items()}


def train_paired(source: str, seed: int, rows: int, arms: Sequence[str], plans: Mapping[str, str]) -> Found:
    """Logits of every arm before each update, float32 [tasks, rows]; ``labels`` [tasks, rows], ``user`` [rows],
    ``tasks``."""
    with opened(source, seed, rows) as (log, config):
        own = [Arm(arm_model(models.build(log.schema, config.model), arm, plans), config) for arm in arms]
        return lockstep(dict(zip(arms, own)), log.batches(config.training.batch_size))


def lockstep(arms: Mapping[str, Arm], batches: Iterable[Batch]) -> Found:
    """All arms over the same batches; what :func:`train_paired` returns."""
    logits: dict[str, list[torch.Tensor]] = {arm: [] for arm in arms}
    labels, users = [], []
    tasks = next(iter(arms.values())).tasks
    for batch in batches:
        labels.append(torch.stack([batch.labels[task] for task in tasks]))
        users.append(batch.user)
        for name, arm in arms.items():
            logits[name].append(arm.take(batch))
    found = {name: torch.cat(parts, 1).numpy() for name, parts in logits.items()}
    return found | {"labels": torch.cat(labels, 1).numpy(), "user": torch.cat(users).numpy(), "tasks": np.array(tasks)}
