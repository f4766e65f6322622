"""Every model and head against its paper's equations, written out in numpy FP64 from the parameters alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from models_support import ONE_TASK, SCHEMA, events, model_config, pooled_of, rows_of, scramble

from octavo import models
from octavo.config import ModelConfig
from octavo.data import Batch, Schema

EPS = 1e-5
NORMS = [("layer", "hardswish"), ("rms", "relu"), ("block", "silu"), ("swish_rms", None), (None, "relu")]
MMOE = {"kind": "mmoe", "experts": 3, "expert": [7, 4], "tower": [6]}


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def softmax(x: Any) -> Any:
    grown = np.exp(x - x.max(-1, keepdims=True))
    return grown / grown.sum(-1, keepdims=True)


ACTIVATIONS = {
    None: lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x * sigmoid(x),
    "hardswish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
}


def norm(x: Any, kind: str | None, weight: Any, bias: Any) -> Any:
    """Over the last dimension; BlockNorm's blocks of 256 are wider than anything here."""
    if kind is None:
        return x
    if kind == "layer":
        x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x * x).mean(-1, keepdims=True) + EPS)
    if weight is not None:
        x = x * weight
    return x if bias is None else x + bias


class Written:
    """The parameters of ``model`` by name, and the layers that the equations are made of."""

    def __init__(self, model: torch.nn.Module, schema: Schema, batch: Batch, config: ModelConfig) -> None:
        self.model, self.schema, self.batch, self.config = model, schema, batch, config
        self.p = {name: parameter.detach().double().numpy() for name, parameter in model.named_parameters()}
        self.dense = batch.dense.double().numpy()

    def pooled(self, *without: str) -> list[Any]:
        features = [f.name for f in (*self.schema.sparse, *self.schema.sequences) if f.name not in without]
        return [pooled_of(self.model, self.schema, self.batch, name) for name in features]

    def linear(self, x: Any, name: str) -> Any:
        z = x @ self.p[f"{name}.weight"].T
        return z + self.p[f"{name}.bias"] if f"{name}.bias" in self.p else z

    def mlp(self, x: Any, name: str) -> Any:
        i = 0
        while f"{name}.{i}.weight" in self.p and not self.is_out(f"{name}.{i}"):
            layer, kind = f"{name}.{i}", self.config.norm
            z = norm(self.linear(x, layer), kind, self.p.get(f"{layer}.norm_weight"), self.p.get(f"{layer}.norm_bias"))
            x = z * sigmoid(z) if kind == "swish_rms" else ACTIVATIONS[self.config.activation](z)
            i += 1
        return x

    def is_out(self, name: str) -> bool:
        """A tower's last layer, one wide (no hidden layer here is)."""
        return len(self.p[f"{name}.weight"]) == 1

    def token_norm(self, x: Any, name: str) -> Any:
        kind = "rms" if self.config.norm == "swish_rms" else self.config.norm
        return norm(x, kind, self.p.get(f"{name}.weight"), self.p.get(f"{name}.bias"))

    def tower(self, x: Any, name: str) -> Any:
        widths = self.config.heads.tower
        return self.linear(self.mlp(x, name), f"{name}.{len(widths)}" if widths else name)[:, 0]

    def heads(self, x: Any) -> dict[str, Any]:
        tasks = {label.task: label.task.replace(".", "_") for label in self.schema.labels}
        if self.config.heads.kind == "shared_bottom":
            return {task: self.tower(x, f"heads.{name}") for task, name in tasks.items()}
        count = self.config.heads.experts
        experts = [self.mlp(x, f"heads.experts.{i}") for i in range(count)]
        found = {}
        for t, (task, name) in enumerate(tasks.items()):
            gate = softmax(x @ self.p["heads.gates.weight"][t * count : (t + 1) * count].T)
            mixed = sum(gate[:, i : i + 1] * experts[i] for i in range(count))
            found[task] = self.tower(mixed, f"heads.towers.{name}")
        return found


def dlrm(w: Written) -> tuple[Any, dict[str, Any]]:
    vectors = w.pooled()
    top = list(vectors) if w.config.embeddings_to_top else []
    if w.dense.shape[1]:
        dense = w.mlp(w.dense, "bottom")
        vectors, top = [*vectors, dense], [*top, dense]
    dots = [(vectors[i] * vectors[j]).sum(1, keepdims=True) for i in range(len(vectors)) for j in range(i)]
    hidden = w.mlp(np.concatenate([*top, *dots], 1), "top")
    return hidden, w.heads(hidden)


def dcnv2(w: Written) -> tuple[Any, dict[str, Any]]:
    x0 = np.concatenate([*w.pooled(), w.dense], 1)
    x = x0
    for layer in range(w.config.cross_layers):
        name = f"cross.layers.{layer}"
        if w.config.rank is None:
            z = x @ w.p[f"{name}.weight"].T
        else:
            assert w.p[f"{name}.1.weight"].shape == (x0.shape[1], w.config.rank)
            z = (x @ w.p[f"{name}.0.weight"].T) @ w.p[f"{name}.1.weight"].T
        bias = w.p.get(f"{name}.bias", w.p.get(f"{name}.1.bias", 0.0))
        x = x0 * (z + bias) + x
    if w.config.structure == "stacked":
        hidden = w.mlp(x, "deep")
    else:
        hidden = np.concatenate([x, w.mlp(x0, "deep")], 1)
    return hidden, w.heads(hidden)


