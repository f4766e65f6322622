"""Differences between checkpoints, and dynamic tables in them: ids come and go, and nothing of a row is left behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("safetensors")

from octavo import nn
from octavo.ops import Jagged
from octavo.training.checkpoint import (
    Checkpoint,
    CheckpointError,
    TableState,
    chain_length,
    list_checkpoints,
    write_checkpoint,
)
from octavo.training.state import TableTracker, dense_state, table_states

DTYPES = ["fp32", "fp16", "bf16", "e4m3", "int8", "int4"]


class Net(torch.nn.Module):
    """A fixed and a dynamic table."""

    def __init__(
        self, rows: int = 12, dtype: str = "fp32", optimizer: Any = None, dim: int = 6, **dynamic: Any
    ) -> None:
        super().__init__()
        tables = [
            nn.Table("fixed", 30, dim, dtype=dtype),
            nn.Table("ids", rows, dim, dtype=dtype, dynamic=nn.Dynamic(**dynamic)),
        ]
        self.bags = nn.EmbeddingBags(tables, optimizer or nn.Adagrad(0.1), seed=3)
        self.bags.reset_parameters(0.2, torch.Generator().manual_seed(1))

    def step(self, seed: int, spread: int = 20) -> None:
        """One update from a few ids around ``seed``, so that old ones are forgotten and new ones come."""
        generator = torch.Generator().manual_seed(seed)
        fixed = torch.randint(0, 30, (5,), generator=generator)
        ids = (torch.randint(0, spread, (9,), generator=generator) + 2 * seed) * 1_000_000_007 - 2**60
        values, offsets = torch.cat([fixed, ids]), torch.tensor([0, 2, 5, 9, 14])
        out = self.bags(Jagged(values, offsets))
        (out - torch.randn(out.shape, generator=generator)).square().sum().backward()


def save(net: Net, tracker: TableTracker, root: Path, step: int, keep: int = 100) -> Path:
    groups = {"dense": dense_state(net)}
    path = write_checkpoint(root, step, {}, groups, table_states(net), keep, range_bytes=100, base=tracker.base())
    tracker.saved(path)
    return path


def load(path: Path, net: Net) -> Net:
    checkpoint = Checkpoint(path)
    for name, table in table_states(net).items():
        checkpoint.read_table(name, table)
    for name, tensor in dense_state(net).items():
        tensor.copy_(checkpoint.group("dense")[name])
    return net


def content(net: Net) -> dict[str, Any]:
    """All that a table holds: of the dynamic one by id."""
    bags = net.bags
    entries = bags.dynamic["ids"].entries()
    places = torch.cat([torch.zeros(1, dtype=torch.int64), entries["places"]])
    found: dict[str, Any] = {key: entries[key].tolist() for key in ("ids", "last_seen", "scores")}
    found |= {"settings": bags.dynamic["ids"].settings(), "sightings": bags.dynamic["ids"].sightings().tolist()}
    for kind in ("rows", "state", "scale"):
        tensors = bags.state_dict()
        if f"{kind}.ids" in tensors:
            for table, chosen in (("ids", places), ("fixed", torch.arange(30))):
                tensor = tensors[f"{kind}.{table}"]
                tensor = tensor.view(torch.uint8) if tensor.element_size() == 1 else tensor
                found[f"{kind}.{table}"] = tensor[chosen].tolist()
    return found


def by_id(net: Net) -> dict[int, Any]:
    """The dynamic table, id -> everything of it, wherever its row is."""
    found = content(net)
    columns = [found[key] for key in ("last_seen", "scores")]
    columns += [found[f"{kind}.ids"][1:] for kind in ("rows", "state", "scale") if f"{kind}.ids" in found]
    return dict(zip(found["ids"], zip(*columns, strict=True), strict=True))


@pytest.mark.parametrize("optimizer", [nn.SGD(0.1), nn.Adam(0.05), nn.RowWiseAdagrad(0.1)], ids=lambda o: o.kind)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path, dtype: str, optimizer: Any) -> None:
    """Ids come and go between base and differences, with training between."""
    net = Net(dtype=dtype, optimizer=optimizer, admit_after=2)
    tracker = TableTracker(net, 4)
    paths = []
    for step in range(1, 16):
        net.step(step)
        if step == 7:
            net.bags.dynamic["ids"].erase(net.bags.dynamic["ids"].entries()["ids"][:3])
        if step % 2 == 0:
            paths.append(save(net, tracker, tmp_path, step))
    assert [chain_length(path) for path in paths] == [0, 1, 2, 3, 0, 1, 2]
    assert net.bags.dynamic["ids"].map.removed > 10
    for path, first in zip(paths, range(3, 17, 2), strict=True):
        resumed = load(path, Net(dtype=dtype, optimizer=optimizer, admit_after=2))
        for step in range(first, 16):
            resumed.step(step)
            if step == 7:
                resumed.bags.dynamic["ids"].erase(resumed.bags.dynamic["ids"].entries()["ids"][:3])
        assert content(resumed) == content(net), path


actions = st.lists(st.sampled_from(["step", "step", "save", "erase", "evict", "resume"]), min_size=2, max_size=24)


@settings(max_examples=40, deadline=None)
@given(actions, st.integers(2, 5), st.integers(1, 30))
def test_any_history_is_restored(tmp_path_factory: Any, actions: list[str], full_every: int, rows: int) -> None:
    root = tmp_path_factory.mktemp("any")
    net = Net(rows, dtype="int8", max_age=3)
    tracker = TableTracker(net, full_every)
    last = None
    for step, action in enumerate(actions, 1):
        dynamic = net.bags.dynamic["ids"]
        if action == "step":
            net.step(step)
        elif action == "erase":
            dynamic.erase(dynamic.entries()["ids"][::2])
        elif action == "evict":
            dynamic.evict(dynamic.clock)
        elif action == "save" or last is None:
            last = save(net, tracker, root, step, keep=1)
            assert content(load(last, Net(rows, dtype="int8", max_age=3))) == content(net)
        else:
            net = load(last, Net(rows, dtype="int8", max_age=3))
            tracker = TableTracker(net, full_every)
            tracker.saved(last)
    assert len(list_checkpoints(root)) <= full_every
    shutil.rmtree(root)


def test_only_touched_rows_are_written(tmp_path: Path) -> None:
    net = Net()
    tracker = TableTracker(net, 9)
    net.step(1)
    save(net, tracker, tmp_path, 1)
    net.bags(Jagged(torch.tensor([7, 7, -5]), torch.tensor([0, 2, 3]))).sum().backward()
    gone = net.bags.dynamic["ids"].entries()["ids"][:2]
    net.bags.dynamic["ids"].erase(gone)
    path = save(net, tracker, tmp_path, 2)
    checkpoint = Checkpoint(path)
    assert checkpoint.base is not None
    assert checkpoint.base.step == 1
    written = [file.name for file in sorted(path.glob("table-*rows*"))]
    place = int(net.bags.dynamic["ids"].find(torch.tensor([-5])))
    assert written == [
        "table-000.rows-4-8.safetensors",
        f"table-001.rows-{place // 4 * 4}-{min(place // 4 * 4 + 4, 13)}.safetensors",
    ]
    assert checkpoint.erased_ids("bags.ids").tolist() == sorted(gone.tolist())
    assert checkpoint.erased_ids("bags.fixed").tolist() == checkpoint.base.erased_ids("bags.ids").tolist() == []
    assert content(load(path, Net())) == content(net)


def test_rows_are_read_by_range(tmp_path: Path) -> None:
    net = Net(40)
    tracker = TableTracker(net, 9)
    for step in range(1, 7):
        net.step(step)
        path = save(net, tracker, tmp_path, step)
    checkpoint = Checkpoint(path)
    state = table_states(net)
    for world in (1, 2, 3, 7, 50):
        for name in ("bags.fixed", "bags.ids"):
            count = state[name].rows.shape[0]
            cuts = [count * i // world for i in range(world + 1)]
            parts = [checkpoint.read_rows(name, a, b) for a, b in pairwise(cuts)]
            places = torch.cat([part.places for part in parts])
            dynamic = state[name].dynamic
            if dynamic is None:
                assert places.tolist() == list(range(30))
            else:
                entries = dynamic.entries()
                assert places.tolist() == [0, *entries["places"].tolist()]
                for key in ("ids", "last_seen", "scores"):
                    assert torch.cat([getattr(part, key) for part in parts])[1:].tolist() == entries[key].tolist()
            assert torch.equal(torch.cat([part.rows for part in parts]), state[name].rows[places])
            found = torch.cat([part.slots["state"] for part in parts])
            assert torch.equal(found, state[name].slots["state"][places])
    assert checkpoint.read_rows("bags.fixed", 29, 500).places.tolist() == [29]
    assert checkpoint.read_rows("bags.fixed", 8, 8).rows.shape == (0, 6)
    assert checkpoint.read_rows("bags.fixed", 50, 60).rows.shape == (0, 6)
    with pytest.raises(CheckpointError, match="has no table 'x'"):
        checkpoint.read_rows("x", 0, 1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_another_number_of_rows_holds_the_same_ids(tmp_path: Path, dtype: str) -> None:
    net = Net(40, dtype)
    tracker = TableTracker(net, 3)
    for step in range(1, 9):
        net.step(step, spread=6)
        if step == 4:
            dynamic = net.bags.dynamic["ids"]
            dynamic.erase(dynamic.entries()["ids"][:10])
        if step % 2 == 0:
            path = save(net, tracker, tmp_path, step)
    live = len(net.bags.dynamic["ids"])
    for rows in (live, live + 1, 39, 41, 500):
        other = Net(rows, dtype)
        other.step(77)  # what it was before does not matter
        load(path, other)
        assert by_id(other) == by_id(net)
        assert content(other)["rows.ids"][0] == content(net)["rows.ids"][0]
    wider = load(path, Net(500, dtype))
    for step in (9, 10):
        wider.step(step)
        net.step(step)
    if net.bags.dynamic["ids"].map.removed == 10:  # while nothing had to make room, they go on alike
        assert by_id(wider) == by_id(net)
    with pytest.raises(CheckpointError, match=rf"holds {live} ids, the model's has room for {live - 1}"):
        load(path, Net(live - 1, dtype))


def test_another_kind_of_table_is_refused(tmp_path: Path) -> None:
    net = Net()
    checkpoint = Checkpoint(save(net, TableTracker(net, 1), tmp_path, 1))
    state = table_states(net)
    with pytest.raises(CheckpointError, match="is dynamic, the model's is fixed"):
        checkpoint.read_table("bags.ids", state["bags.fixed"])
    with pytest.raises(CheckpointError, match="is fixed, the model's is dynamic"):
        checkpoint.read_table("bags.fixed", state["bags.ids"])
    with pytest.raises(CheckpointError, match=r"is \[13, 6\] with slots \['state'\], the model's is \[13, 5\]"):
        checkpoint.read_table("bags.ids", table_states(Net(dim=5))["bags.ids"])
    other = table_states(Net(dtype="int8"))["bags.ids"]
    with pytest.raises(CheckpointError, match="slots"):
        checkpoint.read_table("bags.ids", other)


def test_bases_stay_while_a_kept_difference_needs_them(tmp_path: Path) -> None:
    net = Net()
    tracker = TableTracker(net, 4)
    names = []
    for step in range(1, 10):
        net.step(step)
        save(net, tracker, tmp_path, step, keep=2)
        names.append([int(path.name[5:]) for path in list_checkpoints(tmp_path)])
    assert names == [
        [1],
        [1, 2],
        [1, 2, 3],
        [1, 2, 3, 4],
        [1, 2, 3, 4, 5],
        [5, 6],
        [5, 6, 7],
        [5, 6, 7, 8],
        [5, 6, 7, 8, 9],
    ]
    assert content(load(tmp_path / "step-00000009", Net())) == content(net)


def chain(root: Path) -> tuple[Net, TableTracker]:
    net = Net()
    tracker = TableTracker(net, 9)
    for step in (1, 2, 3):
        net.step(step)
        save(net, tracker, root, step)
    return net, tracker


def test_the_chain_is_verified(tmp_path: Path) -> None:
    chain(tmp_path)
    newest, base = tmp_path / "step-00000003", tmp_path / "step-00000001"
    file = next(base.glob("table-001.rows*"))
    good = file.read_bytes()
    file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"step-00000001.*damaged: sha256"):
        Checkpoint(newest)
    file.write_bytes(good)
    Checkpoint(newest)
    base.rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"step-00000002: is a difference to .*step-00000001, which is missing"):
        Checkpoint(newest)
    other = tmp_path / "other"
    save(Net(), TableTracker(Net(), 1), other, 1)
    (other / "step-00000001").rename(base)
    with pytest.raises(CheckpointError, match="is a difference to another step-00000001"):
        Checkpoint(newest)


def test_what_cannot_be_a_base_is_refused(tmp_path: Path) -> None:
    net, _ = chain(tmp_path)
    states = table_states(net)
    for base, step, words in [
        (tmp_path / "step-00000009", 10, "is no checkpoint in"),
        (tmp_path.parent / "step-00000001", 10, "is no checkpoint in"),
        (tmp_path / "step-00000002", 2, "is of format 2, step 2; a difference at step 2 needs an earlier"),
    ]:
        with pytest.raises(CheckpointError, match=words):
            write_checkpoint(tmp_path, step, {}, {}, states, 9, base=base)
    assert not list(tmp_path.glob(".*"))


def test_a_replaced_checkpoint_takes_its_differences_with_it(tmp_path: Path) -> None:
    net, _ = chain(tmp_path)
    write_checkpoint(tmp_path, 2, {}, {}, table_states(net), 9)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000001", "step-00000002"]
    assert Checkpoint(tmp_path / "step-00000002").base is None


def test_a_table_that_nobody_watched_is_written_whole(tmp_path: Path) -> None:
    rows = torch.arange(12.0).view(6, 2)
    first = write_checkpoint(tmp_path, 1, {}, {}, {"a": TableState(rows)}, 9)
    rows = rows + 1
    touched = torch.tensor([0, 1, 0, 0, 0, 0], dtype=torch.uint8)
    states = {"a": TableState(rows), "new": TableState(rows, {}, None, touched)}
    path = write_checkpoint(tmp_path, 2, {}, {}, states, 9, base=first)
    for name in states:
        found = TableState(torch.zeros(6, 2))
        Checkpoint(path).read_table(name, found)
        assert torch.equal(found.rows, rows)


def test_a_failed_write_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, tracker = chain(tmp_path)
    net.step(4)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("octavo.training.checkpoint.save_file", full)
        with pytest.raises(CheckpointError, match=r"step-00000004: cannot be written .*No space"):
            save(net, tracker, tmp_path, 4)
    net.step(5)
    assert content(load(save(net, tracker, tmp_path, 5), Net())) == content(net)


WRITER = """
import sys
from pathlib import Path
from test_training_checkpoint_deltas import Net, save
from octavo.training.state import TableTracker
net = Net(200)
tracker = TableTracker(net, 3)
for step in range(1, 10_000):
    net.step(step)
    save(net, tracker, Path(sys.argv[1]), step, keep=2)
    print(step, flush=True)
"""


def test_killing_the_writer_never_leaves_a_broken_chain(tmp_path: Path) -> None:
    expected: list[Any] = []
    net = Net(200)
    for attempt in range(4):
        root = tmp_path / str(attempt)
        path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
        command = [sys.executable, "-c", WRITER, str(root)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}) as writer:
            assert writer.stdout is not None
            for _ in range(2 + attempt):
                writer.stdout.readline()
            time.sleep(0.007 * attempt)
            writer.send_signal(signal.SIGKILL)
        found = list_checkpoints(root)
        assert found
        newest = found[-2:]
        for path_ in newest:
            step = Checkpoint(path_).step
            while len(expected) < step:
                net.step(len(expected) + 1)
                expected.append(content(net))
            assert content(load(path_, Net(200))) == expected[step - 1]
