"""nn.EmbeddingCollection: rows by feature, trained by each lookup's gradient; where tables keep their scales."""

import copy
import io

import pytest
import torch

from octavo import nn, ops
from octavo.ops.table_formats import decode_rows

TABLES = [nn.Table("user", 30, 12), nn.Table("item", 20, 5)]
VALUES = torch.tensor([3, 3, 29, 0, 19, 4, 4])
OFFSETS = torch.tensor([0, 2, 3, 3, 3, 5, 7])  # 3 events: user 2, 1, 0 lookups; item 0, 2, 2


def test_rows_by_table() -> None:
    module = nn.EmbeddingCollection(TABLES).eval()
    for found in (module(VALUES, OFFSETS), module(ops.Jagged(VALUES, OFFSETS))):
        assert list(found) == ["user", "item"]
        assert torch.equal(found["user"], module.state_dict()["rows.user"][VALUES[:3]])
        assert torch.equal(found["item"], module.state_dict()["rows.item"][VALUES[3:]])


@pytest.mark.parametrize("optimizer", [nn.SGD(0.5), nn.RowWiseAdagrad(0.5)], ids=["sgd", "adagrad"])
def test_each_lookup_trains_its_row(isa, optimizer) -> None:
    module = nn.EmbeddingCollection(TABLES, optimizer)
    before = {name: module.state_dict()[f"rows.{name}"].clone() for name in ("user", "item")}
    found = module(VALUES, OFFSETS)
    grads = {name: torch.randn(rows.shape) for name, rows in found.items()}
    sum((rows * grads[name]).sum() for name, rows in found.items()).backward()
    for name, own in (("user", VALUES[:3]), ("item", VALUES[3:])):
        dense = torch.zeros_like(before[name]).double().index_add_(0, own, grads[name].double())
        if isinstance(optimizer, nn.SGD):
            step = torch.full_like(dense, 0.5)
        else:
            step = 0.5 / (dense.square().mean(1, keepdim=True).sqrt() + 1e-8)
        expected = before[name].double() - step * dense
        assert torch.allclose(module.state_dict()[f"rows.{name}"].double(), expected, rtol=1e-5, atol=1e-6)


def test_nothing_is_updated_outside_training() -> None:
    module = nn.EmbeddingCollection(TABLES, nn.SGD(0.5)).eval()
    assert not module(VALUES, OFFSETS)["user"].requires_grad
    module.train()
    with torch.no_grad():
        assert not module(VALUES, OFFSETS)["user"].requires_grad
    with pytest.raises(IndexError, match="user"):
        module(torch.tensor([30, 0]), torch.tensor([0, 1, 2]))


def test_arguments() -> None:
    module = nn.EmbeddingCollection(TABLES)
    with pytest.raises(TypeError, match="offsets: missing"):
        module(VALUES)
    with pytest.raises(TypeError, match="offsets, weights: a Jagged holds"):
        module(ops.Jagged(VALUES, OFFSETS, torch.ones(7)))


PLACES = [("e4m3", "separate"), ("e4m3", "in_row"), ("e4m3", "power_of_two"), ("int8", "in_row"), ("int4", "in_row"),
          ("int4", "separate"), ("fp16", "auto"), ("int4", "auto"), ("e4m3", "auto")]  # fmt: skip


@pytest.mark.parametrize(("dtype", "place"), PLACES)
def test_scales_stay_where_they_are(dtype, place) -> None:
    master = nn.EmbeddingBags([nn.Table("a", 40, 11), nn.Table("b", 30, 64)]).eval()
    module = master.to_dtype(dtype, place)
    values, offsets = torch.tensor([1, 2, 3, 4, 29]), torch.tensor([0, 3, 5])
    expected = module(values, offsets)
    state = module.state_dict()
    for column, (name, dim, own) in enumerate((("a", 11, values[:3]), ("b", 64, values[3:]))):
        scale = state.get(f"scale.{name}")
        decoded = decode_rows(state[f"rows.{name}"], scale, dim if dtype == "int4" else None)
        pooled = decoded[own].sum(0)
        found = expected[0, :11] if column == 0 else expected[0, 11:]
        assert torch.allclose(found, pooled, rtol=1e-5, atol=1e-6)
    saved = io.BytesIO()
    torch.save(state, saved)
    saved.seek(0)
    fresh = nn.EmbeddingBags(module.tables).eval()
    fresh.load_state_dict(torch.load(saved))
    for twin in (copy.deepcopy(module), module.to_dtype(dtype, place), fresh):
        assert torch.equal(twin(values, offsets), expected)
        for table in twin.tables:
            rows, scale = twin.rows.get(table.name), twin.scale.get(table.name)
            assert rows is not None
            assert (scale is not None) == (dtype != "fp16")
            shared = scale is not None and scale.untyped_storage().data_ptr() == rows.untyped_storage().data_ptr()
            assert shared == (table.place == "in_row")


def test_the_place_is_checked() -> None:
    with pytest.raises(ValueError, match="power_of_two is for e4m3 rows, these are int8"):
        nn.Table("a", 3, 4, "int8", scale="power_of_two")
    coded = nn.EmbeddingBags([nn.Table("a", 3, 4, "e4m3")])
    with pytest.raises(ValueError, match="convert the fp32 original"):
        coded.to_dtype("e4m3", "power_of_two")


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_backward_is_one_update_of_all_tables(dtype: str) -> None:
    """Every lookup a bag of one row: the bags' module must do the same, in Adam's step and in its random bits."""
    tables = [nn.Table("a", rows=9, dim=4, dtype=dtype), nn.Table("b", rows=7, dim=4, dtype=dtype)]
    rows, bags = (kind(tables, nn.Adam(lr=0.1), seed=3) for kind in (nn.EmbeddingCollection, nn.EmbeddingBags))
    bags.load_state_dict(rows.state_dict())
    values, offsets = torch.tensor([1, 2, 3, 4, 0, 6, 5, 2]), torch.arange(9)
    for expected in (1, 2):
        grad = torch.randn(4, 8, generator=torch.Generator().manual_seed(expected))
        found = rows(values, offsets)
        torch.autograd.backward([found["a"], found["b"]], [grad[:, :4], grad[:, 4:]])
        bags(values, offsets).backward(grad)
        assert int(rows.state_dict()["step"]) == expected
        for name, tensor in bags.state_dict().items():
            assert torch.equal(rows.state_dict()[name], tensor), name
