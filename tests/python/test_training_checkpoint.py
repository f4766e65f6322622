"""Checkpoints: whole or absent, verified when read, one clear error for each kind of damage."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("safetensors")

from octavo.training.checkpoint import Checkpoint, CheckpointError, TableState, list_checkpoints, write_checkpoint


def tables(rows: int = 10) -> dict[str, TableState]:
    generator = torch.Generator().manual_seed(rows)
    values = torch.randn(rows, 4, generator=generator)
    return {
        "bags.user/id": TableState(values, {"state": torch.rand(rows, generator=generator)}),
        "bags.empty": TableState(torch.zeros(0, 4)),
    }


def groups() -> dict[str, dict[str, torch.Tensor]]:
    return {"dense": {"w": torch.arange(6.0).view(2, 3).t(), "b": torch.tensor(3.5)}, "rng": {}}


def write(root: Path, step: int = 3, keep: int = 2) -> Path:
    return write_checkpoint(root, step, {"position": 768, "loss": 0.1}, groups(), tables(), keep, range_bytes=48)


def test_round_trip_is_exact_and_tables_are_row_ranges(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert path.name == "step-00000003"
    checkpoint = Checkpoint(path)
    assert (checkpoint.step, checkpoint.meta) == (3, {"position": 768, "loss": 0.1})
    dense = checkpoint.group("dense")
    assert torch.equal(dense["w"], groups()["dense"]["w"])
    assert dense["b"].item() == 3.5
    assert checkpoint.group("rng") == {}
    assert checkpoint.tables == {"bags.user/id": (10, 4), "bags.empty": (0, 4)}
    ranges = sorted(p.name for p in path.glob("table-000.*"))  # 48 bytes hold 3 rows of 4 floats
    assert ranges == [f"table-000.rows-{a}-{b}.safetensors" for a, b in [(0, 3), (3, 6), (6, 9), (9, 10)]]
    wanted = tables()["bags.user/id"]
    found = TableState(torch.full((10, 4), -1.0), {"state": torch.full((10,), -1.0)})
    checkpoint.read_table("bags.user/id", found)
    assert torch.equal(found.rows, wanted.rows)
    assert torch.equal(found.slots["state"], wanted.slots["state"])


def test_only_the_newest_are_kept_and_leftovers_go(tmp_path: Path) -> None:
    (tmp_path / ".step-00000001.tmp-9").mkdir(parents=True)
    for step in (1, 2, 3, 100_000_000):
        write(tmp_path, step)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-00000003", "step-100000000"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000003", "step-100000000"]
    write(tmp_path, 3)  # the same step again replaces it
    assert Checkpoint(tmp_path / "step-00000003").step == 3


def damage_message(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        Checkpoint(path)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_every_kind_of_damage_names_the_file_and_the_remedy(tmp_path: Path) -> None:
    path = write(tmp_path)
    file = path / "dense.safetensors"
    good = file.read_bytes()
    file.write_bytes(good[:-5])
    text = damage_message(path)
    assert f"{file}: damaged: {len(good) - 5} bytes, {len(good)} were written" in text
    assert f"delete {path} and start the run again" in text
    file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert f"{file}: damaged: sha256" in damage_message(path)
    file.unlink()
    assert f"{file}: missing from the checkpoint" in damage_message(path)
    file.write_bytes(good)
    manifest = path / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text[: len(text) // 2])
    assert f"{manifest}: damaged" in damage_message(path)
    manifest.write_text(text.replace("768", "769"))
    assert "does not match its own sha256" in damage_message(path)
    manifest.write_text(text.replace('"format": 2', '"format": 7'))
    assert "format 7, this octavo reads format 2" in damage_message(path)
    manifest.write_text("[]")
    assert "not a checkpoint's manifest" in damage_message(path)
    manifest.unlink()
    assert f"{manifest}: not found" in damage_message(path)


def test_damage_points_to_the_checkpoint_before(tmp_path: Path) -> None:
    write(tmp_path, 1)
    path = write(tmp_path, 2)
    (path / "rng.safetensors").write_bytes(b"")
    assert damage_message(path).endswith(f"delete {path} to resume from step-00000001")


def test_wrong_names_and_shapes_are_named(tmp_path: Path) -> None:
    checkpoint = Checkpoint(write(tmp_path))
    with pytest.raises(CheckpointError, match=r"has no group 'metrics'; it holds dense, rng"):
        checkpoint.group("metrics")
    with pytest.raises(CheckpointError, match=r"has no table 'x'; it holds bags\.user/id, bags\.empty"):
        checkpoint.read_table("x", tables()["bags.empty"])
    with pytest.raises(CheckpointError, match=r"'bags\.user/id' is \[10, 4\].*the model's is \[11, 4\]"):
        checkpoint.read_table("bags.user/id", tables(11)["bags.user/id"])
    with pytest.raises(CheckpointError, match=r"slots \['state'\], the model's is \[10, 4\] with slots \[\]"):
        checkpoint.read_table("bags.user/id", TableState(torch.zeros(10, 4)))


WRITER = """
import sys, torch
from pathlib import Path
from octavo.training.checkpoint import TableState, write_checkpoint
root = Path(sys.argv[1])
for step in range(1, 10_000):
    tables = {"t": TableState(torch.full((20_000, 16), float(step)), {"state": torch.full((20_000,), float(step))})}
    write_checkpoint(root, step, {"position": step}, {"dense": {"w": torch.full((4,), float(step))}}, tables, keep=2)
    print(step, flush=True)
"""


def test_killing_the_writer_never_leaves_half_a_checkpoint(tmp_path: Path) -> None:
    for attempt in range(4):
        root = tmp_path / str(attempt)
        command = [sys.executable, "-c", WRITER, str(root)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=dict(os.environ)) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            time.sleep(0.013 * attempt)
            writer.send_signal(signal.SIGKILL)
        steps = [Checkpoint(path) for path in list_checkpoints(root)]
        assert steps
        for checkpoint in steps:
            value = float(checkpoint.step)
            assert checkpoint.meta == {"position": checkpoint.step}
            assert checkpoint.group("dense")["w"].tolist() == [value] * 4
            found = TableState(torch.zeros(20_000, 16), {"state": torch.zeros(20_000)})
            checkpoint.read_table("t", found)
            assert torch.equal(found.rows, torch.full((20_000, 16), value))
            assert torch.equal(found.slots["state"], torch.full((20_000,), value))
        write_checkpoint(root, 10**6, {}, {"dense": {}}, {}, keep=1)
        assert [p.name for p in root.iterdir()] == ["step-01000000"]


def test_a_full_disk_leaves_the_earlier_checkpoints_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"step-00000002: cannot be written \(.*\); earlier .* are whole"):
            write_checkpoint(tmp_path, 2, {}, {"dense": {"w": torch.ones(50_000)}}, {}, keep=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    assert Checkpoint(tmp_path / "step-00000001").meta["position"] == 768


def test_manifest_is_plain_json(tmp_path: Path) -> None:
    manifest = json.loads((write(tmp_path) / "manifest.json").read_text())
    assert manifest["format"] == 2
    assert manifest["base"] is None
    assert set(manifest["files"]) == {p.name for p in (tmp_path / "step-00000003").glob("*.safetensors")}
