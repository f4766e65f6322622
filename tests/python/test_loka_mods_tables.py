"""Tables of torch's and octavo's models in low-precision rows behind their old signatures."""

import copy

import pytest
import torch
from mods_support import Click, click_inputs, trained

from octavo import nn
from octavo.loka import mods
from octavo.loka.mods.served import ServedEmbedding, ServedEmbeddingBag
from octavo.ops.table_formats import decode_rows, encode_rows

FORMATS = [("e4m3", 0.04), ("int8", 0.006), ("int4", 0.1), ("fp16", 1e-3), ("bf16", 8e-3)]


def _rounded(weight: torch.Tensor, dtype: str) -> torch.Tensor:
    codes, scale = encode_rows(weight.detach(), dtype)
    return decode_rows(codes, scale, weight.shape[1] if dtype == "int4" else None)


@pytest.mark.parametrize(("dtype", "error"), FORMATS)
@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_a_model_runs_on_the_rounded_rows(dtype, error, mode) -> None:
    model = trained(Click(mode))
    changed = mods.apply(model, tables=dtype)
    rounded = copy.deepcopy(model)
    for table in ("tags", "item"):
        weight = getattr(model, table).weight
        getattr(rounded, table).weight.data = _rounded(weight, dtype)
        found = getattr(changed, table).decoded()
        assert torch.equal(found, _rounded(weight, dtype))
        assert 0 < (found - weight).abs().max() < error * weight.abs().max()
    assert torch.allclose(changed(*click_inputs()), rounded(*click_inputs()), rtol=1e-5, atol=1e-5)
    assert [type(m) for m in (changed.tags, changed.item)] == [ServedEmbeddingBag, ServedEmbedding]
    assert {change.site: change.mod for change in mods.changes(changed)} == {"tags": "tables", "item": "tables"}
    where = mods.names(changed)
    assert "item.weight" not in where
    assert where["top.0.weight"] == "top.0.weight"
    assert type(model.item) is torch.nn.Embedding


@pytest.mark.parametrize("dtype", ["e4m3", "int8"])
@pytest.mark.parametrize("index", [torch.int64, torch.int32])
def test_signatures_are_those_of_torch(dtype, index) -> None:
    torch.manual_seed(0)
    rows = torch.nn.Embedding(9, 5)
    served = ServedEmbedding(rows.weight, dtype)
    rows.weight.data = served.decoded()
    for shape in ((), (3,), (2, 0), (2, 3, 4), (0,)):
        ids = torch.randint(0, 9, shape, dtype=index)
        assert torch.equal(served(ids), rows(ids))
    for mode in ("sum", "mean"):
        for last in (False, True):
            bags = torch.nn.EmbeddingBag(9, 5, mode=mode, include_last_offset=last)
            served_bags = ServedEmbeddingBag(bags.weight, dtype, mode, last)
            bags.weight.data = served_bags.decoded()
            ids = torch.randint(0, 9, (7,), dtype=index)
            offsets = torch.tensor([0, 2, 2, 7] if last else [0, 2, 2, 6], dtype=index)
            assert torch.allclose(served_bags(ids, offsets), bags(ids, offsets), rtol=1e-6, atol=1e-6)
            square = torch.randint(0, 9, (4, 3), dtype=index)
            assert torch.allclose(served_bags(square), bags(square), rtol=1e-6, atol=1e-6)
            if mode == "sum":
                weights = torch.randn(4, 3)
                expected = bags(square, per_sample_weights=weights)
                found = served_bags(square, per_sample_weights=weights)
                assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_wrong_calls_are_named() -> None:
    bags = ServedEmbeddingBag(torch.ones(4, 3), "int8", "mean", False)
    ids = torch.tensor([0, 1])
    with pytest.raises(ValueError, match="per_sample_weights: expected mode 'sum'"):
        bags(ids, torch.tensor([0]), torch.ones(2))
    with pytest.raises(ValueError, match=r"input: expected \[B, L\], or \[V\] with offsets"):
        bags(ids)
    with pytest.raises(ValueError, match="offsets: an input of two dimensions"):
        bags(ids.view(1, 2), torch.tensor([0]))
    with pytest.raises(IndexError, match="4"):
        bags(torch.tensor([4]), torch.tensor([0]))
    with pytest.raises(IndexError, match="-1"):
        ServedEmbedding(torch.ones(4, 3), "int8")(torch.tensor([-1]))


