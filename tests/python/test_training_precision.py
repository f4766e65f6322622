"""After training: the torch twin, the variants, their quality and speed, the report's rows."""

import json

import pytest
import torch
from training_support import demo_log, small_config

from octavo import ops
from octavo.ops import kernels
from octavo.training import Trainer, precision, run
from octavo.training.torch_peer import torch_twin


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("precision")
    trainer = Trainer(small_config(), demo_log(root / "log"), root / "run")
    for _ in trainer.run():
        pass
    return trainer


@pytest.mark.parametrize("norm", ["layer", "rms", "block", "swish_rms"])
def test_the_torch_twin_is_the_same_model(trained, tmp_path, norm) -> None:
    changes = {"model__activation": "null"} if norm == "swish_rms" else {}
    trainer = Trainer(small_config(model__norm=norm, model__top="[300, 16]", **changes), trained.log, tmp_path)
    next(trainer.run())
    batch = trained.log.read(0, 200)
    model = trainer.model.eval()
    with torch.no_grad():
        expected = model(batch)["click"]
        twin = torch_twin(model, torch.float32)
        assert torch.allclose(twin(batch)["click"], expected, atol=1e-5)
        assert not any("octavo" in type(m).__module__ and "nn" in type(m).__module__.split(".") for m in twin.modules())
        half = torch_twin(model, torch.bfloat16)(batch)["click"]
        assert half.dtype == torch.float32
        assert ops.errors.sqnr_db(half, expected) > 20


def test_variants_run_in_their_class(trained) -> None:
    config = trained.config.plan
    plan = precision.make_plan(trained.model, trained.log, trained.train_end, config)
    batch = trained.log.read(0, 128)
    found = precision.variants(trained.model, plan, batch, config)
    assert list(found) == ["FP32", "planned", "e4m3_row", "int8_dynamic"]
    for name, model in found.items():
        before = ops.dispatch.counters()
        with torch.inference_mode():
            model(batch)
        ran = {k for k, n in ops.dispatch.counters().items() if n > before.get(k, 0) and ".linear." in k}
        classes = {kernels.by_name(k).numerics.name for k in ran}
        planned = {entry.numerics for entry in plan} - {"fp32"}
        assert classes == {"FP32": set(), "planned": planned}.get(name, {name})


def test_quality_differences_are_paired(trained) -> None:
    models = {"FP32": trained.model, "again": trained.model}
    rows, reference = precision.compare_quality(models, trained.log, trained.train_end, trained.config.plan)
    assert rows[0].ne_difference is None
    assert (rows[1].ne_difference.estimate, rows[1].ne_difference.low, rows[1].ne_difference.high) == (0, 0, 0)
    assert rows[0].quality == rows[1].quality
    assert rows[0].quality.events == len(trained.log) - trained.train_end == len(reference.user)


def test_eight_bits_cost_little_on_held_out_events(trained) -> None:
    config = trained.config.plan
    plan = precision.make_plan(trained.model, trained.log, trained.train_end, config)
    models = precision.variants(trained.model, plan, trained.log.read(0, 128), config)
    rows, _ = precision.compare_quality(models, trained.log, trained.train_end, config)
    for row in rows[1:]:
        assert abs(row.ne_difference.estimate) < 0.01
        assert row.ne_difference.low <= row.ne_difference.estimate <= row.ne_difference.high


def test_speed_rows(trained) -> None:
    rows = precision.compare_speed({"FP32": trained.model}, trained.log, trained.train_end, trained.config.plan)
    assert [(row.contestant, row.batch_size) for row in rows] == [("torch FP32", 64), ("torch BF16", 64), ("FP32", 64)]
    assert rows[0].ratio == 1.0
    for row in rows:
        assert 0 < row.p10_us <= row.p50_us <= row.p90_us
        assert row.ratio_p10 <= row.ratio <= row.ratio_p90


def test_the_whole_job(tmp_path) -> None:
    config = small_config(data__events=3000)
    results = run(config, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "checkpoints", "config.yaml", "history.jsonl", "log-3000-0", "plan.json", "report.html", "results.json",
    ]  # fmt: skip
    assert results.floor_ne is not None
    assert results.floor_ne < results.heldout.ne
    assert results.baselines["logistic regression"].auc > 0.5
    plan = ops.dispatch.Plan.load(tmp_path / "plan.json")
    assert [row.site for row in results.plan] == [entry.site for entry in plan]
    assert all(e.numerics == "fp32" or e.predicted_sqnr_db >= config.plan.min_sqnr_db for e in plan)
    first = json.loads((tmp_path / "results.json").read_text())
    again = run(config, tmp_path)  # nothing is left to train
    assert again.progressive == results.progressive
    assert again.numerics[0] == results.numerics[0]
    fresh = run(config, tmp_path, fresh=True)
    assert fresh.progressive == results.progressive
    assert first["heldout"]["ne"] == fresh.heldout.ne


def test_no_held_out_events(tmp_path) -> None:
    results = run(small_config(data__events=1000, training__holdout=0), tmp_path)
    assert results.heldout is None
    assert "no held-out events" in results.requirement
