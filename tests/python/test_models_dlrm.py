"""The DLRM against the same network written out in torch, and the schemas it refuses."""

import dataclasses

import pytest
import torch
from torch.nn import functional
from training_support import demo_log

from octavo import models
from octavo.config import DLRMConfig


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return demo_log(tmp_path_factory.mktemp("dlrm") / "log")


@pytest.mark.parametrize("embeddings_to_top", [True, False])
@pytest.mark.parametrize("norm", ["layer", None])
def test_logits_are_those_of_the_network_written_out(log, embeddings_to_top, norm) -> None:
    config = DLRMConfig(embedding_dim=8, bottom=[12], top=[16, 4], norm=norm, embeddings_to_top=embeddings_to_top)
    model = models.build(log.schema, config).eval()
    batch = log.read(100, 164)
    state = model.state_dict()

    def mlp(x: torch.Tensor, name: str, layers: int) -> torch.Tensor:
        for i in range(layers):
            x = functional.linear(x, state[f"{name}.{i}.weight"], state[f"{name}.{i}.bias"])
            if norm:
                x = functional.layer_norm(
                    x, x.shape[-1:], state[f"{name}.{i}.norm_weight"], state[f"{name}.{i}.norm_bias"]
                )
            x = functional.hardswish(x)
        return x

    bags, size = batch.sparse, len(batch)
    pooled = []
    for t, feature in enumerate(log.schema.sparse):
        own = bags.offsets[t * size : (t + 1) * size + 1]
        values = bags.values[int(own[0]) : int(own[-1])]
        rows = state[f"embeddings.bags.rows.{feature.name}"]
        pooled.append(functional.embedding_bag(values, rows, own - own[0], mode="sum", include_last_offset=True))
    dense = mlp(batch.dense, "bottom", 2)
    vectors = [*pooled, dense]
    dots = [(vectors[i] * vectors[j]).sum(1) for i in range(len(vectors)) for j in range(i)]
    top = torch.cat([*(pooled if embeddings_to_top else []), dense, torch.stack(dots, 1)], 1)
    hidden = mlp(top, "top", 2)
    expected = (hidden @ state["heads.click.weight"].T + state["heads.click.bias"]).squeeze(1)
    found = model(batch)
    assert list(found) == ["click"]
    assert torch.allclose(found["click"], expected, atol=1e-6)


def test_schemas_without_dense_features_and_schemas_it_refuses(log) -> None:
    schema = log.schema
    model = models.build(dataclasses.replace(schema, dense=()), DLRMConfig(embedding_dim=8))
    assert model.bottom is None
    for change, message in (
        ({"labels": ()}, "has no labels"),
        ({"sparse": ()}, "has no sparse features"),
        ({"dense": (), "sparse": schema.sparse[:1]}, "one feature and no dense ones"),
    ):
        with pytest.raises(ValueError, match=message):
            models.build(dataclasses.replace(schema, **change), DLRMConfig(embedding_dim=8, embeddings_to_top=False))
