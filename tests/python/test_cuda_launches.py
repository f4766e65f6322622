"""On a device: kernels that start early give the same bits, kept parameters are right for what memory holds."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch

from octavo import _core, nn, ops
from octavo.ops import kernels
from octavo.ops.dispatch import early_launches
from octavo.ops.linear_call import run
from octavo.ops.packing import pack_as

CLASSES = ("bf16", "e4m3_row", "e4m3_row_fast", "e4m3_block")
WIDTHS = (256, 128, 520, 264, 1000, 256)  # fused norms, norms in steps, rows that are not aligned
ROUNDS, INPUTS = 200, 8


def test_the_setting_ends_with_its_block_and_says_what_was_before() -> None:
    assert _core.start_launches_early(False) is False
    with early_launches():
        assert _core.start_launches_early(True) is True
        with early_launches(False):
            assert _core.start_launches_early(False) is False
        assert _core.start_launches_early(True) is True
    assert _core.start_launches_early(False) is False
    with pytest.raises(KeyError), early_launches():
        raise KeyError
    assert _core.start_launches_early(False) is False


@pytest.fixture(scope="module")
def _qualified() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        ops.dispatch.qualify()


def chain(numerics: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """Five layers of one class, each kernel called by name."""
    kernel = kernels.by_name(f"cuda.sm90.linear.{numerics}")
    if not kernel.supported:
        pytest.skip(f"{kernel.name} does not run on this device")
    generator = torch.Generator().manual_seed(1)
    layers = []
    for at, (k, n) in enumerate(pairwise(WIDTHS)):
        weight = torch.randn(n, k, generator=generator).cuda() / k**0.5
        ones = torch.ones(n).cuda()
        norm = (None, ops.Norm("layer", ones, None), ops.Norm("rms", ones, None))[at % 3]
        layers.append((pack_as(weight, numerics), torch.randn(n, generator=generator).cuda(), norm))

    def call(x: torch.Tensor) -> torch.Tensor:
        for weight, bias, norm in layers:
            x = run(x, weight, bias, norm, "silu", out_dtype=torch.bfloat16, kernel=kernel)
        return x

    return call


def inputs(rows: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(rows, WIDTHS[0], generator=generator).bfloat16().cuda() for _ in range(INPUTS)]


@pytest.mark.gpu
@pytest.mark.usefixtures("_qualified")
@pytest.mark.parametrize("rows", [1, 16, 300])
@pytest.mark.parametrize("numerics", CLASSES)
@torch.no_grad()
def test_kernels_that_start_early_give_the_same_bits(numerics: str, rows: int) -> None:
    call, xs = chain(numerics), inputs(rows)
    expected = [call(x) for x in xs]
    wrong = torch.zeros((), dtype=torch.int64, device="cuda")
    with early_launches():
        for at in range(ROUNDS):  # nothing waits for the device between them
            wrong += (call(xs[at % INPUTS]) != expected[at % INPUTS]).any()
    assert wrong.item() == 0


@pytest.mark.gpu
@pytest.mark.usefixtures("_qualified")
@pytest.mark.parametrize("rows", [1, 16, 300])
@pytest.mark.parametrize("numerics", CLASSES)
@torch.no_grad()
def test_and_in_a_graph(numerics: str, rows: int) -> None:
    call, xs = chain(numerics), inputs(rows)
    expected = [call(x) for x in xs]
    x, graph = xs[0].clone(), torch.cuda.CUDAGraph()
    with early_launches():
        call(x)
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            y = call(call(x)[:, : WIDTHS[0]].mul(0) + x)  # a kernel of torch's between octavo's
    wrong = torch.zeros((), dtype=torch.int64, device="cuda")
    for at in range(ROUNDS):
        x.copy_(xs[at % INPUTS])
        graph.replay()
        wrong += (y != expected[at % INPUTS]).any()
    assert wrong.item() == 0


@pytest.mark.gpu
@pytest.mark.usefixtures("_qualified")
@torch.no_grad()
def test_rows_of_tables_are_trained_alike() -> None:
    """A backward's chain: memsets, copies of tables, keys, CUB's sort, runs, segments, updates."""
    generator = torch.Generator().manual_seed(3)
    indices = torch.randint(0, 50, (4096,), generator=generator).cuda()  # runs of more than one segment's lookups, too
    indices[:2000] = 7
    offsets = torch.arange(0, 4097, 8).cuda()
    grad = torch.randn(512, 64, generator=generator).cuda()

    def trained() -> torch.Tensor:
        torch.manual_seed(4)
        bags = nn.EmbeddingBags([nn.Table("t", 50, 64)], nn.Adagrad(0.1)).cuda()
        for _ in range(20):
            with torch.enable_grad():
                bags(indices, offsets).backward(grad)
        return bags(indices, offsets).clone()

    expected = trained()
    with early_launches():
        assert torch.equal(trained(), expected)


@pytest.mark.gpu
@pytest.mark.usefixtures("_qualified")
@torch.no_grad()
def test_kept_parameters_are_right_for_what_memory_holds_now() -> None:
    call, xs = chain("bf16"), inputs(16)
    expected = [call(x) for x in xs]
    x = xs[0].clone()
    for at in range(ROUNDS):  # the same addresses again and again
        x.copy_(xs[at % INPUTS])
        assert torch.equal(call(x), expected[at % INPUTS])
