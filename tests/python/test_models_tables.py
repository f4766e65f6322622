"""Tables that several features read: what is pooled, and that a backward is one update, against torch's embeddings."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from models_support import SCHEMA, events, model_config, pooled_of, rows_of
from torch.nn import functional

from octavo import nn
from octavo.config import TableOptimizerConfig, build_config
from octavo.data import Batch, Schema, Sparse
from octavo.models.selection import Selection
from octavo.models.tables import Tables, pool_rows, table_optimizer
from octavo.ops import Jagged

SHARING = Schema(
    SCHEMA.dense,
    (*SCHEMA.sparse, Sparse("twin", 13, multi=True, table="item")),
    (*SCHEMA.sequences, Sparse("older", 13, multi=True, table="item")),
    SCHEMA.labels,
)
NAMES = ["user", "item", "tags", "seller", "twin", "history", "queries", "older"]


def sharing_events(count: int, weighted: bool = False, seed: int = 0) -> Batch:
    """Events of SCHEMA with two features more that read the items' table; ``weighted``: sparse lookups have weights."""
    batch = events(count, seed)
    generator = torch.Generator().manual_seed(seed + 1)

    def bags() -> Jagged:
        lengths = torch.randint(0, 4, (count,), generator=generator)
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        return Jagged(torch.randint(0, 13, (int(offsets[-1]),), generator=generator), offsets)

    twin = bags()
    values = torch.cat([batch.sparse.values, twin.values])
    offsets = torch.cat([batch.sparse.offsets, twin.offsets[1:] + len(batch.sparse.values)])
    weights = torch.rand(len(values), generator=generator) if weighted else None
    return dataclasses.replace(
        batch, sparse=Jagged(values, offsets, weights), sequences={**batch.sequences, "older": bags()}
    )


def make(attended: tuple[str, ...] = (), **changes: Any) -> Tables:
    return Tables(SHARING, model_config("wukong", **changes), 5, attended)


@pytest.mark.parametrize("attended", [(), ("history",), ("history", "queries"), ("queries",)])
def test_every_feature_is_pooled_from_its_table(attended: tuple[str, ...]) -> None:
    tables = make(attended).eval()
    batch = sharing_events(19)
    pooled, rows = tables(batch)
    assert [reader.name for reader in tables.pooled] == [name for name in NAMES if name not in attended]
    model = torch.nn.ModuleDict({"embeddings": tables})
    for i, reader in enumerate(tables.pooled):
        expected = torch.from_numpy(pooled_of(model, SHARING, batch, reader.name)).float()
        assert torch.allclose(pooled[:, i], expected, atol=1e-6), reader.name
    assert sorted(rows) == sorted(attended)
    for name, found in rows.items():
        each = [torch.from_numpy(part).float() for part in rows_of(model, SHARING, batch, name)]
        assert torch.equal(found, torch.cat(each))
    names = [name for name in tables.state_dict() if ".rows." in f".{name}"]
    assert sorted(name.rsplit(".", 1)[-1] for name in names) == ["item", "queries", "seller", "tags", "user"]


@pytest.mark.parametrize("attended", [(), ("history",)])
@pytest.mark.parametrize("pooling", ["sum", "mean"])
def test_pooling_and_weights(attended: tuple[str, ...], pooling: str) -> None:
    tables = make(attended, pooling=pooling).eval()
    batch = sharing_events(19, weighted=True)
    pooled, _ = tables(batch)
    state = tables.state_dict()
    places = {feature.name: i for i, feature in enumerate(SHARING.sparse)}
    for i, reader in enumerate(tables.pooled):
        table = next(tensor for name, tensor in state.items() if f".{name}".endswith(f".rows.{reader.table}"))
        for b in range(19):
            bags, at = (batch.sparse, places[reader.name] * 19 + b) if reader.name in places else (
                batch.sequences[reader.name], b)  # fmt: skip
            own = slice(int(bags.offsets[at]), int(bags.offsets[at + 1]))
            weights = torch.ones(own.stop - own.start) if bags.weights is None else bags.weights[own]
            expected = (table[bags.values[own]] * weights[:, None]).sum(0)
            if pooling == "mean" and own.stop > own.start:
                expected = expected / (own.stop - own.start)
            assert torch.allclose(pooled[b, i], expected, atol=1e-6), reader


@pytest.mark.parametrize("attended", [(), ("history",), ("history", "older")])
@pytest.mark.parametrize("kind", ["sgd", "adagrad", "row_wise_adagrad", "adam"])
def test_a_backward_is_one_update_of_a_shared_table(attended: tuple[str, ...], kind: str) -> None:
    """With an element-wise optimizer two updates of half the gradient are not one of the whole."""
    lr = 0.1
    tables = make(attended, table_optimizer={"kind": kind, "lr": lr, "eps": None if kind == "sgd" else 1e-8}).train()
    state = tables.state_dict()
    key = next(name for name in state if f".{name}".endswith(".rows.item"))
    reference = state[key].clone().requires_grad_()
    slot, second = torch.zeros_like(reference), torch.zeros_like(reference)
    for step in (1, 2, 3):
        batch = sharing_events(23, seed=step)
        pooled, rows = tables(batch)
        weight = torch.linspace(-1, 1, pooled.numel()).view_as(pooled)
        loss = (pooled * weight).sum() + sum((part * part.detach().cos()).sum() for part in rows.values())
        loss.backward()

        expected = torch.zeros(())
        for i, reader in enumerate(tables.pooled):
            if reader.table == "item":
                bags, first = (batch.sequences[reader.name], 0) if isinstance(reader.place, str) else (
                    batch.sparse, reader.place * 23)  # fmt: skip
                offsets = bags.offsets[first : first + 24]
                own = functional.embedding_bag(bags.values[int(offsets[0]) : int(offsets[-1])], reference,
                                               offsets - offsets[0], mode="sum", include_last_offset=True)  # fmt: skip
                expected = expected + (own * weight[:, i]).sum()
        for name in attended:
            part = reference[batch.sequences[name].values]
            expected = expected + (part * part.detach().cos()).sum()
        (grad,) = torch.autograd.grad(expected, reference)
        touched = (grad != 0).any(1, keepdim=True)
        with torch.no_grad():
            if kind == "sgd":
                reference -= lr * grad
            elif kind == "adagrad":
                slot += grad**2
                reference -= lr * grad / (slot.sqrt() + 1e-8)
            elif kind == "row_wise_adagrad":
                slot += (grad**2).mean(1, keepdim=True)
                reference -= lr * grad / (slot.sqrt() + 1e-8)
            else:
                slot += touched * 0.1 * (grad - slot)
                second += touched * 0.001 * (grad**2 - second)
                size = lr * (1 - 0.999**step) ** 0.5 / (1 - 0.9**step)
                reference -= touched * size * slot / (second.sqrt() + 1e-8)
        assert torch.allclose(tables.state_dict()[key], reference, atol=2e-5), step
        reference = tables.state_dict()[key].clone().requires_grad_()


