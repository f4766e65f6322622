"""The sections of a run's configuration: data, training, plan; those of a model are in ``models.py``.

Every field is a YAML key; unknown keys are errors. Defaults are the values used when a key is left out.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from octavo.config.models import AnyModelConfig, DLRMConfig
from octavo.config.section import Section


class LabelConfig(Section):
    """A task as :class:`octavo.data.Label` has it: its outcome's column, the column of its delay, the task whose
    outcome starts the clock, windows such as ``7d``."""

    task: str
    delay: str | None = None
    anchor: str | None = None
    windows: list[str] = []


class DataConfig(Section):
    """Where the events come from.

    ``source``: a real data set below the data root (``movielens``, ``deskdrop``, ``hotel_bookings``, ``online_retail``,
    ``taobao_2h``: docs/examples.md), ``demo`` (a log octavo generates), ``world`` (a log
    simulated by an :class:`octavo.data.AdsWorld` preset) or ``log`` (a directory written by
    :class:`octavo.data.EventLog`). Logs that are made lie below the run's directory and are made once.
    """

    source: Literal["movielens", "deskdrop", "hotel_bookings", "online_retail", "taobao_2h", "demo", "world", "log"] = (
        "movielens"
    )
    path: str | None = Field(
        default=None, description="source=log: the log's directory; a real data set: the data root"
    )
    split: Literal["time", "user"] = Field(
        default="time", description="source=movielens: what the log ends with; user: each user's last 20%"
    )
    preset: str | None = Field(default=None, description="source=world: the preset's name (docs/adsworld.md)")
    events: PositiveInt | None = Field(default=None, description="source=demo or world: how many events to make")
    days: PositiveFloat | None = Field(default=None, description="source=world: how many days, instead of events")
    seed: int = Field(default=0, ge=0, description="source=demo or world: seed of the world")
    limit: PositiveInt | None = Field(default=None, description="use only the first events of the log")
    labels: list[LabelConfig] = Field(default=[], description="tasks and windows in place of the log's own")

    @model_validator(mode="after")
    def _keys_fit_the_source(self) -> DataConfig:
        if self.source == "log" and self.path is None:
            raise ValueError("source=log needs path: the directory of the event log")
        if self.source in ("demo", "world") and self.path is not None:
            raise ValueError(f"path means nothing for source={self.source}; remove it")
        if self.source not in ("demo", "world") and self.events is not None:
            raise ValueError(f"events means nothing for source={self.source}; use limit")
        if self.source != "movielens" and self.split != "time":
            raise ValueError(f"split={self.split} means nothing for source={self.source}; it is for source=movielens")
        if self.source == "world":
            if self.preset is None:
                raise ValueError("source=world needs preset: the name of an AdsWorld preset, for example reference")
            if (self.events is None) == (self.days is None):
                raise ValueError("source=world needs one of events and days")
        elif self.preset is not None or self.days is not None:
            raise ValueError(f"preset and days mean nothing for source={self.source}; they are for source=world")
        return self


class OptimizerConfig(Section):
    """The optimizer of the dense parameters. ``warmup`` is the number of batches over which lr rises linearly."""

    kind: Literal["adam", "adamw", "adagrad"] = "adam"
    lr: PositiveFloat = 1e-3
    weight_decay: float = Field(default=0.0, ge=0)
    warmup: int = Field(default=0, ge=0)


class ProbeConfig(Section):
    """A ``loka.Probe`` that every checkpoint carries: it looks at every ``every``-th update from ``after`` on."""

    every: PositiveInt = 100
    after: int = Field(default=0, ge=0, description="updates before the first it counts: weights move fast at first")


class ValveConfig(Section):
    """``loka.SafetyValve``: a look every ``every`` updates; a site whose errors may have grown by more than ``limit``
    goes back to FP32."""

    limit: float = Field(default=1.5, gt=1)
    every: PositiveInt = 100


class TrainingConfig(Section):
    """One streaming pass in event time, or several epochs over a fixed set.

    ``holdout`` is the fraction of the log's last events that is scored after training and never trained on.
    ``labels``: ``final`` trains on an example at once with the outcome that the log holds in the end; ``known`` trains
    on it when its label is known, as a live stream would: ``wait_hours`` after the event for each task, with what had
    happened by then (what comes later is a negative). Tasks without a delay are known at once.
    ``epochs`` passes over the training part; after each, ``validation`` (the fraction of the training part's last
    events, never trained on) is scored: without a better ``metric`` for ``patience`` epochs training ends, and the best
    epoch's weights are kept; ``plateau_factor`` multiplies the learning rates, of the tables too, after each epoch
    without a better one. ``shuffle`` takes each epoch's events in an order of its own, from memory.
    ``precision``: of the linear layers while training, masters stay FP32: ``bf16``, or ``plan``. ``plan_from`` a
    ``batch``: the forward's classes, chosen on an early batch by ``plan.min_sqnr_db`` and again every ``plan_every``
    updates (0: never). From ``probe``: those of all three directions, by the same demand on what ``probe`` has seen
    after ``plan_after`` updates; from ``file``: of the plan in ``plan_file`` (``octavo probe`` writes one). Both have
    ``valve``, which sends a site back to FP32 when its inputs drift.
    ``probe``: statistics of every linear layer's operands, kept in the checkpoints for ``octavo probe``; null: none.
    ``communication``: how the processes of a torchrun send dense gradients: ``fp32``, or in eight bits with error
    feedback (:mod:`octavo.loka.comm`), ``e4m3`` or ``int8``; nothing is sent by one process.
    ``clip_norm`` clips the dense gradients' global norm (the tables' update is fused into backward and not clipped).
    ``window`` is the number of events per point of the progressive metrics, ``window_hours`` instead a span of event
    time; ``by_domain`` adds each domain's. ``threads: null`` leaves torch's setting.
    """

    batch_size: PositiveInt = 256
    holdout: float = Field(default=0.2, ge=0, lt=1)
    labels: Literal["final", "known"] = "final"
    wait_hours: dict[str, NonNegativeFloat] = {}
    epochs: PositiveInt = 1
    shuffle: bool = False
    validation: float = Field(default=0.0, ge=0, lt=1)
    patience: PositiveInt = 1
    plateau_factor: float = Field(default=1.0, gt=0, le=1)
    metric: Literal["ne", "auc"] = "ne"
    precision: Literal["fp32", "bf16", "plan"] = "fp32"
    plan_every: int = Field(default=1000, ge=0)
    plan_from: Literal["batch", "probe", "file"] = "batch"
    plan_after: PositiveInt = Field(default=1000, description="plan_from=probe: updates in FP32 before the plan")
    plan_file: str | None = Field(default=None, description="plan_from=file: a plan in JSON")
    valve: ValveConfig = ValveConfig()
    probe: ProbeConfig | None = None
    communication: Literal["fp32", "e4m3", "int8"] = "fp32"
    optimizer: OptimizerConfig = OptimizerConfig()
    clip_norm: PositiveFloat | None = None
    window: PositiveInt = 5000
    window_hours: PositiveFloat | None = None
    by_domain: bool = True
    checkpoint_every: int = Field(default=100, ge=0, description="batches between checkpoints; 0 = only at the end")
    keep_checkpoints: PositiveInt = 2
    full_every: PositiveInt = Field(
        default=1, description="every n-th checkpoint is whole; those between hold the table rows touched since"
    )
    threads: PositiveInt | None = None
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _a_stream_or_epochs(self) -> TrainingConfig:
        if self.labels == "known" and (self.epochs > 1 or self.shuffle or self.validation):
            raise ValueError("labels=known is one pass in event time; leave out epochs, shuffle and validation")
        if self.plateau_factor < 1:
            given = f"plateau_factor={self.plateau_factor}"
            if not self.validation or self.epochs == 1:
                raise ValueError(f"{given} needs several epochs that are scored: set epochs and validation")
            if self.patience == 1:
                raise ValueError(f"{given}: patience=1 ends training at the first epoch without a better one; raise it")
        if self.labels == "final" and self.wait_hours:
            raise ValueError("wait_hours means nothing for labels=final; remove it or set labels=known")
        return self

    @model_validator(mode="after")
    def _a_plan_has_its_source(self) -> TrainingConfig:
        if self.plan_from != "batch" and self.precision != "plan":
            raise ValueError(
                f"plan_from={self.plan_from} means nothing for precision={self.precision}; set precision=plan"
            )
        if (self.plan_from == "file") != (self.plan_file is not None):
            raise ValueError("plan_from=file and plan_file go together: give both or neither")
        if self.plan_from == "probe":
            if self.probe is None:
                raise ValueError("plan_from=probe needs probe: for example training.probe.every=10")
            first = self.probe.after + self.probe.every
            if first > self.plan_after:
                raise ValueError(
                    f"plan_after={self.plan_after}: the probe looks first at update {first}; make plan_after larger or "
                    "probe.every smaller"
                )
        return self


class PlanConfig(Section):
    """What the low-precision plan must hold, and how its effect is measured.

    ``min_sqnr_db`` is the demand on every layer's output; ``compare`` are the classes applied to all layers for
    comparison; ``batch_sizes`` and ``rounds`` say how speed is measured; ``bootstrap`` is the number of resamples
    behind every 95% interval.
    """

    min_sqnr_db: float = 25.0
    calibration_events: PositiveInt = Field(
        default=2048, description="training events whose batch the plan is chosen on"
    )
    compare: list[Literal["bf16", "e4m3_row", "e4m3_weight_only", "int8_dynamic"]] = ["e4m3_row", "int8_dynamic"]
    batch_sizes: list[PositiveInt] = Field(default=[64, 512, 2048], min_length=1)
    rounds: PositiveInt = 30
    bootstrap: PositiveInt = Field(default=1000, ge=100)


class AdapterConfig(Section):
    """A Student Adapter (:class:`octavo.exfm.Adapter`): it ``replaces`` the teacher's predictions as targets, or
    ``adds`` a target; ``hidden: null`` is an online Platt calibrator."""

    mode: Literal["replaces", "adds"] = "replaces"
    hidden: PositiveInt | None = 8
    lr: PositiveFloat = 1e-2


class TeacherConfig(Section):
    """What a teacher is for a student (:class:`octavo.exfm.Distillation`): w, beta and alpha of ExFM, each a number or
    one for every task."""

    method: Literal["auxiliary_head", "one_head"] = "auxiliary_head"
    weight: NonNegativeFloat | dict[str, NonNegativeFloat] = 1.0
    gradient_scale: NonNegativeFloat | dict[str, NonNegativeFloat] = 1.0
    label_scale: NonNegativeFloat | dict[str, NonNegativeFloat] = 1.0
    adapter: AdapterConfig | None = None


class DistillationConfig(Section):
    """Soft labels from a data augmentation service (:class:`octavo.exfm.DAS`) in the directory ``das``.

    The run's log is added to the service as that of ``student`` (null: the run's name), and what nobody has asked its
    ``teachers`` is asked before training. ``tasks``: those that teachers know; null: all.
    """

    das: str
    student: str | None = None
    teachers: dict[str, TeacherConfig] = Field(min_length=1)
    tasks: list[str] | None = None


class PublishConfig(Section):
    """A run that is a teacher: every ``every`` updates a snapshot goes to the service in the directory ``das``, made
    where there is none, and may speak of events from ``delay_hours`` after its last one on."""

    das: str
    teacher: str = "teacher"
    every: PositiveInt = 100
    delay_hours: NonNegativeFloat = 0.0
    embeddings: bool = Field(default=False, description="records hold the teacher's embeddings besides its logits")


class RunConfig(Section):
    """A whole run. ``name`` is the readable part of the run id. ``distillation``: it is a student; ``publish``: it is a
    teacher."""

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    data: DataConfig = DataConfig()
    model: AnyModelConfig = DLRMConfig()
    training: TrainingConfig = TrainingConfig()
    plan: PlanConfig = PlanConfig()
    distillation: DistillationConfig | None = None
    publish: PublishConfig | None = None

    @model_validator(mode="after")
    def _a_teacher_is_a_stream(self) -> RunConfig:
        if self.publish is not None and (self.training.shuffle or self.training.epochs > 1):
            raise ValueError(
                "publish: a teacher that publishes while it trains goes through its log once, in event time; leave out "
                "training.shuffle and epochs, and publish the finished run by octavo das publish"
            )
        return self

    def resolved(self) -> dict[str, Any]:
        """Every key with its value, as plain JSON types."""
        return self.model_dump(mode="json")
