"""What every kind of model does alike: seeds, gradients, few events, plans, compiled code, state, training."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from models_support import KINDS, ONE_TASK, SCHEMA, demo_with_history, events, model_config, scramble
from torch.nn import functional
from training_support import assert_same_bits, everything

from octavo import models, nn, ops
from octavo.config import RunConfig, build_config
from octavo.data import Batch, EventLog, Label, Schema, Sparse
from octavo.models.heads import module_names
from octavo.training import Trainer, run
from octavo.training.state import table_states
from octavo.training.torch_peer import torch_twin

MMOE = {"kind": "mmoe", "experts": 3, "expert": [7], "tower": [6]}
KIND = pytest.mark.parametrize("kind", KINDS)


def loss_of(model: models.Ranker, batch: Batch) -> torch.Tensor:
    return sum(  # type: ignore[return-value]
        functional.binary_cross_entropy_with_logits(z, batch.labels[task]) for task, z in model(batch).items()
    )


def tables_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: state.rows.clone() for name, state in table_states(model).items()}


@KIND
def test_the_seed_alone_decides_the_initial_values(kind: str) -> None:
    torch.manual_seed(1)
    first = models.build(SCHEMA, model_config(kind, seed=5, heads=MMOE)).state_dict()
    after = torch.rand(1)
    torch.manual_seed(2)
    second = models.build(SCHEMA, model_config(kind, seed=5, heads=MMOE)).state_dict()
    other = models.build(SCHEMA, model_config(kind, seed=6, heads=MMOE)).state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    drawn = [name for name, tensor in first.items() if tensor.unique().numel() > 1]
    assert len(drawn) > 10
    assert not any(torch.equal(first[name], other[name]) for name in drawn)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), after)  # building a model draws nothing from the caller's generator


@KIND
def test_xavier_layers_start_with_their_deviation_and_no_bias(kind: str) -> None:
    config = model_config(kind, seed=5, heads=MMOE, layer_init="xavier")
    model, again = models.build(SCHEMA, config), models.build(SCHEMA, config)
    layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.LinearNorm)]
    scaled = torch.cat([layer.weight.detach().flatten() * (sum(layer.weight.shape) / 2) ** 0.5 for layer in layers])
    assert abs(float(scaled.square().mean()) - 1) < 5 * (2 / len(scaled)) ** 0.5
    assert not any(layer.bias is not None and layer.bias.any() for layer in layers)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))


@KIND
@pytest.mark.parametrize("norm", ["layer", "block", "swish_rms", None])
@pytest.mark.parametrize("heads", [{"tower": [6]}, MMOE], ids=["shared_bottom", "mmoe"])
def test_gradients_reach_every_parameter_and_every_table(kind: str, norm: str | None, heads: dict[str, Any]) -> None:
    activation = None if norm == "swish_rms" else "silu"
    model = models.build(SCHEMA, model_config(kind, norm=norm, activation=activation, heads=heads)).train()
    before = tables_of(model)
    loss_of(model, events(64)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(torch.isfinite(parameter.grad).all()), name
        assert bool((parameter.grad != 0).any()), name
    after = tables_of(model)
    assert before.keys() == after.keys()
    assert {name.rsplit(".", 1)[-1] for name in after} == {"user", "item", "tags", "seller", "queries"}
    assert all(not torch.equal(rows, after[name]) for name, rows in before.items())


@KIND
def test_gradients_are_those_of_finite_differences(kind: str) -> None:
    """Along one random direction of all dense parameters at once."""
    model = scramble(models.build(SCHEMA, model_config(kind, norm="rms", activation="silu", heads=MMOE)))
    batch = events(32)
    for module in model.modules():
        if isinstance(module, nn.EmbeddingBags):
            module.eval()  # the tables stay as they are
    loss_of(model, batch).backward()
    generator = torch.Generator().manual_seed(4)
    steps = [torch.randn(p.shape, generator=generator) for p in model.parameters()]
    expected = sum(float((p.grad.double() * step).sum()) for p, step in zip(model.parameters(), steps, strict=True))
    size, values = 1e-3, []
    with torch.no_grad():
        for sign in (1, -2):
            for p, step in zip(model.parameters(), steps, strict=True):
                p += sign * size * step
            values.append(float(loss_of(model, batch).double()))
    assert (values[0] - values[1]) / (2 * size) == pytest.approx(expected, rel=0.02, abs=2e-3)


@KIND
@pytest.mark.parametrize("heads", [{}, MMOE], ids=["shared_bottom", "mmoe"])
@pytest.mark.parametrize("count", [0, 1])
def test_few_events(kind: str, heads: dict[str, Any], count: int) -> None:
    model = models.build(SCHEMA, model_config(kind, heads=heads)).eval()
    many = events(5)
    few = many.rows(0, count)
    with torch.no_grad():
        whole, part, embedded = model(many), model(few), model.embed(few)
    assert embedded.shape == (count, model.embed_dim)
    for task in model.tasks:
        assert part[task].shape == (count,)
        assert torch.allclose(part[task], whole[task][:count], atol=1e-5)
    model.train()
    before = tables_of(model)
    sum(z.sum() for z in model(few).values()).backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters())
    if count == 0:
        assert all(torch.equal(rows, before[name]) for name, rows in tables_of(model).items())


@KIND
def test_state_dict_and_copies(kind: str) -> None:
    model = scramble(models.build(SCHEMA, model_config(kind, heads=MMOE))).eval()
    other = models.build(SCHEMA, model_config(kind, heads=MMOE, seed=9)).eval()
    batch = events(20)
    with torch.inference_mode():
        expected = model(batch)
        assert not torch.equal(other(batch)["click"], expected["click"])
        other.load_state_dict(model.state_dict())
        for twin in (other, copy.deepcopy(model)):
            assert all(torch.equal(z, expected[task]) for task, z in twin(batch).items())


SITES = {
    "dlrm": {"bottom.0", "bottom.1", "top.0", "top.1"},
    "dcnv2": {"cross.layers.0", "cross.layers.1", "deep.0", "deep.1"},
    "deepfm": {"dense_first_order", "deep.0", "deep.1"},
    "din": {"units.0.hidden.0", "units.0.hidden.1", "units.0.out", "top.0", "top.1"},
    "wukong": {"bottom.0", "bottom.1", "top.0", "top.1"}
    | {f"layers.{i}.{name}" for i in (0, 1) for name in ("maps", "fmb.hidden.0", "fmb.out")},
}


@KIND
@pytest.mark.parametrize("numerics", ["bf16", "int8_dynamic", "e4m3_row"])
def test_a_plan_reaches_every_linear_layer(kind: str, numerics: str) -> None:
    model = scramble(models.build(SCHEMA, model_config(kind, heads={"tower": [6]}))).eval()
    batch = events(200)
    plan = ops.dispatch.uniform_plan(model, batch, numerics)
    heads = {f"heads.{task}.{i}" for task in ("click", "like", "buy_7d") for i in (0, 1)}
    assert {entry.site for entry in plan} == SITES[kind] | heads
    fast = nn.convert(model, plan)
    with torch.inference_mode():
        expected, found = model(batch), fast(batch)
        for task, z in found.items():
            assert ops.errors.sqnr_db(z, expected[task]) > (30 if numerics == "bf16" else 15), task
        assert torch.equal(fast.logits(fast.embed(batch))["like"], found["like"])
        assert fast(batch.rows(0, 0))["click"].shape == (0,)
    chosen = nn.convert(model, ops.dispatch.plan(model, batch, ops.dispatch.Requirement(min_sqnr_db=25)))
    with torch.inference_mode():
        assert ops.errors.sqnr_db(chosen(batch)["click"], expected["click"]) > 15


@KIND
@pytest.mark.parametrize("heads", [{}, MMOE], ids=["shared_bottom", "mmoe"])
def test_the_torch_twin_is_the_same_model(kind: str, heads: dict[str, Any]) -> None:
    model = scramble(models.build(SCHEMA, model_config(kind, heads=heads))).eval()
    batch = events(100)
    with torch.inference_mode():
        expected = model(batch)
        twin = torch_twin(model, torch.float32)
        assert not any(isinstance(m, nn.EmbeddingBags | nn.Linear | nn.LinearNorm) for m in twin.modules())
        for task, z in twin(batch).items():
            assert torch.allclose(z, expected[task], atol=1e-4, rtol=1e-4)
        for task, z in torch_twin(model, torch.bfloat16)(batch).items():
            assert z.dtype == torch.float32
            assert ops.errors.sqnr_db(z, expected[task]) > 15, task


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "din"])
def test_a_model_is_one_graph(kind: str) -> None:
    schema = Schema(SCHEMA.dense, SCHEMA.sparse, (), SCHEMA.labels)
    model = scramble(models.build(schema, model_config(kind, heads=MMOE))).eval()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=True)
    with torch.inference_mode():
        for count in (33, 7):
            batch = events(count, seed=count, schema=schema)
            expected = model(batch)
            assert all(torch.equal(z, expected[task]) for task, z in compiled(batch).items())
        for state in table_states(model).values():
            state.rows.mul_(-2)
        assert not torch.equal(model(batch)["click"], expected["click"])
        assert torch.equal(compiled(batch)["click"], model(batch)["click"])  # tables are the graph's inputs
    torch.compiler.reset()


def test_a_wukongs_norms_may_be_others_and_are_seen_by_hooks() -> None:
    schema = Schema(SCHEMA.dense, SCHEMA.sparse, (), SCHEMA.labels)
    model = scramble(models.build(schema, model_config("wukong"))).eval()
    batch, seen = events(9, seed=1, schema=schema), []
    with torch.inference_mode():
        expected = model.embed(batch)
        handle = model.layers[0].norm.register_forward_hook(lambda *_: seen.append(1))
        assert torch.allclose(model.embed(batch), expected, atol=1e-5)
        handle.remove()
        own = model.layers[0].norm
        other = torch.nn.LayerNorm(len(own.weight), own.eps)
        other.weight, other.bias = own.weight, own.bias
        model.layers[0].norm = other
        assert torch.allclose(model.embed(batch), expected, atol=1e-5)
    assert len(seen) == 1


@pytest.mark.parametrize("kind", ["dlrm", "din"])
def test_compiled_code_with_sequences_gives_the_same(kind: str) -> None:
    model = scramble(models.build(SCHEMA, model_config(kind))).eval()
    compiled = torch.compile(model, backend="aot_eager")
    with torch.inference_mode():
        for count in (33, 7):
            batch = events(count, seed=count)
            expected = model(batch)
            for task, z in compiled(batch).items():
                assert torch.allclose(z, expected[task], atol=1e-5, rtol=1e-5)
    torch.compiler.reset()


@KIND
def test_schemas_a_model_cannot_take(kind: str) -> None:
    for schema, message in (
        (Schema(SCHEMA.dense, SCHEMA.sparse, SCHEMA.sequences), "schema: has no labels"),
        (Schema(SCHEMA.dense, labels=SCHEMA.labels), "has no sparse features and no sequences"),
    ):
        with pytest.raises(ValueError, match=message):
            models.build(schema, model_config(kind))


@KIND
def test_batches_of_another_schema(kind: str) -> None:
    model = models.build(SCHEMA, model_config(kind)).eval()
    batch = events(4)
    fewer = events(4, schema=Schema(SCHEMA.dense, SCHEMA.sparse[:3], SCHEMA.sequences, SCHEMA.labels))
    narrow = events(4, schema=Schema(SCHEMA.dense[:1], SCHEMA.sparse, SCHEMA.sequences, SCHEMA.labels))
    with pytest.raises(ValueError, match="holds 12 sparse bags of 4 events and 3 dense .* has 4 sparse and 3 dense"):
        model(fewer)
    with pytest.raises(ValueError, match="and 1 dense columns, but the model's schema has 4 sparse and 3 dense"):
        model(narrow)
    with pytest.raises(ValueError, match="batch: has no sequence 'history'"):
        model(dataclasses.replace(batch, sequences={"queries": batch.sequences["queries"]}))
    beyond = ops.Jagged(torch.tensor([13]), torch.tensor([0, 0, 1, 1, 1]))
    with pytest.raises(IndexError, match=r"table 'item'.* 13 .*outside \[0, 13\)"):
        model(dataclasses.replace(batch, sequences={**batch.sequences, "history": beyond}))


@pytest.mark.parametrize("softmax", [False, True])
def test_no_history_at_all_is_zeros(softmax: bool) -> None:
    model = scramble(models.build(SCHEMA, model_config("din", softmax=softmax))).eval()
    batch = events(5)
    none = ops.Jagged(torch.empty(0, dtype=torch.int64), torch.zeros(6, dtype=torch.int64))
    empty = dataclasses.replace(batch, sequences={**batch.sequences, "history": none})
    unit = model.units[0]
    assert torch.equal(unit(torch.empty(0, 5), torch.randn(5, 5), none), torch.zeros(5, 5))
    with torch.no_grad():
        found = model(empty)
        for b in range(5):  # what an event without history gets among others is what it gets alone
            alone = model(empty.rows(b, b + 1))
            assert torch.allclose(found["click"][b], alone["click"][0], atol=1e-5)
            if batch.sequences["history"].lengths()[b] == 0:
                assert torch.allclose(model(batch)["click"][b], found["click"][b], atol=1e-5)


def test_din_needs_a_sequence_that_shares_a_table() -> None:
    alone = tuple(sequence for sequence in SCHEMA.sequences if sequence.table is None)
    with pytest.raises(ValueError, match=r"nothing to attend to; declare one such as Sparse\('history'"):
        models.build(Schema(SCHEMA.dense, SCHEMA.sparse, alone, SCHEMA.labels), model_config("din"))


def test_only_sequences_and_only_one_feature() -> None:
    alone = Schema((), (), SCHEMA.sequences[1:], SCHEMA.labels)
    batch = events(6, schema=alone)
    for kind in ("dlrm", "dcnv2", "deepfm", "wukong"):
        assert models.build(alone, model_config(kind)).eval()(batch)["like"].shape == (6,)
    with pytest.raises(ValueError, match="no pairs; set model.embeddings_to_top=true"):
        models.build(alone, model_config("dlrm", embeddings_to_top=False))


def test_history_weights_multiply_attention() -> None:
    model = scramble(models.build(ONE_TASK, model_config("din"))).eval()
    batch = events(12, schema=ONE_TASK)
    history = batch.sequences["history"]
    twice = ops.Jagged(history.values.repeat_interleave(2), history.offsets * 2)
    weighted = ops.Jagged(history.values, history.offsets, torch.full((len(history.values),), 2.0))

    def logits(bags: ops.Jagged) -> torch.Tensor:
        sequences = {**batch.sequences, "history": bags}
        with torch.no_grad():
            return model(dataclasses.replace(batch, sequences=sequences))["click"]

    assert torch.allclose(logits(weighted), logits(twice), atol=1e-5)
    assert not torch.allclose(logits(weighted), logits(history), atol=1e-2)


def test_many_tasks_with_any_names() -> None:
    names = ["click", "items", "a.b", "a_b", "training", "", "keys", "weight", "buy@7d"]
    found = module_names(names)
    assert found["click"] == "click"
    assert found["buy@7d"] == "buy@7d"
    assert (found["a.b"], found["a_b"]) == ("a_b", "a_b_")
    assert len(set(found.values())) == len(names)
    schema = Schema((), (Sparse("user", 11), Sparse("seller", 7)), (), tuple(map(Label, names)))
    for heads in ({}, {"tower": [4]}, MMOE):
        model = models.build(schema, model_config("deepfm", heads=heads)).eval()
        batch = events(9, schema=Schema((), schema.sparse, (), ()))
        with torch.no_grad():
            logits = model(batch)
        assert list(logits) == names
        assert all(not torch.equal(logits["click"], logits[name]) for name in names[1:])
        nn.convert(model, ops.dispatch.uniform_plan(model, batch, "int8_dynamic"))


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> EventLog:
    return demo_with_history(tmp_path_factory.mktemp("kinds"), 12_000)


def training_config(kind: str, **changes: Any) -> RunConfig:
    return build_config(
        {
            "name": kind,
            "data": {"source": "demo"},
            "model": {"kind": kind, "embedding_dim": 8, **KINDS[kind], **changes},
            "training": {"batch_size": 64, "window": 2000, "holdout": 0, "checkpoint_every": 70},
        }
    )


@KIND
@pytest.mark.parametrize("optimizer", ["row_wise_adagrad", "adam"])
def test_it_learns_and_resumes_bit_for_bit(kind: str, optimizer: str, log: EventLog, tmp_path: Any) -> None:
    lr = {"row_wise_adagrad": 0.05, "adam": 0.002}[optimizer]
    config = training_config(kind, table_optimizer={"kind": optimizer, "lr": lr})
    trainer = Trainer(config, log, tmp_path / "whole")
    for _ in trainer.run():
        pass
    points = [point.quality for point in trainer.progressive.points]
    assert points[-1].ne < 0.985  # log loss below the entropy of the window's base rate
    assert points[-1].ne < points[0].ne
    assert points[-1].auc > 0.62

    stopped = Trainer(config, log, tmp_path / "stopped")
    for position in stopped.run():
        if position >= 64 * 90:
            break
    resumed = Trainer(config, log, tmp_path / "stopped")
    assert resumed.resume()
    assert resumed.position == 64 * 70
    for _ in resumed.run():
        pass
    assert_same_bits(everything(resumed), everything(trainer))


def test_the_whole_job_of_a_model_with_histories(log: EventLog, tmp_path: Any) -> None:
    """Plan, torch's twin, quality and speed of every class, report."""
    config = build_config(
        {
            "data": {"source": "log", "path": str(log.path)},
            "model": {"kind": "din", "embedding_dim": 8, **KINDS["din"], "heads": MMOE},
            "training": {"batch_size": 128, "window": 2000},
            "plan": {"batch_sizes": [64], "rounds": 3, "bootstrap": 100, "calibration_events": 256},
        }
    )
    results = run(config, tmp_path)
    rows = sum(feature.rows for feature in log.schema.sparse)
    assert results.training["tables"] == f"{len(log.schema.sparse)}, {rows:,} rows, {8 * rows:,} parameters"
    assert {row.site for row in results.plan} == SITES["din"] | {
        "heads.gates", *(f"heads.experts.{i}.0" for i in range(3)), "heads.towers.click.0", "heads.towers.click.1"
    }  # fmt: skip
    assert [row.contestant for row in results.speed][:3] == ["torch FP32", "torch BF16", "FP32"]
    assert all(abs(row.ne_difference.estimate) < 0.02 for row in results.numerics[1:])
    assert results.heldout.auc > 0.55
