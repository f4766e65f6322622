"""A student in the streaming trainer: it resumes bit for bit and is saved without its heads."""

import dataclasses
import math

import pytest
import torch
from training_support import assert_same_bits, demo_log, everything, finished, small_config

from octavo import models
from octavo.config import save_config
from octavo.data import EventLog
from octavo.exfm import Adapter, Distillation, Distiller, Student
from octavo.exfm.heard import Heard
from octavo.store import Records
from octavo.training import CheckpointError, Group, Trainer, TrainingError, learning, list_checkpoints
from octavo.training.evaluate import load_trained

TEACHERS = {"fm": Distillation(weight=2.0, gradient_scale=1.5, adapter=Adapter("adds", lr=0.02))}


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return demo_log(tmp_path_factory.mktemp("log") / "log", 3000)


def soft(batch):
    """A teacher who knows the items, and says nothing of every seventh event."""
    records = Records.unknown(batch.id, ["click"])
    z = (batch.item % 5).float() - 2.0
    z[batch.id % 7 == 0] = float("nan")
    return dataclasses.replace(records, logits={"click": z})


def distiller(teachers=TEACHERS):
    return lambda model: Distiller(Student(model, teachers), {"fm": soft})


def trainer(log, path, objective=None, **overrides) -> Trainer:
    return Trainer(small_config(training__batch_size=100, **overrides), log, path, objective=objective)


def test_a_killed_run_goes_on_bit_for_bit(log, tmp_path):
    whole = finished(trainer(log, tmp_path / "whole", distiller()))
    cut = trainer(log, tmp_path / "cut", distiller())
    for seen in cut.run():
        if seen >= 1300:  # a checkpoint was written at 1,000
            break
    again = finished(trainer(log, tmp_path / "cut", distiller()))
    assert_same_bits(everything(again), everything(whole))
    assert_same_bits(again.objective.state_tensors(), whole.objective.state_tensors())
    assert again.objective.report() == whole.objective.report()
    trained = torch.cat([batch.id for batch in log.batches(100, 0, whole.fit_end)])
    assert whole.objective.student.missing["fm"] == int((trained % 7 == 0).sum())


def test_heads_and_adapters_are_trained_and_change_the_student(log, tmp_path):
    alone = finished(trainer(log, tmp_path / "alone"))
    student = finished(trainer(log, tmp_path / "student", distiller()))
    fresh = Distiller(Student(models.build(log.schema, student.config.model), TEACHERS), {"fm": soft})
    before, after = fresh.state_tensors(), student.objective.state_tensors()
    for name in before:
        if name.startswith(("heads", "adapters")):
            assert not torch.equal(before[name], after[name]), name
    state, plain = student.model.state_dict(), alone.model.state_dict()
    assert state.keys() == plain.keys()
    assert not torch.equal(state["top.0.weight"], plain["top.0.weight"])


def test_the_student_knows_how_many_negatives_its_log_kept(log, tmp_path):
    fewer = EventLog.write(tmp_path / "fewer", log.schema, [log.columns(log.column_names)], negatives=0.5)
    heard = []

    class Watched(Distiller):
        def learn(self, batch, tasks, negatives):
            heard.append(negatives)
            return super().learn(batch, tasks, negatives)

    finished(trainer(fewer, tmp_path / "run", lambda model: Watched(Student(model, TEACHERS), {"fm": soft})))
    assert set(heard) == {0.5}


def test_clipping_is_of_all_that_is_learned(log, tmp_path):
    """The heads' gradients are clipped with the model's, to one norm."""
    started = trainer(log, tmp_path / "run", distiller({"fm": Distillation(weight=1000.0)}))
    model, optimizer = started.model, started.optimizer
    batch = log.read(0, 100)
    _logits, further = started.objective.learn(batch, ["click"], 1.0)
    learning.update(model, optimizer, further, 0.0, 0.5, Group())
    own = [parameter for _, parameter in started.objective.learned_parameters()]
    norms = {
        name: math.sqrt(sum(p.grad.square().sum().item() for p in parameters if p.grad is not None))
        for name, parameters in (("model", list(model.parameters())), ("heads", own))
    }
    assert norms["heads"] > 0.1
    assert norms["model"] > 0.1
    assert math.hypot(*norms.values()) == pytest.approx(0.5, rel=1e-4)


