"""Auxiliary heads and Student Adapters against the paper's equations, written out (methods.md 4b)."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from models_support import KINDS, SCHEMA, events, model_config, scramble
from torch.nn import functional

from octavo import models
from octavo.exfm import Adapter, Distillation, Student, StudentAdapter, scale_gradient
from octavo.store import Records

TASKS = ("click", "like", "buy.7d")
BATCH = events(24)


def backbone(kind: str = "dcnv2", seed: int = 0) -> torch.nn.Module:
    return scramble(models.build(SCHEMA, model_config(kind)), seed).eval()


def said(batch=BATCH, tasks=TASKS, seed: int = 1) -> Records:
    """A teacher's records of a batch, drawn."""
    generator = torch.Generator().manual_seed(seed)
    known = Records.unknown(batch.id, tasks)
    one = torch.ones(len(batch), dtype=torch.int64)
    logits = {task: torch.randn(len(batch), generator=generator) for task in tasks}
    return replace(known, logits=logits, version=one)


def test_a_scaled_gradient_has_a_gradient():
    x = torch.tensor([2.0], requires_grad=True)
    (grad,) = torch.autograd.grad(scale_gradient(x, 3.0) ** 2, x, create_graph=True)
    (second,) = torch.autograd.grad(grad, x)
    assert (grad.item(), second.item()) == (12.0, 18.0)  # scaled once by each way back


def test_the_gradient_is_scaled_and_the_value_is_not():
    x = torch.randn(3, 2, requires_grad=True)
    y = scale_gradient(x, 2.5)
    assert torch.equal(y, x)
    y.square().sum().backward()
    assert torch.allclose(x.grad, 2.5 * 2 * x.detach())


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_served_is_the_model_itself(kind):
    base = backbone(kind)
    alone = copy.deepcopy(base)
    student = Student(base, {"fm": Distillation(adapter=Adapter("adds"))})
    served = student.serving_module()
    wanted, found = alone(BATCH), served(BATCH)
    for task in TASKS:
        assert torch.equal(found[task], wanted[task])
        assert torch.equal(student(BATCH)[task], wanted[task])
    assert list(served.state_dict()) == list(alone.state_dict())
    assert sum(p.numel() for p in served.parameters()) == sum(p.numel() for p in alone.parameters())
    assert torch.equal(student.learn(BATCH, {"fm": said()})[0]["like"], wanted["like"])


def test_the_auxiliary_loss_is_equations_3_to_5():
    base = backbone()
    weight, label_scale = {"click": 2.0, "like": 0.5, "buy.7d": 1.0}, {"click": 3.0, "like": 1.0, "buy.7d": 5.0}
    student = Student(base, {"fm": Distillation(weight=weight, label_scale=label_scale, gradient_scale=7.0)})
    records = said()
    records.logits["like"][::3] = float("nan")
    _, loss = student.learn(BATCH, {"fm": records})
    x, head = base.embed(BATCH), student.heads["fm"]
    terms = []
    for at, task in enumerate(TASKS):
        p = torch.sigmoid(records.logits[task])
        known = ~p.isnan()
        target = (label_scale[task] * p[known]).clamp(0, 1)
        z = (x @ head.weight.T + head.bias)[known, at]
        bce = -(target * functional.logsigmoid(z) + (1 - target) * functional.logsigmoid(-z))
        terms.append(weight[task] * (bce * BATCH.weight[known]).sum() / BATCH.weight[known].sum())
    assert torch.allclose(loss, torch.stack(terms).mean(), rtol=1e-6)
    assert student.missing == {"fm": 0}


def _gradients(student, records):
    """Of the embedding and of every parameter, for the labels' loss and the teacher's."""
    student.zero_grad(set_to_none=True)
    base = student.base
    kept = {}
    embed = base.embed

    def watched(batch):
        kept["x"] = embed(batch)
        kept["x"].retain_grad()
        return kept["x"]

    base.embed = watched
    try:
        logits, extra = student.learn(BATCH, {"fm": records})
    finally:
        del base.embed
    supervised = sum(functional.binary_cross_entropy_with_logits(logits[t], BATCH.labels[t]) for t in TASKS)
    (supervised + extra).backward()
    return (
        kept["x"].grad,
        {n: p.grad for n, p in base.heads.named_parameters()},
        {n: p.grad for n, p in student.heads.named_parameters()},
    )


