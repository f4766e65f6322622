"""FuxiCTR's models, for the interpreter that has it. Its wheel leaves the model zoo out, so these are put together from
FuxiCTR's own layers as the zoo has them (checked against its repository at 2.3.10's models: DeepFM, DCNv2
``parallel``, DLRM with ``dot``); training loop, optimizer, regulariser, early stopping and initial values are
FuxiCTR's.
"""

from __future__ import annotations

import torch
from fuxictr.pytorch.layers import (
    CrossNetV2,
    FactorizationMachine,
    FeatureEmbedding,
    InnerProductInteraction,
    MLP_Block,
)
from fuxictr.pytorch.models import BaseModel


class DeepFM(BaseModel):
    """FuxiCTR's DeepFM: a factorization machine with a linear part, and an MLP."""

    def __init__(self, feature_map, settings, **kwargs):
        super().__init__(feature_map, "DeepFM", **kwargs)
        self.embedding_layer = FeatureEmbedding(feature_map, settings["embedding_dim"])
        self.fm = FactorizationMachine(feature_map)
        self.mlp = MLP_Block(
            feature_map.sum_emb_out_dim(), settings["deep"], "ReLU", 1, None, settings["dropout"], settings["norm"]
        )
        self.compile("adam", "binary_crossentropy", settings["lr"])
        self.reset_parameters()

    def forward(self, inputs):
        """``{"y_pred": [B, 1]}``."""
        x = self.get_inputs(inputs)
        emb = self.embedding_layer(x)
        return {"y_pred": self.output_activation(self.fm(x, emb) + self.mlp(emb.flatten(start_dim=1)))}


class DCNv2(BaseModel):
    """FuxiCTR's DCNv2, parallel: full-rank cross layers beside an MLP, one linear layer on both."""

    def __init__(self, feature_map, settings, **kwargs):
        super().__init__(feature_map, "DCNv2", **kwargs)
        self.embedding_layer = FeatureEmbedding(feature_map, settings["embedding_dim"])
        width = feature_map.sum_emb_out_dim()
        self.crossnet = CrossNetV2(width, settings["cross_layers"])
        self.mlp = MLP_Block(width, settings["deep"], "ReLU", None, None, settings["dropout"], settings["norm"])
        self.fc = torch.nn.Linear(width + settings["deep"][-1], 1)
        self.compile("adam", "binary_crossentropy", settings["lr"])
        self.reset_parameters()

    def forward(self, inputs):
        """``{"y_pred": [B, 1]}``."""
        emb = self.embedding_layer(self.get_inputs(inputs), flatten_emb=True)
        return {"y_pred": self.output_activation(self.fc(torch.cat([self.crossnet(emb), self.mlp(emb)], dim=-1)))}


class DLRM(BaseModel):
    """FuxiCTR's DLRM: a bottom MLP on the numbers, dot products of every pair, a top MLP on them and the bottom's
    output."""

    def __init__(self, feature_map, settings, **kwargs):
        super().__init__(feature_map, "DLRM", **kwargs)
        width = settings["embedding_dim"]
        self.dense = [name for name, spec in feature_map.features.items() if spec["type"] == "numeric"]
        self.embedding_layer = FeatureEmbedding(feature_map, width, not_required_feature_columns=self.dense)
        self.bottom = MLP_Block(len(self.dense), settings["bottom"], "ReLU", width, "ReLU")
        fields = feature_map.num_fields - len(self.dense) + 1
        self.interact = InnerProductInteraction(fields, output="inner_product")
        self.top = MLP_Block(fields * (fields - 1) // 2 + width, settings["top"], "ReLU", 1, self.output_activation)
        self.compile("adam", "binary_crossentropy", settings["lr"])
        self.reset_parameters()

    def forward(self, inputs):
        """``{"y_pred": [B, 1]}``."""
        x = self.get_inputs(inputs)
        dense = self.bottom(torch.stack([x[name].float() for name in self.dense], dim=-1))
        rows = torch.cat([self.embedding_layer(x), dense.unsqueeze(1)], dim=1)
        return {"y_pred": self.top(torch.cat([self.interact(rows), dense], dim=-1))}


MODELS = {"deepfm": DeepFM, "dcnv2": DCNv2, "dlrm": DLRM}
