"""What a teacher costs each of K students, and what its lessons cost a student that serves.

Teacher: a published DCN-V2, asked by a real service; every call that reaches it is counted, with the FLOPs of its
matrix products (``torch.utils.flop_counter``: a multiplication and an addition are two; sums of embedding rows and
activations are not counted). Students join one after the other, each with its log, and ask what nobody has asked:

* ``same``: stages of one funnel, K logs of the same examples. The gate: the teacher's FLOPs a student are 1/K of what
  one student alone pays, and no example is asked about twice;
* ``halves``: each student has a random half of the examples; what they share is asked once.

Serving: each kind of ranker is trained for some steps with an auxiliary head and a Student Adapter; its
``serving_module()`` is compared with a model that never had them, with its weights, in FLOPs, parameters and bits of
what it answers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import harness
import numpy as np
import pyarrow as pa
import torch
from harness import Interval
from torch.utils.flop_counter import FlopCounterMode

from octavo import models
from octavo.config import build_config
from octavo.data import AdsWorld, Batch, EventLog
from octavo.exfm import DAS, Adapter, Distillation, RankerTeacher, Student
from octavo.exfm.teacher import load_snapshot
from octavo.store import Records, Version
from octavo.training.learning import loss_of, total_weights

EVENTS = {"smoke": 3_000, "quick": 50_000, "full": 200_000}
STUDENTS = (1, 2, 4, 8)
TEACHER = {"kind": "dcnv2", "embedding_dim": 32, "cross_layers": 3, "deep": [512, 256], "norm": None}
KINDS = ("dcnv2", "dlrm", "deepfm", "wukong")
STEPS = 5


class Counted:
    """The published teacher, and how often it was asked about what."""

    def __init__(self, das: DAS) -> None:
        self._folder = das.path / "teachers" / "fm"
        self.flops = 0
        self.ids: list[torch.Tensor] = []

    def load(self, version: Version) -> Callable[[Batch], Any]:
        """What the service calls."""
        teacher: RankerTeacher = load_snapshot(self._folder / version.path, version.sha256)

        def ask(batch: Batch) -> Any:
            with FlopCounterMode(display=False) as counter:
                found = teacher(batch)
            self.flops += counter.get_total_flops()
            self.ids.append(batch.id)
            return found

        return ask

    @property
    def twice(self) -> int:
        """Examples asked about more than once."""
        asked = torch.cat(self.ids)
        return len(asked) - len(asked.unique())


def joined(logs: list[EventLog], path: Path) -> Counted:
    """Students with these logs join a new service, one after the other, and ask."""
    das = DAS.create(path, logs[0].schema)
    config = build_config({"model": TEACHER}).model
    first = min(int(log.read(0, 1).time) for log in logs)
    das.publish("fm", models.build(logs[0].schema, config), config, first - 1)
    counted = Counted(das)
    for number, log in enumerate(logs):
        das.ingest({f"student-{number}": log})
        for _ in das.annotate("fm", counted.load):
            pass
    return counted


def teaching(run: harness.Run, log: EventLog, folder: Path) -> None:
    """FLOPs a student against the number of students."""
    rng, table = np.random.default_rng(0), log.columns(log.column_names)
    halves = []
    for number in range(max(STUDENTS)):
        half = table.filter(pa.array(rng.random(len(log)) < 0.5))
        halves.append(EventLog.write(folder / f"half-{number}", log.schema, [half]))
    worst, twice = 0.0, 0
    for kind in ("same", "halves"):
        alone = 0.0
        for count in STUDENTS:
            logs = [log] * count if kind == "same" else halves[:count]
            counted = joined(logs, folder / f"das-{kind}-{count}")
            share = counted.flops / sum(map(len, logs))  # FLOPs of the teacher for an event of a student
            alone = alone or share
            twice += counted.twice
            facts = {"teacher_flops_an_event": share, "asked": int(sum(map(len, counted.ids))), "twice": counted.twice}
            ratio = share / alone
            run.row(f"exfm_cost {kind}", {"students": count}, "teacher", one(ratio), facts)
            if kind == "same":
                worst = max(worst, ratio * count)
            elif count == max(STUDENTS):
                run.measured(f"exfm_cost_{count}_students_of_halves", one(ratio))
    run.measured("exfm_cost_students_times_teacher_share", one(worst), 1.0, at_most=True)
    run.measured("exfm_cost_asked_twice", one(twice), 0.0, at_most=True)


def flops_of(call: Callable[[], Any]) -> int:
    """Of its matrix products, backward included."""
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def serving(run: harness.Run, log: EventLog) -> None:
    """FLOPs and bits of what a trained student serves; FLOPs of its training step over one without a teacher."""
    batch, worst, differ, steps = log.read(0, min(1024, len(log))), 0.0, 0, []
    for kind in KINDS:
        config = build_config({"model": {"kind": kind}}).model
        student = Student(models.build(log.schema, config), {"fm": Distillation(adapter=Adapter("adds"))})
        soft = {"fm": said(batch, student.distilled)}
        learned = [*student.base.parameters(), *(p for _, p in student.learned_parameters())]
        optimizer = torch.optim.Adam(learned)
        for _ in range(STEPS):
            step(student, batch, soft)
            optimizer.step()
            optimizer.zero_grad()
        served, alone = student.serving_module().eval(), models.build(log.schema, config).eval()
        alone.load_state_dict(served.state_dict())
        with torch.inference_mode():
            same = all(torch.equal(z, alone(batch)[task]) for task, z in served(batch).items())
            costs = [flops_of(lambda model=model: model(batch)) for model in (served, alone)]
        parameters = [sum(p.numel() for p in model.parameters()) for model in (served, alone)]
        taught, untaught = (flops_of(lambda s=student, by=by: step(s, batch, by)) for by in (soft, None))
        steps.append(taught / untaught)
        worst, differ = max(worst, costs[0] / costs[1], parameters[0] / parameters[1]), differ + (not same)
        facts = {"flops_an_event": costs[0] / len(batch), "parameters": parameters[0], "same_bits": same,
                 "training_step_over_untaught": round(taught / untaught, 4)}  # fmt: skip
        run.row("exfm_cost serving", {"model": kind}, "student", one(costs[0] / costs[1]), facts)
    run.measured("exfm_cost_serving_over_alone", one(worst), 1.0, at_most=True)
    run.measured("exfm_cost_students_of_other_bits", one(differ), 0.0, at_most=True)
    run.measured("exfm_cost_training_step_over_untaught", Interval(float(np.mean(steps)), min(steps), max(steps)))


def step(student: Student, batch: Batch, soft: Mapping[str, Records] | None) -> None:
    """Forward and backward, which updates the tables; None: of the labels alone."""
    student.train()
    logits, further = (student(batch), None) if soft is None else student.learn(batch, soft)
    loss = loss_of(logits, batch, total_weights(batch, list(logits)))
    (loss if further is None else loss + further).backward()


def said(batch: Batch, tasks: Sequence[str]) -> Records:
    """A teacher's answers, drawn."""
    rng = torch.Generator().manual_seed(0)
    unknown = Records.unknown(batch.id, tasks)
    logits = {task: torch.randn(len(batch), generator=rng) for task in tasks}
    return replace(unknown, logits=logits, version=torch.ones_like(batch.id))


def one(value: float) -> Interval:
    """A count: there is nothing to resample."""
    return Interval(value, value, value)


def body(run: harness.Run) -> None:
    """The teacher's side, then the student's."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        log = AdsWorld("reference", 0).write(folder / "log", events=EVENTS[run.effort.name])
        teaching(run, log, folder)
        serving(run, log)


if __name__ == "__main__":
    harness.main("exfm_cost", body)
