"""Configuration of a run: typed sections, YAML with overrides, and the hash that names the run."""

from __future__ import annotations

from octavo.config.loading import (
    ConfigError,
    build_config,
    build_section,
    config_hash,
    load_config,
    run_id,
    save_config,
)
from octavo.config.models import (
    AnyModelConfig,
    DCNv2Config,
    DeepFMConfig,
    DINConfig,
    DLRMConfig,
    HeadsConfig,
    MMoEConfig,
    ModelConfig,
    SharedBottomConfig,
    TableOptimizerConfig,
    WukongConfig,
)
from octavo.config.sections import (
    DataConfig,
    LabelConfig,
    OptimizerConfig,
    PlanConfig,
    ProbeConfig,
    RunConfig,
    TrainingConfig,
    ValveConfig,
)

__all__ = [
    "AnyModelConfig",
    "ConfigError",
    "DCNv2Config",
    "DINConfig",
    "DLRMConfig",
    "DataConfig",
    "DeepFMConfig",
    "HeadsConfig",
    "LabelConfig",
    "MMoEConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PlanConfig",
    "ProbeConfig",
    "RunConfig",
    "SharedBottomConfig",
    "TableOptimizerConfig",
    "TrainingConfig",
    "ValveConfig",
    "WukongConfig",
    "build_config",
    "build_section",
    "config_hash",
    "load_config",
    "run_id",
    "save_config",
]
