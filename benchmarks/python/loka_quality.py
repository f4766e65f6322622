"""What low precision costs in NE, in % of FP32's: AdsWorld ``reference``, a Wukong and a DCN-V2; ml-100k and Deskdrop.

* Inference: a model trained in FP32, the same weights under the plan, on events that follow. 95% bootstrap over users.
* Training: paired seeds of world (and with it the order of events) and initial weights, every event scored before it is
  trained on. 90% t interval over seeds, beside it a 95% bootstrap over seeds and users. Arms: ``plan``; ``aa``, FP32
  with every dense weight one ulp up; ``naive``, all layers in tensor-wise FP8 (``tensorwise.py``).

``narrow`` is a second plan, in both: at each site the narrowest class that meets the same requirement, whatever it
costs on this machine. It has gates too: where low precision does not pay, ``plan`` stays in FP32 and proves nothing.
``strict`` is that with a fifth of the error allowed, which the first full run of ``narrow`` suggested.

The plans come from a warm run of another world and other weights (``loka_quality_runs.WARM``) whose second half a Probe
watched: ``solve(Requirement(max_post_norm=0.05), min_speedup=1.05)``, 0.01 for ``strict``. All settings but that were
chosen before any figure was seen. A gate holds when the whole interval lies inside the margin; an interval that crosses
it resolves nothing, and does not hold.
"""

from __future__ import annotations

import copy
from typing import Any

import harness
import loka_quality_figures as figures
import loka_quality_runs as runs
import numpy as np
import tensorwise
import torch
from harness import Interval

from octavo import loka, models, nn
from octavo.data import DataError
from octavo.evaluation import log_loss as losses_of
from octavo.evaluation import ne, paired_difference
from octavo.ops import dispatch
from octavo.training.slices import predict

REAL_ROWS = {"smoke": 2048, "quick": 10_000, "full": 1 << 30}
PLANS = tuple(runs.DEMANDS)
ARMS = ("fp32", "aa", *PLANS, "naive")
UNIFORM = ("int8_dynamic", "e4m3_row")  # all layers in one class, for comparison


def trained_and_served(model: str, rows: int, draws: int) -> runs.Found:
    """The warm run of a model on AdsWorld: the plans it gave, and what its weights predict for as many events that
    follow, in FP32, under the plan and in other classes: logits [tasks, rows]."""
    with runs.opened(model, runs.WARM, 2 * rows) as (log, config):
        fp32 = models.build(log.schema, config.model)
        reports = runs.judged(runs.warm(log, fp32, config, rows), draws)
        plans = runs.solved(reports, training=False)
        batch = log.read(0, 256)
        served = {"fp32": fp32.eval()}
        served |= {name: loka.install(fp32, plan, training=False) for name, plan in plans.items()}
        for name in UNIFORM:
            served[name] = nn.convert(fp32, dispatch.uniform_plan(fp32, batch, name))
        served["naive"] = tensorwise.install(copy.deepcopy(fp32))
        found = {name: predict(one, log, rows, 2 * rows) for name, one in served.items()}
    first, tasks = found["fp32"], list(fp32.tasks)
    return {
        **{f"training/{name}": np.array(text) for name, text in runs.training_plans(reports).items()},
        **{f"inference/{name}": np.array(runs.text_of(plan)) for name, plan in plans.items()},
        **{name: torch.stack([one.logits[task] for task in tasks]).numpy() for name, one in found.items()},
        "labels": torch.stack([first.labels[task] for task in tasks]).numpy(),
        "user": first.user.numpy(),
        "tasks": np.array(tasks),
    }


def inference(run: harness.Run, model: str, served: runs.Found) -> None:
    """Rows of every class and task; the plans' make gates."""
    for number, task in enumerate(served["tasks"].tolist()):
        labels = served["labels"][number]
        base = losses_of(served["fp32"][number], labels, logits=True)
        whole = ne(served["fp32"][number], labels, logits=True)
        for name in (*PLANS, *UNIFORM, "naive"):
            own = losses_of(served[name][number], labels, logits=True)
            gap = paired_difference(own, base, served["user"], labels, resamples=figures.RESAMPLES[run.effort.name])
            figure = Interval(*(100 * value / whole for value in (gap.estimate, gap.low, gap.high)))
            facts: dict[str, Any] = {"fp32_ne": round(whole, 5), "interval": "95% over users"}
            if name in PLANS:
                facts["classes"] = figures.plan_facts(runs.plan_of(served[f"inference/{name}"]))
            shape = {"model": model, "task": task, "rows": len(labels)}
            run.row("loka_quality inference", shape, name, figure, facts)
            if name in (*PLANS, "naive"):
                plan = runs.plan_of(served[f"inference/{name}"]) if name in PLANS else None
                figures.bar(run, named("inference", model, task, name), figure, name in PLANS, plan)