def test_beta_scales_what_enters_the_backbone_and_nothing_else():
    records = said()

    def gradients(**chosen):
        torch.manual_seed(0)
        return _gradients(Student(backbone(), {"fm": Distillation(**chosen)}), records)

    labels_alone, serving, _ = gradients(weight=0.0)
    plain, plain_serving, plain_heads = gradients()
    scaled, scaled_serving, scaled_heads = gradients(gradient_scale=4.0)
    weighted, weighted_serving, weighted_heads = gradients(weight=3.0, label_scale=1.0)
    assert torch.allclose(scaled, labels_alone + 4.0 * (plain - labels_alone), atol=1e-7)
    assert torch.allclose(weighted, labels_alone + 3.0 * (plain - labels_alone), atol=1e-7)
    _, other_serving, _ = gradients(label_scale=5.0)
    for name, grad in serving.items():  # the serving head hears of the labels alone
        for found in (plain_serving, scaled_serving, weighted_serving, other_serving):
            assert torch.equal(found[name], grad)
    for name, grad in plain_heads.items():
        assert torch.equal(scaled_heads[name], grad)
        assert torch.allclose(weighted_heads[name], 3.0 * grad, atol=1e-8)


def test_one_head_teaches_the_serving_head():
    base = backbone()
    student = Student(base, {"fm": Distillation("one_head", weight=2.0)})
    assert student.learned_parameters() == []
    records = said()
    logits, loss = student.learn(BATCH, {"fm": records})
    wanted = torch.stack(
        [functional.binary_cross_entropy_with_logits(logits[t], torch.sigmoid(records.logits[t])) for t in TASKS]
    )
    assert torch.allclose(loss, 2.0 * wanted.mean(), rtol=1e-6)
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in base.heads.parameters())


def test_several_teachers_add_up_and_each_has_its_head():
    student = Student(backbone(), {"a": Distillation(), "b": Distillation(weight=2.0)}, tasks=["like"])
    assert student.heads["a"].weight.shape[0] == 1
    records = {"a": said(seed=1), "b": said(seed=2)}
    _, both = student.learn(BATCH, records)
    single = []
    for name in "ab":
        x = student.base.embed(BATCH)
        z = student.heads[name](x).squeeze(1)
        single.append(functional.binary_cross_entropy_with_logits(z, torch.sigmoid(records[name].logits["like"])))
    assert torch.allclose(both, single[0] + 2.0 * single[1], rtol=1e-6)


def test_events_without_soft_labels_teach_nothing_and_are_counted():
    student = Student(backbone(), {"fm": Distillation()})
    silent = Records.unknown(BATCH.id, TASKS)
    _, loss = student.learn(BATCH, {"fm": silent})
    assert loss.item() == 0.0
    assert student.missing == {"fm": len(BATCH)}
    half = said()
    for task in TASKS:
        half.logits[task][:10] = float("nan")
    _, loss = student.learn(BATCH, {"fm": half})
    assert student.missing == {"fm": len(BATCH) + 10}
    assert loss.item() > 0
    loss.backward()
    assert all(p.grad.isfinite().all() for p in student.heads.parameters())