def test_what_cannot_be_served_stays_with_a_reason() -> None:
    class Many(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.limited = torch.nn.Embedding(5, 4, max_norm=1.0)
            self.padded = torch.nn.EmbeddingBag(5, 4, padding_idx=1)
            self.largest = torch.nn.EmbeddingBag(5, 4, mode="max")
            self.half = torch.nn.Embedding(5, 4, dtype=torch.bfloat16)
            self.tied, self.out = torch.nn.Embedding(5, 4), torch.nn.Linear(4, 5, bias=False)
            self.out.weight = self.tied.weight
            self.hooked = torch.nn.Embedding(5, 4)
            self.hooked.register_forward_hook(lambda *_: None)
            self.coded = nn.EmbeddingBags([nn.Table("a", 5, 4, "int8")])
            self.plain = torch.nn.Embedding(5, 4, scale_grad_by_freq=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    changed = mods.apply(Many(), tables="e4m3")
    found = {change.site: change for change in mods.changes(changed)}
    reasons = {"limited": "max_norm", "padded": "padding_idx", "largest": "mode 'max'", "half": "its weight is bf",
               "tied": "its weight is shared", "hooked": "it has hooks", "coded": "table 'a' is int8"}  # fmt: skip
    for site, reason in reasons.items():
        assert found[site].after is None
        assert found[site].note.startswith(reason)
    assert found["plain"].after == "ServedEmbedding(e4m3)"
    assert changed.tied.weight is changed.out.weight
    assert type(mods.apply(Many(), tables="e4m3", keep=["plain"]).plain) is torch.nn.Embedding


def test_undo_gives_back_tables_with_the_rounded_rows() -> None:
    model = trained(Click())
    model.again = model.item  # one module in two places
    changed = mods.apply(model, tables="e4m3", fuse=True)
    assert changed.again is changed.item
    back = mods.undo(changed)
    assert str(back) == str(model)
    assert list(back.state_dict()) == list(model.state_dict())
    assert (back.item.padding_idx, back.item.sparse) == (0, True)
    assert torch.equal(back.item.weight, _rounded(model.item.weight, "e4m3"))
    assert back.item.weight.requires_grad
    assert back.again is back.item
    assert torch.allclose(back(*click_inputs()), changed(*click_inputs()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [nn.EmbeddingBags, nn.EmbeddingCollection])
def test_octavos_tables_change_their_format(kind) -> None:
    tables = [nn.Table("a", 9, 5, pooling="mean"), nn.Table("b", 7, 3)]

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables = kind(tables, nn.Adagrad(0.1), seed=3)

        def forward(self, values, offsets):
            return self.tables(values, offsets)

    model = Model().eval()
    changed = mods.apply(model, tables="int8")
    values, offsets = torch.tensor([1, 2, 3, 6]), torch.tensor([0, 2, 4])
    assert type(changed.tables) is kind
    assert [table.dtype for table in changed.tables.tables] == ["int8", "int8"]
    expected = model.tables.to_dtype("int8")(values, offsets)
    found = changed(values, offsets)
    if kind is nn.EmbeddingBags:
        assert torch.equal(found, expected)
    else:
        assert all(torch.equal(found[name], expected[name]) for name in ("a", "b"))
        assert torch.equal(found["b"], _rounded(model.tables.rows.get("b"), "int8")[values[2:]])
    state = torch.get_rng_state()
    back = mods.undo(changed)
    assert torch.equal(state, torch.get_rng_state())
    assert (type(back.tables), back.tables.optimizer, back.tables.seed) == (kind, nn.Adagrad(0.1), 3)
    assert back.tables.tables == tables
    assert torch.equal(back.tables.rows.get("a"), _rounded(model.tables.rows.get("a"), "int8"))
