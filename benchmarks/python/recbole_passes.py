"""RecBole's side of ``train_throughput``: a pass reads the data set that RecBole saved and trains an epoch on it. Of
``data_throughput`` (``reads_only``): it reads that and makes batches."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import torch
from passes import serve
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer, init_seed


def prepare(settings):
    """The model, ready; its weights go on from pass to pass."""
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(settings["threads"])
    fields = [*settings["dense"], *settings["sparse"], "label"]
    chosen = {
        "data_path": settings["atomic"], "load_col": {"inter": fields}, "USER_ID_FIELD": "user",
        "ITEM_ID_FIELD": "item", "LABEL_FIELD": "label", "numerical_features": settings["dense"],
        "train_neg_sample_args": None, "threshold": None, "shuffle": False,
        "eval_args": {"split": {"RS": [1.0, 0.0, 0.0]}, "order": "RO", "group_by": None, "mode": "labeled"},
        "metrics": ["AUC"], "valid_metric": "AUC", "epochs": 1, "train_batch_size": settings["batch_size"],
        "learner": "adam", "learning_rate": settings["lr"], "embedding_size": settings["embedding_dim"],
        "mlp_hidden_size": settings["deep"], "cross_layer_num": settings["cross_layers"], "structure": "parallel",
        "mixed": False, "reg_weight": 0.0, "dropout_prob": 0.0, "use_gpu": False, "show_progress": False, "worker": 0,
        "save_dataset": True, "checkpoint_dir": "saved", "state": "ERROR", "seed": 0, "reproducibility": True,
    }  # fmt: skip
    config = Config(model=settings["model"], dataset="throughput", config_dict=chosen)
    init_seed(0, True)
    dataset = create_dataset(config)
    saved = list(Path("saved").glob("throughput-*.pth"))
    if len(saved) != 1:
        raise RuntimeError(f"saved: expected one data set, found {saved}")
    loader = data_preparation(config, dataset)[0]
    config["dataset_save_path"] = str(saved[0])

    def fresh():
        return data_preparation(config, create_dataset(config))[0]

    if settings.get("reads_only"):
        return lambda: {"events": sum(len(batch) for batch in fresh())}
    model = get_model(config["model"])(config, loader._dataset)
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)

    def one_pass():
        start = time.perf_counter()
        train = fresh()
        trainer.fit(train, None, verbose=False, saved=False)
        loss = trainer.train_loss_dict[0] / len(train)
        return {"loss": float(loss), "steps": len(train), "seconds": time.perf_counter() - start}

    return one_pass


if __name__ == "__main__":
    serve(prepare)
