"""Training examples a second, from a file to updated weights: octavo's trainer against FuxiCTR, RecBole, FBGEMM.

The log is AdsWorld's ``reference`` without its lists: numbers, single ids, clicks. Every contestant makes whole passes
over it with the same DCN-V2 or DLRM (no norm, ReLU), batch and threads; a sample is one pass. octavo reads its log,
hashes ids, scores each batch before it learns from it and writes a checkpoint at the end. FuxiCTR and RecBole read
their own formats with ids encoded beforehand, score nothing and save nothing; they run in environments of their own
below ``build/peers``, and train their tables as they do, with Adam on dense gradients (RecBole's MLP normalises
batches; it has no DLRM). ``fbgemm``: its fused tables with row-wise Adagrad under torch layers in FP32 or autocast
BF16, eager or compiled, fed by octavo's reader. Every peer must get below the loss of a constant prediction before it
is timed.
"""

from __future__ import annotations

import itertools
import math
import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import embedding_peers
import harness
import peers
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import torch
from environments import FUXICTR, RECBOLE, Environment
from harness import Entry, where
from passes import Passes
from torch.nn import functional
from train_step import TorchDots, TorchLayer

from octavo.config import RunConfig, build_config
from octavo.data import AdsWorld, EventLog, prefetched
from octavo.training import Trainer

HERE = Path(__file__).resolve()
PRESET, BATCH = "reference", 2048
EVENTS = {"smoke": 2 * BATCH, "quick": 24 * BATCH, "full": 128 * BATCH}
MODELS: dict[str, dict[str, Any]] = {
    "dcnv2": {"deep": [256, 128], "cross_layers": 3},
    "dlrm": {"bottom": [64], "top": [256, 128]},
}
PRECISIONS = ("fp32", "bf16", "plan")
DIM, LR, TABLE_LR = 32, 1e-3, 0.02
PASSES_TO_LEARN = 8


def plain(log: EventLog, path: Path) -> EventLog:
    """The log's numbers, single ids and first outcome."""
    schema = log.schema
    kept = replace(
        schema, sparse=tuple(f for f in schema.sparse if not f.multi), sequences=(), labels=schema.labels[:1]
    )
    return EventLog.write(path, kept, [log.columns(kept.columns())], rows_per_group=8 * BATCH)


def encoded(log: EventLog) -> pa.Table:
    """What models receive, one column a feature, and ``label``: the peers' files."""
    columns: dict[str, list[torch.Tensor]] = {}
    task = log.schema.tasks[0]
    for batch in log.batches(BATCH):
        parts = {f.name: batch.dense[:, at] for at, f in enumerate(log.schema.dense)}
        ids = batch.sparse.values.view(len(log.schema.sparse), -1)
        parts |= {f.name: ids[at] for at, f in enumerate(log.schema.sparse)}
        for name, part in {**parts, "label": batch.labels[task]}.items():
            columns.setdefault(name, []).append(part)
    return pa.table({name: torch.cat(parts).numpy() for name, parts in columns.items()})


def write_atomic(table: pa.Table, folder: Path) -> None:
    """RecBole's format: tab-separated, a type behind every name."""
    folder.mkdir(parents=True)
    kinds = ["token" if pa.types.is_integer(field.type) else "float" for field in table.schema]
    named = table.rename_columns([f"{name}:{kind}" for name, kind in zip(table.column_names, kinds)])
    options = pyarrow.csv.WriteOptions(delimiter="\t", quoting_style="none")
    pyarrow.csv.write_csv(named, folder / f"{folder.name}.inter", options)


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


def learning(name: str, group: str, one_pass: Callable[[], float], floor: float, events: int) -> Entry:
    """The entry, once its mean loss over a pass lies below that of a constant prediction."""
    losses: list[float] = []
    while not losses or not losses[-1] < floor:
        if len(losses) == PASSES_TO_LEARN:
            raise peers.Wrong(f"mean losses {losses}, a constant prediction's is {floor:.4f}")
        losses.append(one_pass())
    return Entry(name, lambda _: one_pass(), group=group, items=events)


