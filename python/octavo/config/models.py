"""The sections of a model: what all rankers share, one class per ``kind``, and their heads."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from octavo.config.section import Section, kinds

Activation = Literal["relu", "silu", "gelu", "hardswish", "sigmoid"]
NormKind = Literal["layer", "rms", "block", "swish_rms"]
Widths = list[PositiveInt]


class TableOptimizerConfig(Section):
    """The optimizer fused into the embedding tables' backward.

    ``eps`` and ``betas``: null = the kind's own default. ``weight_decay`` acts on the rows that an update reaches:
    those that the batch touches, or all (``kind=adam`` with ``lazy=false``).
    """

    kind: Literal["row_wise_adagrad", "adagrad", "adam", "sgd"] = "row_wise_adagrad"
    lr: PositiveFloat = 0.05
    eps: PositiveFloat | None = None
    weight_decay: float = Field(default=0.0, ge=0)
    betas: tuple[float, float] | None = Field(default=None, description="kind=adam: decay of both moments, in [0, 1)")
    lazy: bool = Field(
        default=True,
        description="kind=adam: rows that a batch does not touch stay as they are; false (not for dynamic tables): "
        "every row takes every update",
    )

    @model_validator(mode="after")
    def _keys_fit_the_kind(self) -> TableOptimizerConfig:
        if self.betas is not None and self.kind != "adam":
            raise ValueError(f"betas means nothing for kind={self.kind}; remove it")
        if not self.lazy and self.kind != "adam":
            raise ValueError(f"lazy=false means nothing for kind={self.kind}; remove it")
        if self.betas is not None and not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas: expected two numbers in [0, 1), found {list(self.betas)}")
        if self.eps is not None and self.kind == "sgd":
            raise ValueError("eps means nothing for kind=sgd; remove it")
        return self


class DynamicConfig(Section):
    """Tables of features whose encoding is ``dynamic``: an id gets a row at its ``admit_after``-th sighting; one not
    seen for ``max_age_hours`` of event time may lose it, null = none is too old.
    """

    admit_after: int = Field(default=1, ge=1, le=255)
    max_age_hours: PositiveFloat | None = None


class SharedBottomConfig(Section):
    """Each task has hidden layers of its own, ``tower`` wide, on what all share; none: a linear head.

    ``windows``: heads of several windows of one task are ``free``, or ``monotone``: p of a longer window is
    p_before + (1 - p_before) q, never below that of a shorter one.
    """

    kind: Literal["shared_bottom"] = "shared_bottom"
    tower: Widths = []
    windows: Literal["free", "monotone"] = "free"


class MMoEConfig(Section):
    """Multi-gate mixture of experts [Ma et al. 2018]: ``experts`` networks of hidden widths ``expert``, a gate and a
    tower for each task; ``windows`` as with shared_bottom.
    """

    kind: Literal["mmoe"] = "mmoe"
    experts: PositiveInt = 4
    expert: Widths = Field(default=[64], min_length=1)
    tower: Widths = []
    windows: Literal["free", "monotone"] = "free"


HeadsConfig = Annotated[SharedBottomConfig | MMoEConfig, Field(discriminator="kind"), kinds("shared_bottom", "mmoe")]


class ModelConfig(Section):
    """What every ranker has.

    ``embedding_dim``: width of every table. ``pooling``: of multi-valued features' rows. ``table_init``: half-width of
    the tables' uniform initial values. ``layer_init``: of the linear layers, ``torch`` (uniform to 1/sqrt(K), biases
    too) or ``xavier`` (normal, standard deviation sqrt(2 / (K + N)), biases 0: larger, as FuxiCTR has it). ``norm``,
    ``activation``, ``bias``: of every hidden layer; ``norm: null`` leaves the norm out, ``norm: swish_rms`` is its own
    activation and wants ``activation: null``. ``dropout``: share of a hidden layer's outputs that training leaves out.
    ``seed`` alone decides the initial values.
    """

    kind: str
    embedding_dim: PositiveInt = 32
    pooling: Literal["sum", "mean"] = "sum"
    norm: NormKind | None = "layer"
    activation: Activation | None = "hardswish"
    bias: bool = Field(
        default=True, description="biases of all layers but the heads' last ones (LoKA's No Bias: false)"
    )
    dropout: float = Field(default=0.0, ge=0, lt=1)
    table_init: float = Field(default=0.01, ge=0)
    layer_init: Literal["torch", "xavier"] = "torch"
    table_optimizer: TableOptimizerConfig = TableOptimizerConfig()
    dynamic: DynamicConfig = DynamicConfig()
    heads: HeadsConfig = SharedBottomConfig()
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _activation_fits_the_norm(self) -> ModelConfig:
        if self.norm == "swish_rms" and self.activation is not None:
            raise ValueError("norm=swish_rms is its own activation; set activation=null")
        return self


class DLRMConfig(ModelConfig):
    """DLRM [Naumov et al. 2019]. ``bottom``: hidden widths of the dense features' MLP, whose output is as wide as the
    tables; ``top``: hidden widths after the dot products.
    """

    kind: Literal["dlrm"] = "dlrm"
    bottom: Widths = [64]
    top: Widths = Field(default=[256, 128], min_length=1)
    embeddings_to_top: bool = Field(
        default=True, description="pass the embeddings to the top MLP beside their dot products"
    )


class DCNv2Config(ModelConfig):
    """DCN-V2 [Wang et al. 2021]. ``cross_layers``; ``rank``: of their matrices, null = full; ``structure``: the deep
    network ``deep`` takes the cross network's output (``stacked``) or its input (``parallel``).
    """

    kind: Literal["dcnv2"] = "dcnv2"
    cross_layers: PositiveInt = 3
    rank: PositiveInt | None = None
    structure: Literal["stacked", "parallel"] = "parallel"
    deep: Widths = Field(default=[256, 128], min_length=1)


class DeepFMConfig(ModelConfig):
    """DeepFM [Guo et al. 2017]: a factorization machine and the network ``deep`` on the same embeddings.

    A logit is a sum over all fields, so a step of the tables moves it further than in other models: their lr is lower.
    """

    kind: Literal["deepfm"] = "deepfm"
    table_optimizer: TableOptimizerConfig = TableOptimizerConfig(lr=0.02)
    deep: Widths = Field(default=[256, 128], min_length=1)


class DINConfig(ModelConfig):
    """Deep interest network [Zhou et al. 2018]. ``attention``: hidden widths of the activation unit; ``softmax``:
    weights of one history sum to 1 (the paper's do not); ``top``: hidden widths after it.
    """

    kind: Literal["din"] = "din"
    attention: Widths = Field(default=[64, 16], min_length=1)
    softmax: bool = False
    top: Widths = Field(default=[256, 128], min_length=1)


class WukongConfig(ModelConfig):
    """Wukong [Zhang et al. 2024]: ``layers`` of a factorization machine block that makes ``fmb_tokens`` embeddings and
    a linear compress block that makes ``lcb_tokens``.

    ``rank``: k of the projected X X^T Y, null = X X^T itself; ``fmb``: hidden widths of the block's MLP; ``bottom``:
    hidden widths of the dense features' MLP; ``top``: hidden widths after the last layer.
    """

    kind: Literal["wukong"] = "wukong"
    layers: PositiveInt = 3
    fmb_tokens: PositiveInt = 8
    lcb_tokens: PositiveInt = 8
    rank: PositiveInt | None = 8
    fmb: Widths = [128]
    bottom: Widths = [64]
    top: Widths = Field(default=[256, 128], min_length=1)


AnyModelConfig = Annotated[
    DLRMConfig | DCNv2Config | DeepFMConfig | DINConfig | WukongConfig,
    Field(discriminator="kind"),
    kinds("dlrm", "dcnv2", "deepfm", "din", "wukong"),
]
