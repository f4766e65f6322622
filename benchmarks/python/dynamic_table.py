"""Dynamic tables: what finding an id's row costs, and what rows of one's own are worth where ids keep coming.

``bag_forward with new ids``: a batch of bags over 10^7 live ids, Zipf, of which one lookup in a hundred is an id never
seen before, which gets a row (training mode, nothing updated); ``bag_backward with new ids``: the update too. Peers
take the same ids: octavo's fixed table behind the hash of ``encoding="hash"``, and a Python dict whose rows torch's
embedding_bag reads.

``dynamic_table_auc``: AdsWorld ``cold``, whose users come for hours: a model with dynamic tables of users and items
minus the same with the world's hashed ones, the maps' memory paid for in rows. Predictions are made before training on
them; the first half of the stream is not scored.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import harness
import numpy as np
import torch
from embedding_peers import WIDTH
from harness import Entry, Interval, where
from torch.nn import functional

from octavo import models, nn
from octavo.config import ModelConfig, build_config
from octavo.data import AdsWorld, Batch, Schema, Sparse, encode_table
from octavo.data.encoding import _hash
from octavo.evaluation import auc, paired
from octavo.training import learning
from octavo.training.distributed import Group

LIVE = {"smoke": 5_000, "quick": 10_000_000, "full": 10_000_000}
DIM, LENGTH, BATCH, NEW, SKEW = 64, 20, 1024, 0.01, 1.05
FIXED, GIVEN, DICT = "octavo fixed, hashed", "octavo fixed, rows given", "Python dict, torch embedding_bag"
BLOCK = 1 << 17

WORLD, SIDES = "cold", ("dynamic", "hashed")
SEEDS = {"smoke": 2, "quick": 3, "full": 5}
EVENTS = {"smoke": 3_000, "quick": 300_000, "full": 1_500_000}
EVENTS_A_BATCH = 512
# Learning rate of the tables: each side's best of LRS on a seed of its own; --tune prints what it was chosen by.
TABLE_LR = {"dynamic": 0.1, "hashed": 0.1}
LRS, TUNING_SEED, TUNING_EVENTS = (0.05, 0.1, 0.2, 0.4, 0.8), 100, 400_000


class Stream:
    """Batches of ids: number i is the same whoever asks for it."""

    def __init__(self, live: int) -> None:
        self.live, self.lookups = live, BATCH * LENGTH
        self.fresh = max(1, round(NEW * self.lookups))
        self.offsets = torch.arange(BATCH + 1) * LENGTH

    def ids(self, numbers: torch.Tensor) -> torch.Tensor:
        """64-bit ids of numbered things: an odd factor permutes the integers."""
        return numbers * -7046029254386353131

    def batch(self, i: int) -> torch.Tensor:
        """[BATCH * LENGTH]: Zipf over the live ones, the new ones in between."""
        generator = torch.Generator().manual_seed(i)
        uniform = torch.rand(self.lookups, generator=generator, dtype=torch.float64)
        power = 1 - SKEW
        ranks = ((self.live**power - 1) * uniform + 1).pow(1 / power).long().clamp(1, self.live) - 1
        places = torch.randperm(self.lookups, generator=generator)[: self.fresh]
        ranks[places] = self.live + i * self.fresh + torch.arange(self.fresh)
        return self.ids(ranks)


class Rows(dict[int, int]):
    """id -> row; an id it has not gets the next row."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows = rows

    def __missing__(self, key: int) -> int:
        row = self[key] = len(self) % self.rows
        return row


def dynamic_bags(stream: Stream) -> nn.EmbeddingBags:
    """A table in which every live id has a row, and a sixteenth more fit."""
    rows = stream.live + stream.live // 16 + 1
    module = nn.EmbeddingBags([nn.Table("id", rows, DIM, dynamic=nn.Dynamic())], nn.RowWiseAdagrad(0.02))
    module.reset_parameters(0.1, torch.Generator().manual_seed(1))
    for start in range(0, stream.live, BLOCK):
        module._table_rows(0, stream.ids(torch.arange(start, min(start + BLOCK, stream.live))), True)
    return module


