"""Fewer negatives: a sample that no cut changes, and models whose predictions are the truth's all the same."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from training_support import small_config

from octavo.data import DataError, EventLog, Label, Schema, Sparse
from octavo.data.downsampling import kept, logit_shift
from octavo.training import Trainer
from octavo.training.slices import predict

SCHEMA = Schema(sparse=(Sparse("group", 4),), labels=(Label("click"),))
RATES = np.array([0.02, 0.05, 0.1, 0.3])


def events(count: int = 40_000) -> pa.Table:
    g = np.random.default_rng(5)
    group = g.integers(0, 4, count)
    click = g.random(count) < RATES[group]
    columns = {"time": np.arange(count), "id": g.permutation(count), "group": group, "click": click.astype(np.int8)}
    return pa.table(columns)


@pytest.fixture(scope="module")
def logs(tmp_path_factory) -> tuple[EventLog, EventLog]:
    folder, table = tmp_path_factory.mktemp("logs"), events()
    whole = EventLog.write(folder / "whole", SCHEMA, [table])
    parts = [table.slice(at, 1777) for at in range(0, len(table), 1777)]
    return whole, EventLog.write(folder / "sample", SCHEMA, parts, negatives=0.2, seed=3)


def test_positives_and_the_unknown_stay_and_negatives_by_id_and_seed_alone(logs) -> None:
    whole, sample = logs
    assert sample.negatives == EventLog(sample.path).negatives == 0.2
    assert whole.negatives == 1.0
    table = events()
    stays = kept(table["id"].to_numpy(), table["click"].to_numpy().astype(float), 0.2, 3)
    assert sample.columns(["id"])["id"].to_pylist() == table["id"].to_numpy()[stays].tolist()
    click = table["click"].to_numpy() == 1
    assert bool(stays[click].all())
    share, count = stays[~click].mean(), (~click).sum()
    assert abs(share - 0.2) < 4 * (0.16 / count) ** 0.5
    ids = np.arange(1000)
    assert bool(kept(ids, np.full(1000, np.nan), 0.1, 0).all())
    assert bool(kept(ids, np.zeros(1000), 1.0, 0).all())
    assert not np.array_equal(kept(ids, np.zeros(1000), 0.5, 0), kept(ids, np.zeros(1000), 0.5, 1))


def test_predictions_are_the_truths(logs, tmp_path) -> None:
    whole, sample = logs
    trainer = Trainer(small_config(training__holdout=0.2, training__batch_size=32), sample, tmp_path)
    for _ in trainer.run():
        pass
    held_out = predict(trainer.model, sample, trainer.train_end, len(sample))
    q = torch.sigmoid(held_out.logits["click"])
    assert abs(float(q.sum() / held_out.labels["click"].sum()) - 1) < 0.1  # on the sample
    found = predict(trainer.model, whole, 32_000, 40_000)
    p = torch.sigmoid(found.logits["click"])
    assert abs(float(p.sum() / found.labels["click"].sum()) - 1) < 0.1
    uncorrected = torch.sigmoid(found.logits["click"] + logit_shift(0.2))
    assert float(uncorrected.sum() / found.labels["click"].sum()) > 2
    on_sample = predict(trainer.model, sample, 0, 100).logits["click"]
    with torch.inference_mode():
        assert torch.equal(on_sample, trainer.model(sample.read(0, 100))["click"] + logit_shift(0.2))


def test_what_cannot_be_sampled(tmp_path) -> None:
    with pytest.raises(ValueError, match="negatives: expected a rate above 0 and up to 1, found 0"):
        EventLog.write(tmp_path / "none", SCHEMA, [events(100)], negatives=0.0)
    two = Schema(sparse=SCHEMA.sparse, labels=(Label("click"), Label("group_is_3")))
    table = events(100).append_column("group_is_3", pa.array(np.zeros(100)))
    with pytest.raises(DataError, match="negatives: the schema has the heads click, group_is_3; expected one task"):
        EventLog.write(tmp_path / "two", two, [table], negatives=0.5)
    assert logit_shift(0.1) == pytest.approx(np.log(10))