@pytest.mark.parametrize("mode", ["replaces", "adds"])
def test_the_adapter_learns_from_labels_alone_and_the_student_from_it(mode):
    torch.manual_seed(0)
    student = Student(backbone(), {"fm": Distillation(adapter=Adapter(mode, lr=0.05))})
    adapter = student.adapters["fm"]
    records = said()
    before = copy.deepcopy(adapter.state_dict())
    asked = {task: z.detach() for task, z in adapter(BATCH, records.logits).items()}
    _, loss = student.learn(BATCH, {"fm": records})
    after = copy.deepcopy(adapter.state_dict())
    assert any(not torch.equal(before[name], after[name]) for name in before)
    loss.backward()
    assert all(p.grad is None for p in adapter.parameters())  # nothing of the student's loss reaches it
    x = student.base.embed(BATCH)

    def of_head(head, target):
        z = student.heads[head](x)
        each = [
            functional.binary_cross_entropy_with_logits(z[:, at], torch.sigmoid(target[task]))
            for at, task in enumerate(TASKS)
        ]
        return torch.stack(each).mean()

    wanted = of_head("fm", asked if mode == "replaces" else records.logits)  # asked before it learned
    if mode == "adds":
        wanted = wanted + of_head("fm_adapted", asked)
    assert torch.allclose(loss, wanted, rtol=1e-6)


def test_the_adapter_takes_one_step_of_adam_on_the_labels():
    torch.manual_seed(3)
    adapter = StudentAdapter(["click"], Adapter(hidden=None, lr=0.1))
    z = torch.randn(len(BATCH))
    asked = adapter.step(BATCH, {"click": z})["click"]
    assert torch.equal(asked, z)  # a calibrator begins as the identity
    line = torch.tensor([1.0, 0.0], requires_grad=True)
    loss = functional.binary_cross_entropy_with_logits(line[0] * z + line[1], BATCH.labels["click"])
    optimizer = torch.optim.Adam([line], lr=0.1)
    loss.backward()
    optimizer.step()
    found = adapter(BATCH, {"click": z})["click"].detach()
    assert torch.allclose(found, (line[0] * z + line[1]).detach(), atol=1e-6)


def test_a_calibrator_finds_the_teachers_bias():
    torch.manual_seed(0)
    adapter = StudentAdapter(["click"], Adapter(hidden=None, lr=0.05))
    generator = torch.Generator().manual_seed(0)
    for number in range(400):
        truth = torch.randn(len(BATCH), generator=generator)
        label = (torch.rand(len(BATCH), generator=generator) < torch.sigmoid(truth)).float()
        adapter.step(replace(BATCH, labels={**BATCH.labels, "click": label}), {"click": 0.5 * truth + 1.0})
        if number == 300:
            adapter.optimizer.param_groups[0]["lr"] = 0.005
    line = adapter.nets[0]
    assert line.weight.item() == pytest.approx(2.0, abs=0.25)
    assert line.bias.item() == pytest.approx(-2.0, abs=0.35)


def test_fewer_negatives_do_not_raise_what_the_adapter_learns():
    """It learns from a log that keeps a fifth of the negatives what it would learn from the whole one."""
    torch.manual_seed(0)
    rate, lines = 0.2, {}
    for negatives in (rate, 1.0):
        adapter = StudentAdapter(["click"], Adapter(hidden=None, lr=0.05))
        generator = torch.Generator().manual_seed(0)
        for number in range(1200):
            truth = torch.randn(len(BATCH), generator=generator) - 1.0
            label = (torch.rand(len(BATCH), generator=generator) < torch.sigmoid(truth)).float()
            stays = (label == 1) | (torch.rand(len(BATCH), generator=generator) < rate)
            label[~stays] = float("nan")
            batch = replace(BATCH, labels={**BATCH.labels, "click": label})
            adapter.step(batch, {"click": truth + 1.5}, negatives)
            if number == 800:
                adapter.optimizer.param_groups[0]["lr"] = 0.005
        lines[negatives] = adapter.nets[0]
    assert lines[rate].weight.item() == pytest.approx(1.0, abs=0.15)
    assert lines[rate].bias.item() == pytest.approx(-1.5, abs=0.2)
    taken_for_whole = -1.5 + math.log(1 / rate)  # the sample's odds
    assert lines[1.0].bias.item() == pytest.approx(taken_for_whole, abs=0.2)


