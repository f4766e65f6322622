"""FuxiCTR's side of ``train_throughput``: a pass is its loader over its npz file (what it makes of raw data; its
parquet loader starts a Ray cluster) and its training epoch. Of ``data_throughput`` (``reads_only``): its loader."""

from __future__ import annotations

import logging
import tempfile
import time
from collections import OrderedDict

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.dataloaders import RankDataLoader
from fuxictr.pytorch.torch_utils import seed_everything
from fuxictr_models import MODELS
from passes import serve


def prepare(settings):
    """The model, ready; its weights go on from pass to pass."""
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(settings["threads"])
    seed_everything(0)
    folder = tempfile.mkdtemp(dir=".")
    features = FeatureMap("throughput", folder)
    features.features = OrderedDict(
        [(name, {"source": "", "type": "numeric"}) for name in settings["dense"]]
        + [
            (name, {"source": "", "type": "categorical", "vocab_size": rows})
            for name, rows in settings["sparse"].items()
        ]
    )
    features.labels, features.num_fields = ["label"], len(features.features)
    features.total_features, features.default_emb_dim = sum(settings["sparse"].values()), settings["embedding_dim"]
    features.set_column_index()

    def fresh():
        return RankDataLoader(
            features, stage="train", train_data=settings["npz"], batch_size=settings["batch_size"], shuffle=False,
            data_format="npz", num_workers=settings["workers"],
        )[0]  # fmt: skip

    if settings.get("reads_only"):
        return lambda: {"events": sum(len(batch["label"]) for batch in fresh())}
    model = MODELS[settings["model"]](
        features, settings, monitor="logloss", monitor_mode="min", verbose=0, metrics=["logloss"], model_root=folder
    )

    def one_pass():
        start = time.perf_counter()
        loader = fresh()
        # Without validation: ``fit`` would score and save after the epoch.
        model._max_gradient_norm, model._total_steps, model._eval_steps, model._stop_training = 10.0, 0, 1 << 60, False
        losses, step = [], model.train_step

        def counted(batch):
            loss = step(batch)
            losses.append(loss.detach())
            return loss

        model.train_step = counted
        try:
            model.train_epoch(loader)
        finally:
            model.train_step = step
        return {"loss": float(torch.stack(losses).mean()), "steps": len(losses), "seconds": time.perf_counter() - start}

    return one_pass


if __name__ == "__main__":
    serve(prepare)
