"""Gradients in eight bits between gloo ranks (``loka.comm``): the bytes a rank sends, and what that costs in NE.

* Bytes: DistributedDataParallel over AdsWorld's DCN-V2 and Wukong, 2 and 4 ranks, with the hook and with torch's FP32
  all-reduce. Counted is what the kernel sent and saw acknowledged on the rank's TCP sockets (``tcpi_bytes_acked``) from
  after DDP was made to after a barrier that follows the last step: codes, scales, padding, the hook's headers and
  gloo's own. ``counted_ratio`` is the hook's own account. The figure is the largest ratio of a rank.
* NE: ``loka_quality``'s paired training runs, 2 ranks that share every batch as octavo's trainer does
  (``training.communication``), against FP32 all-reduce; ``aa`` is FP32 with every dense weight one ulp up.
"""

from __future__ import annotations

import gc
import inspect
import os
import socket
import struct
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import harness
import loka_quality_figures as figures
import loka_quality_runs as runs
import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from harness import Interval
from torch.nn.parallel import DistributedDataParallel

from octavo import loka, models
from octavo.training import Group, learning

GATE = 0.27
FORMATS = ("e4m3", "int8")
ARMS = ("fp32", "aa", *FORMATS)
RANKS = {"smoke": (2,), "quick": (2, 4), "full": (2, 4)}
STEPS = {"smoke": 2, "quick": 10, "full": 50}
_PARAMETERS = inspect.signature(DistributedDataParallel).parameters
WITHOUT_BUFFERS: dict[str, Any] = {  # torch 2.13 renamed the argument
    "forward_sync_buffers" if "forward_sync_buffers" in _PARAMETERS else "broadcast_buffers": False
}
_BYTES_ACKED = 120  # its offset in struct tcp_info (linux/tcp.h)


def bytes_acknowledged() -> dict[int, int]:
    """By inode of this process's TCP sockets: what was sent so far and acknowledged by the other side."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        path = Path("/proc/self/fd", name)
        if not path.exists() or not path.is_socket():
            continue
        with socket.socket(fileno=os.dup(int(name))) as one:
            if one.family in (socket.AF_INET, socket.AF_INET6) and one.type == socket.SOCK_STREAM:
                info = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
                found[path.stat().st_ino] = struct.unpack_from("Q", info, _BYTES_ACKED)[0]
    return found


def between(before: dict[int, int], after: dict[int, int]) -> int:
    """Bytes sent from one moment to another. Raises RuntimeError when a socket was closed meanwhile."""
    if before.keys() - after.keys():
        raise RuntimeError("loka_comm: a connection was closed while its bytes were counted; run it again")
    return sum(sent - before.get(inode, 0) for inode, sent in after.items())


def join(rank: int, world: int, folder: str) -> None:
    """This process as a rank of a gloo group of its own."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)


def bytes_rank(rank: int, world: int, folder: str, source: str, steps: int) -> None:
    """One rank's bytes for each format, and the hook's account of them: ``[format: sent, counted, counted FP32]``."""
    join(rank, world, folder)
    found = []
    with runs.opened(source, 0, steps * runs.BATCH) as (log, config):
        batches = list(log.batches(len(log) // steps))[:steps]
        for format in ("fp32", *FORMATS):
            model = models.build(log.schema, config.model)
            ddp = DistributedDataParallel(model, **WITHOUT_BUFFERS)
            state = None
            if format != "fp32":
                state, hook = loka.comm.compressed(format)
                ddp.register_comm_hook(state, hook)
            before = settled()
            for batch in batches:
                part = Group(rank, world).part(batch)
                learning.loss_of(ddp(part), part, learning.total_weights(batch, model.tasks)).backward()
            sent = between(before, settled())
            found.append((sent, 0, 0) if state is None else (sent, state.bytes_sent, state.fp32_bytes))
            del ddp, model, batch, part, state
            gc.collect()  # DDP closes connections of its own when it goes: now, not while the next one's are counted
    np.save(f"{folder}/{rank}.npy", np.array(found, np.float64))
    dist.destroy_process_group()


def settled() -> dict[int, int]:
    """:func:`bytes_acknowledged` once all ranks are here and nothing is under way."""
    dist.barrier()
    while True:
        before = bytes_acknowledged()
        time.sleep(0.05)
        if bytes_acknowledged() == before:
            return before


def ne_rank(rank: int, world: int, folder: str, source: str, seed: int, rows: int, arms: Sequence[str]) -> None:
    """``loka_quality_runs.train_paired`` with ``world`` ranks; the first one saves what it found."""
    join(rank, world, folder)
    with runs.opened(source, seed, rows) as (log, config):
        own = {}
        for arm in arms:
            group = Group(rank, world)
            group.compress(arm if arm in FORMATS else "fp32")
            model = runs.arm_model(models.build(log.schema, config.model), "aa" if arm == "aa" else "fp32", {})
            own[arm] = runs.Arm(model, config, group)
        found = runs.lockstep(own, log.batches(config.training.batch_size))
    if rank == 0:
        np.savez(f"{folder}/found.npz", **found)
    dist.destroy_process_group()


def bytes_sent(source: str, world: int, steps: int) -> runs.Found:
    """``sent`` [ranks, formats, 3]: what :func:`bytes_rank` found."""
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(bytes_rank, (world, folder, source, steps), world, start_method="spawn")
        return {"sent": np.stack([np.load(f"{folder}/{rank}.npy") for rank in range(world)])}


def trained(source: str, seed: int, rows: int, arms: Sequence[str], world: int) -> runs.Found:
    """What :func:`loka_quality_runs.train_paired` returns, by ``world`` ranks."""
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(ne_rank, (world, folder, source, seed, rows, arms), world, start_method="spawn")
        with np.load(Path(folder) / "found.npz") as content:
            return dict(content)


def body(run: harness.Run) -> None:
    """Bytes, then NE."""
    effort, keep = run.effort.name, not run.is_smoke
    names = list(runs.MODELS)[::-1] if run.is_full else ["dcnv2"]
    for name in names:
        for world in RANKS[effort]:
            settings = {"source": name, "world": world, "steps": STEPS[effort]}
            sent = runs.kept(bytes_sent, settings, keep)["sent"]
            for number, format in enumerate(FORMATS, 1):
                ratios = sent[:, number, 0] / sent[:, 0, 0]
                figure = Interval(float(ratios.max()), float(ratios.min()), float(ratios.max()))
                facts = {
                    "bytes_a_step": [round(one / STEPS[effort]) for one in sent[:, number, 0]],
                    "fp32_bytes_a_step": [round(one / STEPS[effort]) for one in sent[:, 0, 0]],
                    "counted_ratio": float((sent[:, number, 1] / sent[:, number, 2]).max()),
                }
                run.row("loka_comm bytes", {"model": name, "ranks": world}, format, figure, facts)
                run.measured(f"loka_comm_bytes_{name}_{format}_{world}_ranks", figure, GATE, at_most=True)
    for name in names:
        settings = {"source": name, "rows": runs.ROWS[effort], "arms": list(ARMS), "world": 2}
        seeds = [runs.kept(trained, {**settings, "seed": seed}, keep) for seed in range(runs.SEEDS[effort])]
        found = figures.trained(run, "loka_comm ne", {"model": name, "ranks": 2}, seeds, ARMS[1:])
        for (task, arm), figure in found.items():
            figures.bar(run, f"loka_comm_ne_{name}_{task}_{arm}", figure, arm in FORMATS)
            if not run.is_full:
                run.bars[-1]["holds"] = None  # the gate asks for a million rows and five seeds


if __name__ == "__main__":
    harness.main("loka_comm", body)