def test_only_the_tasks_that_are_known_now_are_learned():
    torch.manual_seed(0)
    student = Student(backbone(), {"fm": Distillation(adapter=Adapter("adds"))})
    adapter = student.adapters["fm"]
    before = copy.deepcopy(adapter.state_dict())
    _, first = student.learn(BATCH, {"fm": said()}, ["click"])
    moved = [not torch.equal(before[name], value) for name, value in adapter.state_dict().items()]
    assert [any(moved[4 * at : 4 * at + 4]) for at in range(3)] == [True, False, False]
    first.backward()
    assert student.heads["fm"].weight.grad.abs().sum(1).gt(0).tolist() == [True, False, False]
    student.learn(BATCH, {"fm": said()}, ["like", "buy.7d"])
    assert student.missing == {"fm": 0}
    silent = Records.unknown(BATCH.id, TASKS)
    for tasks in (["click"], ["like", "buy.7d"], ["other"]):
        student.learn(BATCH, {"fm": silent}, tasks)
    assert student.missing == {"fm": len(BATCH)}  # once, though it came for two groups of tasks


def test_extra_inputs_reach_the_adapter():
    adapter = StudentAdapter(["click"], Adapter(hidden=4), lambda batch: batch.dense[:, :2], 2)
    z = torch.zeros(len(BATCH))
    assert adapter(BATCH, {"click": z})["click"].unique().numel() > 1
    wrong = StudentAdapter(["click"], Adapter(), lambda batch: batch.dense, 2)
    with pytest.raises(ValueError, match=r"extra: expected \[24, 2\], found \[24, 3\]"):
        wrong(BATCH, {"click": z})
    with pytest.raises(ValueError, match="extra, extra_dim"):
        StudentAdapter(["click"], Adapter(), None, 2)


def test_a_silent_teacher_leaves_the_adapter_as_it_is():
    adapter = StudentAdapter(TASKS, Adapter())
    adapter.step(BATCH, said().logits)  # Adam has momentum now
    before = copy.deepcopy(adapter.state_dict())
    found = adapter.step(BATCH, Records.unknown(BATCH.id, TASKS).logits)
    assert all(z.isnan().all() for z in found.values())
    assert all(torch.equal(before[name], value) for name, value in adapter.state_dict().items())


def test_bad_settings_are_named():
    base = backbone()
    for change, words in (
        ({"method": "magic"}, "method: found 'magic'"),
        ({"weight": -1.0}, "weight: expected numbers from 0"),
        ({"label_scale": {"click": float("inf")}}, "label_scale"),
        ({"method": "one_head", "gradient_scale": 2.0}, "belongs to the auxiliary head"),
    ):
        with pytest.raises(ValueError, match=words):
            Distillation(**change)
    for change, words in (({"mode": "x"}, "mode"), ({"hidden": 0}, "hidden"), ({"lr": 0.0}, "lr")):
        with pytest.raises(ValueError, match=f"adapter.{words}"):
            Adapter(**change)
    with pytest.raises(ValueError, match="names no task 'like'"):
        Student(base, {"fm": Distillation(weight={"click": 1.0})})
    with pytest.raises(ValueError, match="tasks: found"):
        Student(base, {"fm": Distillation()}, tasks=["other"])
    with pytest.raises(ValueError, match="no dots"):
        Student(base, {"f.m": Distillation()})
    with pytest.raises(TypeError, match="base: Linear has no 'embed'"):
        Student(torch.nn.Linear(2, 2), {"fm": Distillation()})


def test_records_of_other_events_are_refused():
    student = Student(backbone(), {"fm": Distillation()})
    with pytest.raises(ValueError, match="no records of teacher 'fm', only of other"):
        student.learn(BATCH, {"other": said()})
    shuffled = said().rows(torch.randperm(len(BATCH), generator=torch.Generator().manual_seed(0)))
    with pytest.raises(ValueError, match="of other events, or in another order"):
        student.learn(BATCH, {"fm": shuffled})
    with pytest.raises(ValueError, match="has no logits of 'like'"):
        student.learn(BATCH, {"fm": said(tasks=("click", "buy.7d"))})
