"""Training examples a second, from a file to updated weights: octavo's trainer against FuxiCTR, RecBole, FBGEMM.

The log is AdsWorld's ``reference``, clicks. Every contestant makes whole passes over it with the same DCN-V2 or DLRM
(no norm, ReLU), batch and threads; a sample is one pass. octavo reads its log, hashes ids, scores each batch before it
learns from it and writes a checkpoint at the end.

Against the toolkits the log has no lists. FuxiCTR and RecBole read their own formats with ids encoded beforehand, score
nothing and save nothing; they run in environments of their own below ``build/peers``, and train their tables as they
do, with Adam on dense gradients (RecBole's MLP normalises batches; it has no DLRM). ``fbgemm``: its fused tables with
row-wise Adagrad under torch layers in FP32 or autocast BF16, eager or compiled, fed by octavo's reader; passes are four
times as long, so that octavo's checkpoint weighs what it does in use. Every peer must get below the loss of a constant
prediction before it is timed.
"""

from __future__ import annotations

import itertools
import math
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import embedding_peers
import harness
import peers
import torch
from environments import FUXICTR, RECBOLE, Environment
from harness import Entry, where
from passes import Passes
from toolkits import prepared, started, write_toolkit_files
from torch.nn import functional
from train_step import TorchDots, TorchLayer

from octavo import _core
from octavo.config import RunConfig, build_config
from octavo.data import AdsWorld, EventLog, prefetched
from octavo.training import Trainer

HERE = Path(__file__).resolve()
PRESET, BATCH = "reference", 2048
EVENTS = {"smoke": 4 * BATCH, "quick": 8 * BATCH, "full": 24 * BATCH}  # of a pass against the toolkits
LONGER = 4  # against FBGEMM
MODELS: dict[str, dict[str, Any]] = {
    "dcnv2": {"deep": [256, 128], "cross_layers": 3},
    "dlrm": {"bottom": [64], "top": [256, 128]},
}
PRECISIONS = ("fp32", "bf16", "plan")
DIM, LR, TABLE_LR = 32, 1e-3, 0.02
PASSES_TO_LEARN = 12


def octavo_pass(model: str, precision: str, log: EventLog, folder: Path) -> Entry:
    """A fresh trainer for each pass, made before the clock starts."""
    values = {
        "model": {"kind": model, "embedding_dim": DIM, "norm": None, "activation": "relu", **MODELS[model],
                  "table_optimizer": {"kind": "row_wise_adagrad", "lr": TABLE_LR},
                  **({"embeddings_to_top": False} if model == "dlrm" else {})},
        "training": {"batch_size": BATCH, "holdout": 0.0, "checkpoint_every": 0, "precision": precision,
                     "optimizer": {"kind": "adam", "lr": LR}},
    }  # fmt: skip
    config: RunConfig = build_config(values, [], source="train_throughput")
    run = folder / f"octavo-{model}-{precision}"

    def fresh(_: int) -> Trainer:
        shutil.rmtree(run, ignore_errors=True)
        return Trainer(config, log, run)

    def call(trainer: Trainer) -> None:
        for _ in trainer.run():
            pass

    name = f"octavo {precision}"
    return Entry(name, call, prepare=fresh, group="octavo", facts={"numerics": precision}, items=len(log))


