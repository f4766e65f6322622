"""Probes of two real processes become one: the same on both, what one process would have seen; ranks that disagree."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from octavo import _core, loka

WORLD = 2


def _model(width: int = 20) -> torch.nn.Module:
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(12, width), torch.nn.ReLU(), torch.nn.Linear(width, 3))


def _seen(model: torch.nn.Module, seeds: range, **options: object) -> loka.Probe:
    with loka.Probe(model, every=1, **options) as probe:
        for seed in seeds:
            x = torch.randn(40, 12, generator=torch.Generator().manual_seed(seed)) + 2
            model(x).square().sum(1).mean().backward()
            probe.step()
    return probe


def _rank(rank: int, world: int, path: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{path}/store", rank=rank, world_size=world)
    probe = _seen(_model(), range(3 * rank, 3 * rank + 3))
    merged = probe.merge_ranks()
    found: dict[str, object] = {"state": merged.state_dict(), "own": probe.observed}
    merged.close()
    for name, width, options in (("model", 20 + rank, {}), ("settings", 20, {"tails": rank == 0})):
        try:
            _seen(_model(width), range(1), **options).merge_ranks()
        except ValueError as error:
            found[name] = str(error)
    torch.save(found, f"{path}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    path = tmp_path_factory.mktemp("ranks")
    done = subprocess.run([sys.executable, __file__, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [torch.load(path / f"{rank}.pt") for rank in range(WORLD)]


def test_ranks_hold_together_what_one_would_have_seen(ranks) -> None:
    one = _seen(_model(), range(6))
    a, b = (rank["state"] for rank in ranks)
    assert a.keys() == b.keys() == one.state_dict().keys()
    for name, tensor in one.state_dict().items():
        assert torch.equal(a[name], b[name]), name
        if name == "steps":
            assert a[name].tolist() == [3, 6]
        elif "tail_counts" in name:  # one of them, of what is beyond the last batch's scale, depends on the order
            assert int((a[name] != tensor).sum()) <= 1, name
        elif tensor.is_floating_point():  # products within a batch are FP32; below a scatter's diagonal is nothing
            x, y = (v.triu() if name.endswith("scatter") else v for v in (a[name], tensor))
            if name.endswith("tail_sums"):
                x, y = x[: _core.TailSum.last_amax], y[: _core.TailSum.last_amax]  # what follows is no sum
            torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6 * float(y.norm()))
        else:
            assert torch.equal(a[name], tensor), name
    assert [rank["own"] for rank in ranks] == [3, 3]


def test_ranks_that_disagree_hear_it_on_every_rank(ranks) -> None:
    for rank in ranks:
        assert rank["model"].startswith("merge_ranks: rank 1 watches another model than rank 0")
        assert "rank 1 keeps other statistics than rank 0 (0/gradient/row_amax" in rank["settings"]


def test_without_a_process_group_it_says_so() -> None:
    with pytest.raises(RuntimeError, match="merge_ranks: there is no process group"):
        _seen(_model(), range(1)).merge_ranks()


if __name__ == "__main__":
    Path(sys.argv[1]).mkdir(exist_ok=True)
    mp.start_processes(_rank, (WORLD, sys.argv[1]), WORLD, start_method="fork")
