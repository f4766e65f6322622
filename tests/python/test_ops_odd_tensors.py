"""Tensors whose numbers are not, or not only, what lies at their address: an error or the right result, no other."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad

from octavo import nn, ops
from octavo.loka.statistics import Statistics
from octavo.ops.embedding import TableSet

_TABLE = torch.arange(12.0).reshape(4, 3)


def _linear(x: torch.Tensor) -> torch.Tensor:
    w = ops.pack_weight(torch.eye(8, x.shape[-1]))
    ops.linear(torch.ones_like(_real(x)), w)  # from now on a compiled call serves it
    return ops.linear(x, w)


def _prepared(x: torch.Tensor) -> torch.Tensor:
    prepared = ops.prepare_linear(ops.pack_weight(torch.eye(8, x.shape[-1])), rows=(4,))
    return prepared(x)


def _real(x: torch.Tensor) -> torch.Tensor:
    return torch.ones(x.shape)


_OPS = {
    "linear": _linear,
    "prepared": _prepared,
    "grouped": lambda x: ops.grouped_linear([x], [ops.pack_weight(torch.eye(8, x.shape[-1]))])[0],
    "quantize": lambda x: ops.quantize(x).dequantize(),
    "quantize_out": lambda x: ops.quantize(x, out=ops.quantize(_real(x))).dequantize(),
    "pairwise_dots": lambda x: ops.pairwise_dots(x.unsqueeze(0)),
    "statistics": lambda x: Statistics(x.shape[-1]).observe(x),
    "bag_weights": lambda x: ops.embedding_bags(
        [_TABLE], torch.zeros(x.shape[0], dtype=torch.int64), torch.tensor([0, x.shape[0]]), x[:, 0].contiguous()
    ),
}


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize("op", [name for name in _OPS if name != "bag_weights"])
def test_a_fake_tensor_outside_a_graph_is_an_error(op) -> None:
    with FakeTensorMode():
        fake = torch.empty(4, 16)
    with pytest.raises((ValueError, TypeError), match="FakeTensor|cannot be traced"):
        _OPS[op](fake)


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
def test_fake_lookups_are_an_error() -> None:
    with FakeTensorMode():
        values, offsets = torch.zeros(2, dtype=torch.int64), torch.tensor([0, 2])
    with pytest.raises(ValueError, match="values: has no memory"):
        ops.embedding_bags([_TABLE], values, offsets)


@pytest.mark.parametrize("op", [name for name in _OPS if name != "statistics"])
def test_a_tangent_is_not_dropped_silently(op) -> None:
    x = torch.ones(4, 16)
    with forward_ad.dual_level():
        _OPS[op](x)
        with pytest.raises(NotImplementedError, match="tangent"):
            _OPS[op](forward_ad.make_dual(x, x))


def test_gradients_ahead_of_time_too() -> None:
    weight = torch.eye(8, 16).requires_grad_()
    w = ops.pack_weight(weight)
    x = torch.ones(4, 16)
    with forward_ad.dual_level(), pytest.raises((NotImplementedError, RuntimeError), match="(?i)jvp|forward"):
        ops.linear(forward_ad.make_dual(x, x), w)


@pytest.mark.parametrize("op", ["linear", "prepared", "grouped", "quantize", "pairwise_dots"])
@pytest.mark.parametrize("k", [1, 5])
def test_imaginary_parts_of_conjugates_are_negated(op, k) -> None:
    z = torch.complex(torch.randn(4, k), torch.ones(4, k) + torch.arange(4)[:, None])
    x = z.conj().imag
    assert x.is_neg()
    torch.testing.assert_close(_OPS[op](x), _OPS[op](x.resolve_neg()), rtol=0, atol=0)


def test_vectors_of_one_number_may_be_negated() -> None:
    x, w = torch.ones(3, 4), ops.pack_weight(torch.zeros(1, 4))
    bias = torch.complex(torch.zeros(1), torch.ones(1)).conj().imag
    for _ in range(2):
        torch.testing.assert_close(ops.linear(x, w, bias), torch.full((3, 1), -1.0))
        torch.testing.assert_close(ops.linear(x, w, bias.resolve_neg().neg()), torch.full((3, 1), 1.0))


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
def test_a_fake_optional_argument_is_not_taken_for_none() -> None:
    with FakeTensorMode():
        vector, matrix, scale = torch.empty(8), torch.empty(4, 8), torch.empty(4)
    w, x = ops.pack_weight(torch.eye(8, 16)), torch.ones(4, 16)
    lookups = torch.zeros(8, dtype=torch.int64), torch.tensor([0, 8])
    codes = ops.quantize(_TABLE).data
    for call in (
        lambda: ops.linear(x, w, vector), lambda: ops.linear(x, w, norm=ops.Norm("layer", vector)),
        lambda: ops.linear(x, w, residual=matrix), lambda: ops.embedding_bags([_TABLE], *lookups, vector),
        lambda: ops.embedding_bags([codes], *lookups, scales=[scale]),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="has no memory"):
            call()


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
def test_real_tensors_inside_a_fake_mode_are_an_error() -> None:
    w, x = ops.pack_weight(torch.eye(8, 16)), torch.ones(4, 16)
    tables = TableSet([_TABLE])
    lookups = torch.zeros(2, dtype=torch.int64), torch.tensor([0, 2])
    for call in (lambda: ops.linear(x, w), lambda: ops.embedding_bags(tables, *lookups)):
        call()
        call()
        with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(ValueError, match="out: has no memory"):
            call()


def test_negated_tensors_of_bags() -> None:
    lookups = torch.tensor([1]), torch.tensor([0, 1])
    minus = torch.complex(torch.zeros(1), torch.ones(1)).conj().imag
    assert torch.equal(ops.embedding_bags([_TABLE], *lookups, minus), -_TABLE[1:2])
    with pytest.raises(ValueError, match="negated view"):
        ops.embedding_bags([torch._neg_view(_TABLE)], *lookups)
    with pytest.raises(ValueError, match="negated view"):
        ops.embedding_bags([_TABLE], *lookups, out=torch._neg_view(torch.empty(1, 3)))
    bags = nn.EmbeddingBags([nn.Table("t", 4, 1)], optimizer=nn.SGD(lr=1.0))
    before = bags.rows.get("t").clone()
    y = bags(*lookups)
    (torch.complex(0 * y, y).conj() * 1j).real.sum().backward()  # y.sum(), whose gradient comes negated
    assert torch.equal(bags.rows.get("t")[1], before[1] - 1)


def test_tensors_whose_memory_was_given_back() -> None:
    """As FSDP and offloading do it."""
    x, vector = torch.randn(2, 3, 4), torch.rand(4)
    for _ in range(2):
        ops.pairwise_dots(x)
        ops.add_norm([x], None, ops.Norm("rms", vector))
    vector.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="norm.weight: has no memory"):
        ops.add_norm([x], None, ops.Norm("rms", vector))
    x.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="x: has no memory"):
        ops.pairwise_dots(x)
    with pytest.raises(ValueError, match="parts: has no memory"):
        ops.add_norm([x])


def test_weights_of_bags_whose_memory_was_given_back() -> None:
    bags, weights = nn.EmbeddingBags([nn.Table("t", rows=10, dim=4)]).eval(), torch.rand(3)
    values, offsets = torch.tensor([1, 5, 2]), torch.tensor([0, 2, 3])
    for _ in range(2):
        bags(values, offsets, weights)
    weights.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="weights: has no memory"):
        bags(values, offsets, weights)


def test_no_samples_in_strides() -> None:
    x = torch.randn(0, 10, 10)[:, ::2, ::2]
    assert ops.pairwise_dots(x).shape == (0, 5, 5)
    assert ops.add_norm([x]).shape == (0, 5, 5)


@pytest.mark.parametrize("pairs", ["all\0", "some", None])
def test_pairs_that_there_are_not(pairs: object) -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="pairs: found"):
            ops.pairwise_dots(torch.randn(2, 3, 4), pairs=pairs)
