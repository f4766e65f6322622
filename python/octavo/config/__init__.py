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
from octavo.config.sections import (
    DataConfig,
    DLRMConfig,
    OptimizerConfig,
    PlanConfig,
    RunConfig,
    TableOptimizerConfig,
    TrainingConfig,
)

__all__ = [
    "ConfigError",
    "DLRMConfig",
    "DataConfig",
    "OptimizerConfig",
    "PlanConfig",
    "RunConfig",
    "TableOptimizerConfig",
    "TrainingConfig",
    "build_config",
    "build_section",
    "config_hash",
    "load_config",
    "run_id",
    "save_config",
]