def deepfm(w: Written) -> tuple[Any, dict[str, Any]]:
    tasks = [label.task for label in w.schema.labels]
    fields = w.pooled()
    first = sum(pooled_of(w.model, w.schema, w.batch, f.name, "first_order")
                for f in (*w.schema.sparse, *w.schema.sequences))  # fmt: skip
    for i in range(w.dense.shape[1]):
        fields.append(w.dense[:, i : i + 1] * w.p["dense_vectors"][i])
        first = first + w.dense[:, i : i + 1] * w.p["dense_first_order.weight"][:, i]
    pairs = sum(fields[i] * fields[j] for i in range(len(fields)) for j in range(i))  # <v_i, v_j>, before the sum
    hidden = w.mlp(np.concatenate(fields, 1), "deep")
    logits = w.heads(hidden)
    for t, task in enumerate(tasks):
        weights = w.p["task_weights"][t] if len(tasks) > 1 else 1.0
        logits[task] = logits[task] + first[:, t] + (pairs * weights).sum(1)
    return np.concatenate([hidden, pairs, first], 1), logits


def din(w: Written) -> tuple[Any, dict[str, Any]]:
    target = pooled_of(w.model, w.schema, w.batch, "item")
    history = np.zeros_like(target)
    for b, rows in enumerate(rows_of(w.model, w.schema, w.batch, "history")):
        scores = []
        for e in rows:
            v = target[b]
            x = np.concatenate([v, e, v - e, v * e])[None]
            scores.append(w.linear(w.mlp(x, "units.0.hidden"), "units.0.out")[0, 0])
        if w.config.softmax and scores:
            scores = softmax(np.array(scores))
        for score, e in zip(scores, rows, strict=True):
            history[b] += score * e
    hidden = w.mlp(np.concatenate([*w.pooled("history"), history, w.dense], 1), "top")
    return hidden, w.heads(hidden)


def wukong(w: Written) -> tuple[Any, dict[str, Any]]:
    tokens = w.pooled()
    if w.dense.shape[1]:
        tokens.append(w.mlp(w.dense, "bottom"))
    x = np.stack(tokens, 1)
    for layer in range(w.config.layers):
        name = f"layers.{layer}"
        maps = w.p[f"{name}.maps.weight"]  # [k + lcb_tokens + rows of the residual's, n]
        k = w.config.rank or 0
        y, w_l, w_r = maps[:k].T, maps[k : k + w.config.lcb_tokens], maps[k + w.config.lcb_tokens :]
        assert len(w_r) in (0, w.config.fmb_tokens + w.config.lcb_tokens)
        after = []
        for sample in x:  # [n, D]
            fm = sample @ sample.T
            if w.config.rank is not None:
                fm = fm @ y  # [n, n] [n, k]
            flat = w.token_norm(fm.reshape(1, -1), f"{name}.fmb.norm")
            block = w.linear(w.mlp(flat, f"{name}.fmb.hidden"), f"{name}.fmb.out")
            block = block.reshape(w.config.fmb_tokens, w.config.embedding_dim)
            after.append(np.concatenate([block, w_l @ sample]) + (w_r @ sample if len(w_r) else sample))
        x = w.token_norm(np.stack(after), f"{name}.norm")
    hidden = w.mlp(x.reshape(len(x), -1), "top")
    return hidden, w.heads(hidden)


EQUATIONS = {"dlrm": dlrm, "dcnv2": dcnv2, "deepfm": deepfm, "din": din, "wukong": wukong}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((kind, {"norm": n, "activation": a}) for kind in EQUATIONS for n, a in NORMS),
    *((kind, {"bias": False}) for kind in EQUATIONS),
    *((kind, {"heads": heads}) for kind in EQUATIONS for heads in (MMOE, {"tower": [6, 4]})),
    ("dlrm", {"embeddings_to_top": False}),
    ("dcnv2", {"structure": "stacked"}),
    ("dcnv2", {"rank": 3}),
    ("dcnv2", {"rank": 3, "structure": "stacked", "bias": False}),
    ("din", {"softmax": True}),
    ("wukong", {"rank": None}),
    ("wukong", {"fmb": []}),
    ("wukong", {"fmb_tokens": 4, "lcb_tokens": 3, "layers": 3}),  # as many embeddings out as in: no map on the residual
    ("wukong", {"layers": 1}),
]


def check(schema: Schema, kind: str, changes: dict[str, Any], count: int = 17) -> None:
    config = model_config(kind, **changes)
    model = scramble(models.build(schema, config)).eval()
    batch = events(count, seed=3, schema=schema)
    embedding, logits = EQUATIONS[kind](Written(model, schema, batch, config))
    with torch.no_grad():
        found, embedded = model(batch), model.embed(batch)
    assert list(found) == model.tasks == [label.task for label in schema.labels]
    assert embedded.dtype == torch.float32
    assert embedded.shape == (count, model.embed_dim)
    np.testing.assert_allclose(embedded.numpy(), embedding, rtol=2e-4, atol=2e-5 * max(1, np.abs(embedding).max()))
    for task, expected in logits.items():
        assert found[task].dtype == torch.float32
        np.testing.assert_allclose(found[task].numpy(), expected, rtol=2e-4, atol=2e-5 * max(1, np.abs(expected).max()))
    again = model.logits(embedded)
    assert all(torch.equal(again[task], found[task]) for task in found)


@pytest.mark.parametrize(("kind", "changes"), VARIANTS, ids=lambda value: str(value))
def test_logits_and_embedding_are_those_of_the_equations(kind: str, changes: dict[str, Any]) -> None:
    check(SCHEMA, kind, changes)


@pytest.mark.parametrize("kind", EQUATIONS)
@pytest.mark.parametrize("count", [1, 2])
def test_one_task_and_few_events(kind: str, count: int) -> None:
    check(ONE_TASK, kind, {}, count)


@pytest.mark.parametrize("kind", EQUATIONS)
def test_without_dense_features(kind: str) -> None:
    check(Schema((), SCHEMA.sparse, SCHEMA.sequences, SCHEMA.labels), kind, {})
