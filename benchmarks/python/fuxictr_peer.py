"""FuxiCTR's side of ``quality_parity``, run by an interpreter that has it: ``fuxictr_peer.py JOBS.json``."""

from __future__ import annotations

import json
import logging
import sys
import tempfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.torch_utils import seed_everything
from fuxictr_models import MODELS


class Batches:
    """Rows ``begin`` .. ``end`` in batches, each pass in a new order where ``shuffle``: FuxiCTR's loader, no files."""

    def __init__(self, data, begin, end, size, shuffle):
        self.ids, self.label = torch.from_numpy(data["ids"][begin:end]), torch.from_numpy(data["label"][begin:end])
        self.names, self.size, self.shuffle = [f"f{i}" for i in range(self.ids.shape[1])], size, shuffle

    def __len__(self):
        return -(-len(self.label) // self.size)

    def __iter__(self):
        rows = torch.randperm(len(self.label)) if self.shuffle else torch.arange(len(self.label))
        for part in rows.split(self.size):
            yield {**dict(zip(self.names, self.ids[part].unbind(1))), "label": self.label[part]}


def work(job, folder):
    """Fit one model and write its probabilities for the rows that are held out."""
    data, settings = np.load(job["data"]), job["settings"]
    features = FeatureMap("parity", folder)
    sizes = data["sizes"].tolist()
    features.features = OrderedDict(
        (f"f{i}", {"source": "", "type": "categorical", "vocab_size": size}) for i, size in enumerate(sizes)
    )
    features.labels, features.num_fields, features.default_emb_dim = ["label"], len(sizes), settings["embedding_dim"]
    features.total_features = sum(sizes)
    features.set_column_index()
    seed_everything(job["seed"])
    model = MODELS[job["model"]](
        features, settings, monitor="logloss", monitor_mode="min", early_stop_patience=job["patience"], verbose=0,
        embedding_regularizer=settings["embedding_regularizer"], metrics=["logloss", "AUC"], model_root=folder,
    )  # fmt: skip
    Path(model.model_dir).mkdir(parents=True, exist_ok=True)
    fit_end, train_end, size = int(data["fit_end"]), int(data["train_end"]), job["batch_size"]
    model.fit(Batches(data, 0, fit_end, size, True), job["epochs"], Batches(data, fit_end, train_end, 4096, False))
    np.save(job["out"], np.asarray(model.predict(Batches(data, train_end, len(data["label"]), 4096, False))))


def main():
    """All jobs, one after the other."""
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    for job in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        with tempfile.TemporaryDirectory() as folder:
            work(job, folder)


if __name__ == "__main__":
    main()
