"""Dynamic tables in schemas, models and the trainer: ids as they are, every model, resumed bit for bit."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from models_support import KINDS
from training_support import assert_same_bits, demo_log, everything, small_config

from octavo import models
from octavo.config import RunConfig, build_config
from octavo.data import DataError, EventLog, Label, Schema, Sparse, encode_events
from octavo.training import Trainer, list_checkpoints
from octavo.training.baseline import logistic_regression
from octavo.training.checkpoint import Checkpoint, chain_length
from octavo.training.state import table_states
from octavo.training.torch_peer import torch_twin

HISTORIES = Schema(
    sparse=(
        Sparse("user", 50, "dynamic"),
        Sparse("item", 40, "dynamic"),
        Sparse("seen", 40, "dynamic", multi=True, table="item"),
        Sparse("word", 30, "dynamic_text"),
        Sparse("kind", 4),
    ),
    sequences=(Sparse("history", 40, "dynamic", multi=True, table="item"),),
    labels=(Label("click"),),
)


def events(start: int, count: int = 12) -> list[dict[str, Any]]:
    return [
        {"time": 1000 * i, "id": i, "user": -(2**62) + i // 3, "item": 2**61 + i, "seen": [2**61 + i, 5], "kind": i % 4,
         "word": f"w{i // 2}", "history": [2**61 + i - 1, 7], "click": i % 2}
        for i in range(start, start + count)
    ]  # fmt: skip


def config(kind: str, **changes: Any) -> Any:
    values = {key: value for key, value in KINDS[kind].items() if key != "bottom"}
    return build_config({"model": {"kind": kind, "embedding_dim": 5, **values, **changes}}).model


def test_ids_stay_as_they_are() -> None:
    batch = encode_events(HISTORIES, events(0, 2))
    key = int.from_bytes(hashlib.blake2b(b"w0", digest_size=8).digest(), "little", signed=True)
    assert batch.sparse.values.tolist() == [-(2**62)] * 2 + [2**61, 2**61 + 1] + [2**61, 5, 2**61 + 1, 5] + [
        key
    ] * 2 + [
        0,
        1,
    ]
    assert batch.sequences["history"].values.tolist() == [2**61 - 1, 7, 2**61, 7]
    assert Schema.from_json(HISTORIES.to_json()) == HISTORIES
    with pytest.raises(DataError, match="takes integers"):
        encode_events(HISTORIES, [{**events(0)[0], "user": "me"}])
    with pytest.raises(DataError, match="takes text"):
        encode_events(HISTORIES, [{**events(0)[0], "word": 3}])
    with pytest.raises(DataError, match="expected rows >= 1"):
        Sparse("user", encoding="dynamic")
    with pytest.raises(DataError, match="encoding"):
        Schema(sparse=(Sparse("a", 4), Sparse("b", 4, "dynamic", table="a")))


@pytest.mark.parametrize("kind", KINDS)
def test_every_model_learns_ids_it_never_saw(kind: str) -> None:
    schema = HISTORIES if kind == "din" else dataclasses.replace(HISTORIES, sequences=())
    model = models.build(schema, config(kind, dynamic={"max_age_hours": 0.001}))
    first, second = encode_events(schema, events(0)), encode_events(schema, events(100))
    model.eval()
    before = model(first)["click"].detach()
    assert all(len(state.dynamic) == 0 for state in table_states(model).values() if state.dynamic is not None)
    for _ in range(3):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            model.train()(first)["click"], first.labels["click"]
        )
        loss.backward()
    after = model.eval()(first)["click"].detach()
    assert not torch.equal(before, after)
    held = {name.rsplit(".", 1)[1]: s.dynamic for name, s in table_states(model).items() if s.dynamic is not None}
    user = held["user"]
    assert user is not None
    assert sorted(user.entries()["ids"].tolist()) == [-(2**62) + i for i in range(4)]
    assert user.clock == 11_000
    model.train()(second)["click"].sum().backward()
    assert user.evict(111_000) == 4  # not seen for 3.6 s of event time
    twin = torch_twin(model.eval(), torch.float32)
    assert torch.allclose(twin(second)["click"], model(second)["click"].detach(), atol=1e-5)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> EventLog:
    """The demo log, its users and items as ids that are not known beforehand, in tables too small for them."""
    root = tmp_path_factory.mktemp("dynamic")
    demo = demo_log(root / "demo")
    changes = {"user": Sparse("user", 100, "dynamic"), "item": Sparse("item", 40, "dynamic"),
               "advertiser": Sparse("advertiser", 300, "dynamic_text")}  # fmt: skip
    sparse = tuple(changes.get(feature.name, feature) for feature in demo.schema.sparse)
    schema = dataclasses.replace(demo.schema, sparse=sparse)
    return EventLog.write(root / "log", schema, [demo.columns(demo.column_names)])


def settings(**changes: Any) -> RunConfig:
    return small_config(model__dynamic__admit_after=2, training__full_every=3, training__checkpoint_every=7, **changes)


def finish(trainer: Trainer) -> Trainer:
    for _ in trainer.run():
        pass
    return trainer


def by_place(trainer: Trainer) -> dict[str, torch.Tensor]:
    """All that training changes; of dynamic tables the rows that hold something."""
    found = everything(trainer)
    for name, state in table_states(trainer.model).items():
        if state.dynamic is not None:
            entries = state.dynamic.entries()
            places = torch.cat([torch.zeros(1, dtype=torch.int64), entries["places"]])
            found |= {key: found[key][places] for key in (f"{name}.rows", *(f"{name}.{slot}" for slot in state.slots))}
            found |= {f"{name}.{key}": column for key, column in entries.items()}
            found[f"{name}.sightings"] = state.dynamic.sightings()
    return found


def test_a_run_resumed_from_a_difference_is_the_uninterrupted_one(log: EventLog, tmp_path: Path) -> None:
    whole = finish(Trainer(settings(), log, tmp_path / "whole"))
    removed = [s.dynamic.map.removed for s in table_states(whole.model).values() if s.dynamic is not None]
    assert max(removed) > 100
    reference = by_place(whole)
    for stop in (13, 16, 40):
        stopped = Trainer(settings(), log, tmp_path / str(stop))
        for _, _ in zip(range(stop), stopped.run(), strict=False):
            pass
        found = list_checkpoints(stopped.checkpoints)
        resumed = Trainer(settings(), log, tmp_path / str(stop))
        assert resumed.resume()
        assert resumed.step == Checkpoint(found[-1]).step > 0
        assert_same_bits(by_place(finish(resumed)), reference)
    lengths = [chain_length(path) for path in list_checkpoints(whole.checkpoints)]
    assert max(lengths) > 0


def test_the_baseline_takes_any_ids(log: EventLog) -> None:
    assert 0.4 < logistic_regression(log, 4000, "click").auc < 1.0