@pytest.mark.parametrize("attended", [(), ("history",)])
@pytest.mark.parametrize("count", [0, 1])
def test_few_events(attended: tuple[str, ...], count: int) -> None:
    tables = make(attended).train()
    batch = sharing_events(3).rows(0, count)
    pooled, rows = tables(batch)
    assert pooled.shape == (count, 8 - len(attended), 5)
    (pooled.sum() + sum(part.sum() for part in rows.values())).backward()
    pooled, _ = tables(sharing_events(3))  # and it still serves
    assert bool(torch.isfinite(pooled).all())


def test_features_that_share_nothing_are_one_call_on_the_batch_as_it_is() -> None:
    schema = Schema(SCHEMA.dense, SCHEMA.sparse, (), SCHEMA.labels)
    tables = Tables(schema, model_config("wukong"), 5).eval()
    batch = events(9, schema=schema)
    assert len(tables.shared) == 0
    assert tables.unpooled is None
    assert tables._alone[0](batch) is batch.sparse
    assert torch.equal(tables(batch)[0].flatten(1), tables.bags(batch.sparse))


def test_selections_join_neighbours() -> None:
    batch = sharing_events(5, weighted=True)
    select = Selection([0, 2, 3, "history"], 5)
    assert select.runs == [(0, 1), (2, 4), "history"]
    found = select(batch)
    lengths = batch.sparse.lengths().view(5, 5)
    assert found.lengths().tolist() == [
        *lengths[[0, 2, 3]].flatten().tolist(), *batch.sequences["history"].lengths().tolist()
    ]  # fmt: skip
    assert found.weights[-1] == 1.0
    assert Selection([1], 5)(batch).weights.equal(
        batch.sparse.weights[int(batch.sparse.offsets[5]) : int(batch.sparse.offsets[10])]
    )


def test_pooled_rows_and_their_gradients() -> None:
    rows, weights = torch.randn(6, 3, requires_grad=True), torch.randn(6, requires_grad=True)
    offsets = torch.tensor([0, 0, 4, 6, 6])
    found = pool_rows(rows, offsets, weights)
    expected = torch.stack([(rows[a:b] * weights[a:b, None]).sum(0) for a, b in ((0, 0), (0, 4), (4, 6), (6, 6))])
    assert torch.allclose(found, expected)
    up = torch.randn(4, 3)
    for a, b in zip(
        torch.autograd.grad(found, (rows, weights), up), torch.autograd.grad(expected, (rows, weights), up)
    ):
        assert torch.allclose(a, b)
    assert torch.equal(pool_rows(rows[:0], torch.zeros(3, dtype=torch.int64), weights[:0]), torch.zeros(2, 3))


def test_optimizers_and_their_options() -> None:
    assert table_optimizer(TableOptimizerConfig()) == nn.RowWiseAdagrad(0.05)
    assert table_optimizer(TableOptimizerConfig(kind="sgd", lr=0.1, weight_decay=0.2)) == nn.SGD(0.1, 0.2)
    assert table_optimizer(TableOptimizerConfig(kind="adagrad", eps=1e-3)) == nn.Adagrad(0.05, 1e-3)
    read = build_config({"model": {"table_optimizer": {"kind": "adam", "betas": [0.8, 0.9]}}}).model.table_optimizer
    assert table_optimizer(read) == nn.Adam(0.05, (0.8, 0.9))
    assert table_optimizer(TableOptimizerConfig(kind="adam", lazy=False)) == nn.Adam(0.05, lazy=False)


def test_two_tables_of_one_name_and_a_batch_of_another_schema() -> None:
    both = Schema((), (Sparse("tags", 5, multi=True),), (Sparse("tags", 5, multi=True),), SCHEMA.labels)
    with pytest.raises(ValueError, match=r"'tags' is a sparse feature and a sequence .*\(table='tags'\)"):
        Tables(both, model_config("wukong"), 5)
    shared = dataclasses.replace(both, sequences=(Sparse("tags", 5, multi=True, table="tags"),))
    assert [reader.table for reader in Tables(shared, model_config("wukong"), 5).pooled] == ["tags", "tags"]
    batch = sharing_events(3)
    with pytest.raises(ValueError, match="batch: has no sequence 'older'"):
        make()(dataclasses.replace(batch, sequences={name: batch.sequences[name] for name in ("history", "queries")}))
    with pytest.raises(ValueError, match="holds 12 sparse bags of 3 events"):
        make()(events(3))