def lookups(run: harness.Run) -> None:
    """The contests of time."""
    stream = Stream(LIVE[run.effort.name])
    dynamic = dynamic_bags(stream)
    fixed = nn.EmbeddingBags([nn.Table("id", stream.live, DIM)], nn.RowWiseAdagrad(0.02))
    table = fixed.state_dict()["rows.id"]
    mapping = Rows(stream.live)
    for start in range(0, stream.live, BLOCK):
        for id_ in stream.ids(torch.arange(start, min(start + BLOCK, stream.live))).tolist():
            mapping[id_] = len(mapping)

    def hashed(ids: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(_hash(ids.numpy().view(np.uint64), stream.live))

    def through_dict(ids: torch.Tensor) -> torch.Tensor:
        rows = torch.tensor(list(map(mapping.__getitem__, ids.tolist())))
        return functional.embedding_bag(rows, table, stream.offsets, mode="sum", include_last_offset=True)

    def forward(module: nn.EmbeddingBags) -> Any:
        return lambda ids: module(ids, stream.offsets)

    def rows_given(i: int) -> torch.Tensor:
        return hashed(stream.batch(i))

    check(stream, dynamic, fixed, hashed, through_dict)
    gradient = torch.randn(BATCH, DIM, generator=torch.Generator().manual_seed(3))

    def entry(name: str, op: str, call: Any, prepare: Any = stream.batch) -> Entry:
        return Entry(name, call, prepare=prepare, io=WIDTH["fp32"], group=op,
                     facts={"route": "nn.EmbeddingBags, training"}, items=stream.lookups)  # fmt: skip

    op = "bag_forward with new ids"
    shape = {"live": stream.live, "dim": DIM, "length": LENGTH, "batch": BATCH, "zipf": SKEW, "new": NEW}
    peers = [
        entry(FIXED, op, lambda ids: fixed(hashed(ids), stream.offsets)),
        entry(GIVEN, op, forward(fixed), rows_given),
        entry(DICT, op, through_dict),
    ]
    run.contest(op, shape, [entry("octavo dynamic", op, forward(dynamic))], peers)
    op = "bag_backward with new ids"
    ours = entry("octavo dynamic", op, lambda ids: dynamic(ids, stream.offsets).backward(gradient))
    peer = entry(FIXED, op, lambda ids: fixed(hashed(ids), stream.offsets).backward(gradient))
    run.contest(op, shape, [ours], [peer])
    for name, peer_name, bar in (("fixed", FIXED, 0.7), ("fixed_rows_given", GIVEN, None), ("dict", DICT, 10.0)):
        run.finding(f"dynamic_table_vs_{name}", where(group="bag_forward with new ids"), where(name=peer_name),
                    named=(peer_name,), bar=bar)  # fmt: skip
    run.finding("dynamic_table_step_vs_fixed", where(group=op), where(name=FIXED), named=(FIXED,))
    size = dynamic.dynamic["id"].nbytes / (stream.live + stream.live // 16 + 1)
    run.measured("dynamic_table_bytes_a_row", Interval(size, size, size), row_bytes=4 * DIM + 4)


def check(stream: Stream, dynamic: nn.EmbeddingBags, fixed: nn.EmbeddingBags, hashed: Any, through_dict: Any) -> None:
    """Every candidate pools the rows that it says each id has."""
    ids = stream.batch(1 << 40)
    places = dynamic.dynamic["id"].admit(ids, 1)[0]
    if bool((places == 0).any()) or len(places.unique()) != len(ids.unique()):
        raise RuntimeError("dynamic_table: ids share rows")
    table = dynamic.state_dict()["rows.id"]
    with torch.no_grad():
        wanted = table[places].view(BATCH, LENGTH, DIM).sum(1)
        if not torch.allclose(dynamic.eval()(ids, stream.offsets), wanted, atol=1e-4):
            raise RuntimeError("dynamic_table: wrong rows were pooled")
        dynamic.train()
        wanted = fixed.state_dict()["rows.id"][hashed(ids)].view(BATCH, LENGTH, DIM).sum(1)
        if not torch.allclose(fixed(hashed(ids), stream.offsets), wanted, atol=1e-4):
            raise RuntimeError("dynamic_table: the fixed table pooled wrong rows")
        if through_dict(ids).shape != wanted.shape:
            raise RuntimeError("dynamic_table: the dict's bags have another shape")


def dynamic_schema(schema: Schema, dim: int) -> Schema:
    """The hashed users and items as dynamic tables of no more memory, maps included."""
    row = 4 * dim + 4  # FP32 and row-wise Adagrad's state

    def converted(feature: Sparse) -> Sparse:
        if feature.encoding != "hash":
            return feature
        budget, rows = feature.rows * row, feature.rows
        while (rows + 1) * row + nn.dynamic.DynamicRows(rows, dim, nn.Dynamic()).nbytes > budget:
            rows -= max(1, rows // 256)
        return dataclasses.replace(feature, rows=rows, encoding="dynamic")

    groups = {name: tuple(map(converted, getattr(schema, name))) for name in ("sparse", "sequences")}
    return dataclasses.replace(schema, **groups)


def model_of(side: str, seed: int, lr: float) -> ModelConfig:
    """DLRM as it comes, with the side's learning rate of tables."""
    optimizer = {"kind": "row_wise_adagrad", "lr": lr}
    return build_config({"model": {"kind": "dlrm", "seed": seed, "table_optimizer": optimizer}}, [], side).model


class Learner:
    """One model on the stream: predicts a batch, then trains on it."""

    def __init__(self, schema: Schema, config: ModelConfig) -> None:
        self.schema = schema
        self.model = models.build(schema, config).train()
        self.optimizer = learning.build_optimizer(
            list(self.model.parameters()), build_config({}, []).training.optimizer
        )
        self.logits: list[torch.Tensor] = []

    def take(self, batch: Batch) -> None:
        logits = {"click": self.model(batch)["click"]}
        self.logits.append(logits["click"].detach())
        loss = learning.loss_of(logits, batch, learning.total_weights(batch, ["click"]))
        learning.update(self.model, self.optimizer, loss, self.optimizer.param_groups[0]["lr"], None, Group())


def streamed(seed: int, events: int, lrs: dict[str, float]) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Scored logits of both sides [n], clicks [n] and users [n] of one world."""
    world = AdsWorld(WORLD, seed=seed)
    schema = dataclasses.replace(world.schema, labels=world.schema.labels[:1])
    dim = model_of("hashed", seed, 0.05).embedding_dim
    schemas = {"dynamic": dynamic_schema(schema, dim), "hashed": schema}
    learners = {side: Learner(schemas[side], model_of(side, seed, lrs[side])) for side in SIDES}
    labels, users = [], []
    for table in world.tables(events=events, rows=64 * EVENTS_A_BATCH):
        for side, learner in learners.items():
            whole = encode_table(learner.schema, table)
            for start in range(0, len(whole), EVENTS_A_BATCH):
                learner.take(whole.rows(start, min(start + EVENTS_A_BATCH, len(whole))))
            if side == SIDES[0]:
                labels.append(whole.labels["click"])
                users.append(whole.user)
    scored = slice(events // 2, None)
    logits = {side: torch.cat(learner.logits)[scored].numpy() for side, learner in learners.items()}
    return logits, torch.cat(labels)[scored].numpy(), torch.cat(users)[scored].numpy()


def quality(run: harness.Run) -> None:
    """AUC with dynamic tables minus AUC with hashed ones, over seeds."""
    seeds, events = SEEDS[run.effort.name], EVENTS[run.effort.name]
    worlds = [streamed(seed, events, TABLE_LR) for seed in range(seeds)]
    sides = {side: [logits[side] for logits, _, _ in worlds] for side in SIDES}
    labels, users = [y for _, y, _ in worlds], [u for _, _, u in worlds]
    found = paired("auc", sides["dynamic"], sides["hashed"], labels, users, resamples=200)
    each = {side: [round(auc(z, y), 5) for z, y in zip(sides[side], labels, strict=True)] for side in SIDES}
    figure = Interval(found.estimate, found.low, found.high)
    run.measured("dynamic_table_auc", figure, 0.0, lower_end=True, seeds=seeds, events=events, world=WORLD,
                 table_lr=TABLE_LR, **each)  # fmt: skip


def tune() -> None:
    """Print both sides' AUC at every learning rate."""
    for lr in LRS:
        logits, labels, _ = streamed(TUNING_SEED, TUNING_EVENTS, dict.fromkeys(SIDES, lr))
        print(lr, {side: round(auc(z, labels), 5) for side, z in logits.items()}, flush=True)


def body(run: harness.Run) -> None:
    """Time, then quality."""
    lookups(run)
    quality(run)


if __name__ == "__main__":
    if "--tune" in sys.argv[1:]:
        tune()
    else:
        harness.main("dynamic_table", body)
