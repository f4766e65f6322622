"""Tensors to write to: memory that is shared, memory that gradients are wanted of."""

import pytest
import torch

from octavo import ops
from octavo.ops.output_checks import is_apart
from octavo.ops.packing import pack_as

N, K = 64, 32
OVERLAPPING = [
    lambda m: torch.zeros(1, N).expand(m, N),
    lambda m: torch.zeros(m * N).as_strided((m, N), (8, 1)),
    lambda m: torch.zeros(m + N).as_strided((m, N), (1, 1)),
]


@pytest.mark.parametrize(
    ("shape", "strides", "apart"),
    [
        ((4, 3), (3, 1), True), ((4, 3), (5, 1), True), ((4, 3), (2, 1), False), ((4, 3), (0, 1), False),
        ((1, 3), (0, 1), True), ((4, 1), (0, 1), False), ((4, 1), (1, 9), True), ((0, 3), (0, 0), True),
        ((3, 4), (1, 3), True), ((2, 3, 4), (4, 8, 1), True), ((2, 3, 4), (4, 4, 1), False), ((), (), True),
    ],
)  # fmt: skip
def test_elements_that_share_memory(shape, strides, apart) -> None:
    assert is_apart(torch.zeros(64).as_strided(shape, strides)) is apart


@pytest.mark.parametrize("make", OVERLAPPING)
def test_linear_refuses_rows_that_overlap(make) -> None:
    x, w = torch.randn(40, K), pack_as(torch.randn(N, K), "int8_dynamic")
    prepared = ops.prepare_linear(w, rows=(40,))
    ops.linear(x, w)
    for call in (lambda out: ops.linear(x, w, out=out), lambda out: prepared(x, out)):
        out = make(40)
        with pytest.raises(ValueError, match=r"out: its elements overlap in memory, strides .*; pass"):
            call(out)
        assert bool((out == 0).all())


def test_linear_refuses_a_vector_with_gaps() -> None:
    x, w = torch.randn(K), pack_as(torch.randn(N, K), "bf16")
    memory = torch.zeros(2 * N)
    with pytest.raises(ValueError, match="out: rows must be contiguous"):
        ops.linear(x, w, out=memory[::2])
    assert bool((memory == 0).all())


def test_an_output_that_requires_gradients_is_refused_where_they_are_recorded() -> None:
    x, w = torch.randn(3, K), pack_as(torch.randn(N, K), "bf16")
    prepared = ops.prepare_linear(w, rows=(3,))
    ops.linear(x, w)
    features = torch.randn(3, 8, 5)
    values, offsets = torch.tensor([1, 2, 0]), torch.arange(4)
    for call, shape in (
        (lambda out: ops.linear(x, w, out=out), (3, N)),
        (lambda out: prepared(x, out), (3, N)),
        (lambda out: ops.pairwise_dots(features, out=out), (3, 8, 8)),
        (lambda out: ops.embedding_bags([x], values, offsets, out=out), (3, K)),
    ):
        leaf = torch.zeros(shape, requires_grad=True)
        with pytest.raises(ValueError, match=r"out: requires gradients, .* pass out.detach\(\)"):
            call(leaf)
        assert bool((leaf == 0).all())
        with torch.no_grad():
            call(leaf)
        assert bool((leaf != 0).any())


def test_pairwise_dots_refuses_samples_and_rows_that_overlap() -> None:
    x = torch.randn(3, 4, 5)
    for out in (torch.zeros(1, 4, 4).expand(3, 4, 4), torch.zeros(3, 1, 4).expand(3, 4, 4)):
        with pytest.raises(ValueError, match="out: its elements overlap in memory"):
            ops.pairwise_dots(x, out=out)
        assert bool((out == 0).all())
    with pytest.raises(ValueError, match="out: its elements overlap in memory"):
        ops.pairwise_dots(x, pairs="lower", out=torch.zeros(1, 6).expand(3, 6))


def test_one_output_for_two_groups_is_refused() -> None:
    w = pack_as(torch.randn(N, K), "bf16")
    group = ops.prepare_grouped([ops.prepare_linear(w, rows=(8,)) for _ in range(3)])
    xs, out = [torch.randn(8, K) for _ in range(3)], torch.zeros(8, N)
    for outs in ([None, out, out], [out, None, out[:]]):
        with pytest.raises(ValueError, match=r"outs: groups \d and 2 got the same memory"):
            group(xs, outs)
        assert bool((out == 0).all())
    side_by_side = torch.zeros(8, 3 * N).split(N, 1)
    assert all(torch.equal(y, e) for y, e in zip(group(xs, side_by_side), group(xs), strict=True))