def test_a_weight_of_zero_is_no_distillation(log, tmp_path):
    alone = finished(trainer(log, tmp_path / "alone"))
    nothing = finished(trainer(log, tmp_path / "nothing", distiller({"fm": Distillation(weight=0.0)})))
    for name, tensor in alone.model.state_dict().items():
        assert torch.allclose(nothing.model.state_dict()[name], tensor, atol=1e-6), name


def test_what_is_saved_is_the_student_without_its_heads(log, tmp_path):
    run = finished(trainer(log, tmp_path / "run", distiller()))
    save_config(run.config, tmp_path / "run" / "config.yaml")
    served, _ = load_trained(tmp_path / "run", run.config, log)
    batch = log.read(2500, 3000)
    run.model.eval()
    with torch.no_grad():
        wanted, found = run.objective.student.eval()(batch)["click"], served(batch)["click"]
    assert torch.equal(found, wanted)
    assert not any("heads.fm" in name for name in served.state_dict())
    assert run.objective.student.serving_module() is run.model


def test_what_was_heard_is_counted_by_version(log):
    records = Records.unknown(torch.arange(6), ["click", "like"])
    logits = {"click": torch.tensor([1.0, 2.0, float("nan"), 0.0, 1.0, float("nan")]), "like": torch.full((6,), 1.0)}
    logits["like"][5] = float("nan")
    said = dataclasses.replace(
        records, logits=logits, version=torch.tensor([1, 1, 1, 3, 3, 0]), lag=torch.tensor([10, 20, 30, 40, 50, 0])
    )
    heard = Heard(["fm"])
    assert (heard.lag_ms, heard.versions, heard.losses) == (None, {}, {"fm": None})
    heard.add(said.rows(slice(3, 6)), ["click", "like"])
    heard.add(said.rows(slice(0, 3)), ["click"])
    heard.lost("fm", 0.5)
    heard.lost("fm", 1.0)
    again = Heard(["fm"])
    again.load_state_tensors(heard.state_tensors())
    for found in (heard, again):
        assert (found.events, found.silent) == (6, 2)
        assert found.versions == {1: 2, 3: 2}
        assert found.lag_ms == (10, 30.0, 50)
        assert found.losses == {"fm": 0.75}


def test_another_objective_does_not_go_on(log, tmp_path):
    started = trainer(log, tmp_path / "run", distiller())
    for seen in started.run():
        if seen >= 1000:
            break
    started.save()
    assert list_checkpoints(tmp_path / "run" / "checkpoints")

    def seeded(model):
        return Distiller(Student(model, TEACHERS, seed=4), {"fm": soft})

    def of_service(model):
        return Distiller(Student(model, TEACHERS), {"fm": soft}, "a1")

    for other, words in (
        (None, "now it would learn nothing"),
        (distiller({"fm": Distillation(weight=3.0)}), "weight=2.0.*weight=3.0"),
        (seeded, "seed 0.*seed 4"),
        (of_service, "service not named.*service a1"),
    ):
        with pytest.raises(CheckpointError, match=words):
            trainer(log, tmp_path / "run", other).resume()


def test_several_processes_and_absent_teachers_are_refused(log, tmp_path):
    group = Group()
    group.world = 2
    with pytest.raises(TrainingError, match="objective: learns in one process"):
        Trainer(small_config(), log, tmp_path / "run", group, objective=distiller())
    model = models.build(log.schema, small_config().model)
    with pytest.raises(ValueError, match="no soft labels of teacher 'fm', only of none"):
        Distiller(Student(model, TEACHERS), {})