class TorchDLRM(torch.nn.Module):
    """Bottom MLP, dot products of every pair, top MLP."""

    def __init__(self, dense: int, tables: int) -> None:
        super().__init__()
        widths = MODELS["dlrm"]
        self.bottom = layers([dense, *widths["bottom"], DIM])
        self.dots = TorchDots(tables + 1)
        self.top = layers([DIM + tables * (tables + 1) // 2, *widths["top"]])
        self.head = TorchLayer(widths["top"][-1], 1, relu=False)

    def forward(self, dense: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
        bottom = self.bottom(dense)
        vectors = torch.cat([pooled, bottom.to(pooled.dtype)], 1).view(len(dense), -1, DIM)
        hidden = self.top(torch.cat([bottom, self.dots(vectors).to(bottom.dtype)], 1))
        return self.head(hidden).float().squeeze(-1)


class TorchDCNv2(torch.nn.Module):
    """Full-rank cross layers beside an MLP."""

    def __init__(self, dense: int, tables: int) -> None:
        super().__init__()
        width, deep = tables * DIM + dense, MODELS["dcnv2"]["deep"]
        self.cross = torch.nn.ModuleList(
            TorchLayer(width, width, relu=False) for _ in range(MODELS["dcnv2"]["cross_layers"])
        )
        self.deep = layers([width, *deep])
        self.head = TorchLayer(width + deep[-1], 1, relu=False)

    def forward(self, dense: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
        x0 = torch.cat([pooled, dense], 1)
        x = x0
        for layer in self.cross:
            x = torch.addcmul(x, x0, layer(x).to(x.dtype))
        return self.head(torch.cat([x, self.deep(x0)], 1)).float().squeeze(-1)


def layers(widths: list[int]) -> torch.nn.Sequential:
    """Linear and ReLU, one after the other."""
    return torch.nn.Sequential(*(TorchLayer(k, n, relu=True) for k, n in itertools.pairwise(widths)))


def fbgemm_pass(model: str, dtype: str, mode: str, log: EventLog) -> Callable[[], float]:
    """One pass over the log as octavo's reader has it; the mean loss."""
    schema, task = log.schema, log.schema.tasks[0]
    torch.manual_seed(0)
    rows = [torch.empty(f.rows, DIM).uniform_(-0.01, 0.01) for f in schema.sparse]
    tables = embedding_peers.fbgemm_training(rows, TABLE_LR)
    kind = {"dlrm": TorchDLRM, "dcnv2": TorchDCNv2}[model]
    towers = kind(len(schema.dense), len(schema.sparse))
    optimizer = torch.optim.Adam(towers.parameters(), lr=LR, fused=True)

    def loss_of(dense: torch.Tensor, pooled: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            logits = towers(dense, pooled)
        return functional.binary_cross_entropy_with_logits(logits, labels)

    run = torch.compile(loss_of) if mode == "compiled" else loss_of

    def one_pass() -> float:
        losses = []
        for batch in prefetched(log.batches(BATCH)):
            loss = run(batch.dense, tables(batch.sparse.values, batch.sparse.offsets), batch.labels[task])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.detach())
        return float(torch.stack(losses).mean())

    return one_pass


def toolkit_pass(passes: Passes) -> Callable[[], float]:
    """The pass of a child process."""
    return lambda: float(passes.call()["loss"])


class Contestants:
    """The peers of one log that are there; who is not is ``absent``, with the reason."""

    def __init__(self, log: EventLog, task: str) -> None:
        rate = float(log.columns([task])[task].to_numpy().mean())
        self.log, self.floor = log, -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate))
        self.rivals: list[Entry] = []
        self.absent: dict[str, str] = {}

    def admit(self, name: str, group: str, make: Callable[[], Callable[[], float]]) -> None:
        """Once its mean loss over a pass lies below that of a constant prediction."""
        peers.admit(self.rivals, self.absent, name, lambda: self._learning(name, group, make()))

    def _learning(self, name: str, group: str, one_pass: Callable[[], float]) -> Entry:
        losses: list[float] = []
        while not losses or not losses[-1] < self.floor:
            if len(losses) == PASSES_TO_LEARN:
                raise peers.Wrong(f"mean losses {losses}, a constant prediction's is {self.floor:.4f}")
            losses.append(one_pass())
        return Entry(name, lambda _: one_pass(), group=group, items=len(self.log))


def contest(run: harness.Run, model: str, against: str, found: Contestants, folder: Path) -> None:
    """octavo in each precision against those that were admitted."""
    ours = [octavo_pass(model, precision, found.log, folder) for precision in PRECISIONS]
    shape = {"model": model, "preset": PRESET, "against": against, "events": len(found.log), "batch": BATCH, "dim": DIM}
    run.contest("train_throughput", shape, ours, found.rivals, found.absent)


def toolkits(run: harness.Run, model: str, log: EventLog, settings: dict[str, Any], folder: Path) -> None:
    """FuxiCTR, and RecBole where it has the model."""
    names: list[tuple[str, Environment, dict[str, Any]]] = [
        (f"fuxictr, {workers} workers", FUXICTR, {"model": model, "workers": workers})
        for workers in ((0, 1) if run.is_full else (0,))  # a worker costs more than it saves
    ]
    if model == "dcnv2":
        names.append(("recbole", RECBOLE, {"model": "DCNV2"}))
    found = Contestants(log, log.schema.tasks[0])
    with ExitStack() as children:
        for name, environment, chosen in names:

            def make(name: str = name, environment: Environment = environment, chosen: dict[str, Any] = chosen) -> Any:
                whole = {**settings, **MODELS[model], **chosen}
                return toolkit_pass(started(run, environment, whole, folder / name, children))

            found.admit(name, environment.name, make)
        contest(run, model, "toolkits", found, folder)


def fbgemm(run: harness.Run, model: str, log: EventLog, folder: Path) -> None:
    """FBGEMM's tables under torch layers."""
    found = Contestants(log, log.schema.tasks[0])
    for dtype, mode in itertools.product(("float32", "bfloat16"), ("eager", "compiled")):
        name = f"fbgemm + torch {dtype} {mode}"
        if run.is_smoke and mode == "compiled":
            found.absent[name] = "not in the smoke run: compiling takes seconds"
        elif run.is_smoke and dtype == "bfloat16" and not _core.cpu_features()["avx512_bf16"]:
            found.absent[name] = "not in the smoke run: without AVX-512 BF16 a pass takes 14 times FP32's"
        else:
            found.admit(name, "fbgemm", lambda dtype=dtype, mode=mode: fbgemm_pass(model, dtype, mode, log))  # type: ignore[misc]
    contest(run, model, "fbgemm", found, folder)


def body(run: harness.Run) -> None:
    """Two contests for each model."""
    events = EVENTS[run.effort.name]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        world = AdsWorld(PRESET, seed=0).write(folder / "world", events=LONGER * events)
        plain = prepared(world, folder / "plain", events, BATCH, lists=False)
        whole = prepared(world, folder / "whole", LONGER * events, BATCH, lists=True)
        files = write_toolkit_files(plain, folder, BATCH)
        settings = {**files, "embedding_dim": DIM, "lr": LR, "dropout": 0, "norm": False}
        for model in MODELS:
            toolkits(run, model, plain, settings, folder / f"toolkits-{model}")
            fbgemm(run, model, whole, folder / f"fbgemm-{model}")

    def against(*groups: str) -> Callable[[Entry], bool]:
        return lambda entry: entry.group in groups

    both, eager = ("fuxictr", "recbole"), [f"fbgemm + torch {dtype} eager" for dtype in ("float32", "bfloat16")]
    of_toolkits, of_fbgemm = (lambda shape, name=name: shape["against"] == name for name in ("toolkits", "fbgemm"))

    def has_recbole(shape: Mapping[str, Any]) -> bool:
        return of_toolkits(shape) and shape["model"] == "dcnv2"

    run.finding("train_throughput_vs_toolkits", where(), against(*both), ["fuxictr, 0 workers"], 3.0, of_toolkits)
    run.finding("train_throughput_vs_recbole", where(), against("recbole"), ["recbole"], 3.0, has_recbole)
    run.finding("train_throughput_vs_fbgemm", where(), against("fbgemm"), eager, 1.5, of_fbgemm)
    for precision in PRECISIONS:
        mine = where(numerics=precision)
        run.finding(f"train_throughput_{precision}_vs_toolkits", mine, against(*both), among=of_toolkits)
        run.finding(f"train_throughput_{precision}_vs_fbgemm", mine, against("fbgemm"), among=of_fbgemm)


if __name__ == "__main__":
    harness.main("train_throughput", body)
