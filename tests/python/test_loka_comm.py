"""Compressed gradients: what arrives, the same on all ranks, what is sent, what rounding lost; bad input."""

import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from octavo import loka

WIDTHS = (33, 257, 129, 5)
STEPS = 4


def _model() -> torch.nn.Module:
    torch.manual_seed(3)
    layers = [torch.nn.Linear(k, n) for k, n in pairwise(WIDTHS)]
    return torch.nn.Sequential(*layers)


def _inputs(rank: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(100 * step + rank)
    return torch.randn(16, WIDTHS[0], generator=generator), torch.randn(16, WIDTHS[-1], generator=generator)


def _gradients(model: torch.nn.Module, rank: int, step: int) -> torch.Tensor:
    """Of one rank alone, flat."""
    model.zero_grad()
    x, goal = _inputs(rank, step)
    (model(x) - goal).square().mean().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def _train(rank: int, state: loka.comm.Compressed, hook: object, poisoned: bool = False) -> dict:
    ddp = DistributedDataParallel(_model(), bucket_cap_mb=0.1)
    ddp.register_comm_hook(state, hook)
    reduced = []
    for step in range(STEPS):
        ddp.zero_grad()
        x, goal = _inputs(rank, step)
        if poisoned and step == 1 and rank == 1:
            x[0, 0] = math.inf
        (ddp(x) - goal).square().mean().backward()
        reduced.append(torch.cat([p.grad.flatten() for p in ddp.parameters()]))
    errors = torch.cat([state.errors[p].flatten() for p in ddp.module.parameters()])
    return {"reduced": torch.stack(reduced), "errors": errors, "bytes": state.bytes_sent, "ratio": state.ratio}


def _rank(rank: int, world: int, path: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{path}/store", rank=rank, world_size=world)
    found = {}
    for name, format in (("e4m3", "e4m3"), ("again", "e4m3"), ("int8", "int8"), ("nan", "e4m3")):
        if world == 2 or name == "e4m3":
            found[name] = _train(rank, *loka.comm.compressed(format), poisoned=name == "nan")
    if world == 2:
        for name, arguments in (("format", {"format": ("e4m3", "int8")[rank]}), ("block", {"block": (128, 64)[rank]})):
            try:
                _train(rank, *loka.comm.compressed(**arguments))
            except ValueError as error:
                found[name] = str(error)
    torch.save(found, f"{path}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks_of(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict]]:
    """What each rank found, by number of ranks. One process imports everything and forks them all: that is quick."""
    path = tmp_path_factory.mktemp("ranks")
    done = subprocess.run([sys.executable, __file__, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {world: [torch.load(path / str(world) / f"{rank}.pt") for rank in range(world)] for world in (2, 4)}


def _means(world: int) -> torch.Tensor:
    """[STEPS, parameters]: the exact mean gradients."""
    model = _model()
    return torch.stack([sum(_gradients(model, r, step) for r in range(world)) / world for step in range(STEPS)])


@pytest.mark.parametrize(("world", "case", "error"), [(2, "e4m3", 0.06), (2, "int8", 0.02), (4, "e4m3", 0.06)])
def test_ranks_get_the_same_mean(ranks_of, world, case, error) -> None:
    ranks = [rank[case] for rank in ranks_of[world]]
    exact, found = _means(world), ranks[0]["reduced"]
    assert all(torch.equal(found, rank["reduced"]) for rank in ranks)
    relative = (found - exact).abs().sum(1) / exact.abs().sum(1)
    assert 0 < relative.min() <= relative.max() < error


@pytest.mark.parametrize(("world", "case"), [(2, "e4m3"), (2, "int8"), (4, "e4m3")])
def test_what_rounding_lost_is_kept(ranks_of, world, case) -> None:
    """What arrived and what is still owed are the exact gradients, whatever the steps and buckets were."""
    ranks = [rank[case] for rank in ranks_of[world]]
    exact = _means(world).sum(0)
    owed = sum(rank["errors"] for rank in ranks) / world
    assert torch.allclose(ranks[0]["reduced"].sum(0) + owed, exact, rtol=0, atol=2e-6 * float(exact.abs().max()))
    assert owed.abs().sum() > 0


def test_eight_bits_send_a_quarter_of_the_bytes(ranks_of) -> None:
    parameters = sum(k * n + n for k, n in pairwise(WIDTHS))
    for world, ranks in ranks_of.items():
        for rank in ranks:
            one = rank["e4m3"]
            assert one["ratio"] == one["bytes"] / (STEPS * 2 * (world - 1) / world * 4 * parameters)
            assert 0.25 + 1 / 128 <= one["ratio"] <= 0.27


def test_it_is_deterministic(ranks_of) -> None:
    for rank in ranks_of[2]:
        assert torch.equal(rank["e4m3"]["reduced"], rank["again"]["reduced"])
        assert torch.equal(rank["e4m3"]["errors"], rank["again"]["errors"])


def test_infinities_arrive_everywhere_and_do_not_stay(ranks_of) -> None:
    first, second = (rank["nan"]["reduced"] for rank in ranks_of[2])
    assert torch.equal(first.isnan(), second.isnan())
    assert first[1].isnan().any()
    assert first[[0, 2, 3]].isfinite().all()
    assert torch.equal(first[3], second[3])


def test_ranks_that_disagree_all_say_so(ranks_of) -> None:
    for rank in ranks_of[2]:
        assert "ranks disagree: format is e4m3 on rank 0 and int8 on rank 1" in rank["format"]
        assert "ranks disagree: block is 128 on rank 0 and 64 on rank 1" in rank["block"]


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="format: found 'fp8'; expected one of 'e4m3', 'int8'"):
        loka.comm.compressed("fp8")
    with pytest.raises(ValueError, match="block: expected a positive number of gradients, found 0"):
        loka.comm.compressed(block=0)


if __name__ == "__main__":
    import torch._dynamo  # DDP wants it: once, before the fork

    for world in (2, 4):
        path = Path(sys.argv[1], str(world))
        path.mkdir()
        mp.start_processes(_rank, (world, str(path)), world, start_method="fork")