def body(run: harness.Run) -> None:
    """A contest for each model."""
    events = EVENTS[run.effort.name]
    with tempfile.TemporaryDirectory() as name, ExitStack() as children:
        folder = Path(name)
        log = plain(AdsWorld(PRESET, seed=0).write(folder / "world", events=events), folder / "log")
        table = encoded(log)
        pq.write_table(table, folder / "encoded.parquet")
        write_atomic(table, folder / "atomic" / "throughput")
        base = float(table.column("label").to_numpy().mean())
        floor = -(base * math.log(base) + (1 - base) * math.log(1 - base))
        settings = {
            "dense": [f.name for f in log.schema.dense], "sparse": {f.name: f.rows for f in log.schema.sparse},
            "embedding_dim": DIM, "lr": LR, "batch_size": BATCH, "threads": torch.get_num_threads(), "dropout": 0,
            "norm": False, "parquet": str(folder / "encoded.parquet"), "atomic": str(folder / "atomic"),
        }  # fmt: skip

        def toolkit(environment: Environment, label: str, **chosen: Any) -> Callable[[], Entry]:
            def build() -> Entry:
                if reason := environment.missing(not run.is_smoke, HERE.name):
                    raise ImportError(reason)
                script = HERE.with_name(f"{environment.name}_passes.py")
                passes = Passes(environment.python, script, {**settings, **chosen}, folder / label.replace(" ", "-"))
                return learning(label, environment.name, toolkit_pass(children.enter_context(passes)), floor, events)

            return build

        for model, widths in MODELS.items():
            ours = [octavo_pass(model, precision, log, folder) for precision in PRECISIONS]
            builders: dict[str, Callable[[], Entry]] = {
                f"fuxictr, {workers} workers": toolkit(
                    FUXICTR, f"fuxictr, {workers} workers", **widths, model=model, workers=workers
                )
                for workers in (0, 1)
            }
            if model == "dcnv2":
                builders["recbole"] = toolkit(RECBOLE, "recbole", **widths, model="DCNV2")
            rivals: list[Entry] = []
            absent: dict[str, str] = {}
            for dtype, mode in itertools.product(("float32", "bfloat16"), ("eager", "compiled")):
                label = f"fbgemm + torch {dtype} {mode}"
                if run.is_smoke and mode == "compiled":
                    absent[label] = "not in the smoke run: compiling takes seconds"
                    continue

                def build(label: str = label, model: str = model, dtype: str = dtype, mode: str = mode) -> Entry:
                    return learning(label, "fbgemm", fbgemm_pass(model, dtype, mode, log), floor, events)

                builders[label] = build
            for label, make in builders.items():
                peers.admit(rivals, absent, label, make)
            shape = {"model": model, "preset": PRESET, "events": events, "batch": BATCH, "dim": DIM}
            run.contest("train_throughput", shape, ours, rivals, absent)
            children.close()
    toolkits, fbgemm = ("fuxictr", "recbole"), [f"fbgemm + torch {d} eager" for d in ("float32", "bfloat16")]

    def of(*groups: str) -> Callable[[Entry], bool]:
        return lambda entry: entry.group in groups

    run.finding("train_throughput_vs_toolkits", where(), of(*toolkits), ["fuxictr, 0 workers"], 3.0)
    run.finding(
        "train_throughput_vs_recbole", where(), of("recbole"), ["recbole"], 3.0, lambda s: s["model"] == "dcnv2"
    )
    run.finding("train_throughput_vs_fbgemm", where(), of("fbgemm"), fbgemm, 1.5)
    run.finding("train_throughput_fp32_vs_toolkits", where(numerics="fp32"), of(*toolkits))
    run.finding("train_throughput_fp32_vs_fbgemm", where(numerics="fp32"), of("fbgemm"))


if __name__ == "__main__":
    harness.main("train_throughput", body)