def training(run: harness.Run, model: str, seeds: list[runs.Found], plans: dict[str, str]) -> None:
    """Rows of every arm and task; the plans' make gates."""
    classes = {arm: runs.plan_of(text) for arm, text in plans.items()}
    found = figures.trained(run, "loka_quality training", {"model": model}, seeds, ARMS[1:], classes=classes)
    for (task, arm), figure in found.items():
        figures.bar(run, named("training", model, task, arm), figure, arm in PLANS, classes.get(arm))
    for arm in PLANS:  # what choosing layers brings: the same events and seeds
        apart = figures.trained(run, "loka_quality training", {"model": model, "minus": arm}, seeds, ["naive"], arm)
        for (task, _), figure in apart.items():
            run.measured(named("training", model, task, f"naive_minus_{arm}"), figure)


def named(what: str, model: str, task: str, arm: str) -> str:
    """A bar's name; the plan's has no suffix."""
    return f"loka_quality_{what}_{model}_{task}" + ("" if arm == "plan" else f"_{arm}")


def real(run: harness.Run, name: str, seeds: list[runs.Found], plans: dict[str, str]) -> None:
    """Rows of every arm and task of a real set; no verdicts."""
    for number, task in enumerate(seeds[0]["tasks"].tolist()):
        for arm in ARMS[1:]:
            each = figures.by_seed(seeds, arm, number)
            spread = figures.over_seeds(each)
            figure = figures.over_users(seeds, arm, number, figures.RESAMPLES[run.effort.name])
            facts: dict[str, Any] = {
                "interval": "95% over users, of the mean over seeds", "seeds": [round(value, 5) for value in each],
                "over_seeds_90": [round(spread.low, 5), round(spread.high, 5)],
                "fp32_ne": round(ne(seeds[0]["fp32"][number], seeds[0]["labels"][number], logits=True), 5),
            }  # fmt: skip
            if arm in plans:
                facts["classes"] = figures.plan_facts(runs.plan_of(plans[arm]))
            shape = {"set": name, "task": task, "rows": seeds[0]["labels"].shape[1], "seeds": len(seeds)}
            run.row("loka_quality real", shape, arm, figure, facts)
            if number == 0 and arm != "aa":
                run.measured(f"loka_quality_{name}_{arm}", figure)


def plans_in(found: runs.Found, prefix: str) -> dict[str, str]:
    return {arm: str(found[prefix + arm]) for arm in PLANS}


def body(run: harness.Run) -> None:
    """Warm runs first, then every seed, then the figures."""
    torch.set_num_threads(1)
    effort, keep = run.effort.name, not run.is_smoke
    rows, seeds, draws = runs.ROWS[effort], range(runs.SEEDS[effort]), runs.DRAWS[effort]
    names = list(runs.MODELS) if run.is_full else list(runs.MODELS)[1:]
    sets = [name for name in (runs.REAL if run.is_full else runs.REAL[:1]) if available(run, name)]
    warm = runs.side_by_side(
        [(trained_and_served, {"model": name, "rows": rows, "draws": draws}) for name in names]
        + [(runs.warm_plans, {"source": name, "rows": REAL_ROWS[effort], "draws": draws}) for name in sets],
        keep,
    )
    for name, found in zip(names, warm):
        inference(run, name, found)
    plans = {name: plans_in(found, "training/" if name in names else "") for name, found in zip([*names, *sets], warm)}
    jobs = [
        (runs.train_paired, {"source": name, "seed": seed, "rows": rows if name in names else REAL_ROWS[effort],
                             "arms": list(ARMS), "plans": plans[name]})
        for name in [*names, *sets] for seed in seeds
    ]  # fmt: skip
    made = runs.side_by_side(jobs, keep)
    for number, name in enumerate([*names, *sets]):
        own = made[number * len(seeds) : (number + 1) * len(seeds)]
        (training if name in names else real)(run, name, own, plans[name])


def available(run: harness.Run, name: str) -> bool:
    """Whether a real set is on this machine; if not, the run says so."""
    try:
        with runs.opened(name, 0, 1):
            return True
    except DataError as error:
        run.skip("loka_quality real", {"set": name}, str(error))
        return False


if __name__ == "__main__":
    harness.main("loka_quality", body)
