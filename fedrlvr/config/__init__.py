"""The configuration of a federation: one TOML file, checked as a whole.

`experiment` reads the file and holds the checks across sections; `sections` and `methods` hold its sections, `methods`
those of the three seams; `reference` describes every setting.
"""

from __future__ import annotations

from fedrlvr.config.experiment import (
    Config,
    load_config,
    load_resolved,
    parse_config,
)
from fedrlvr.config.methods import (
    AggregationConfig,
    Asking,
    CareSupervision,
    LabelsSupervision,
    MajoritySupervision,
    PubSwapCoordination,
    SelectionSupervision,
    Supervision,
)
from fedrlvr.config.sections import (
    DataConfig,
    EngineConfig,
    EvaluateConfig,
    LoraConfig,
    ModelConfig,
    SamplingConfig,
    TrainConfig,
)

__all__ = [
    "AggregationConfig",
    "Asking",
    "CareSupervision",
    "Config",
    "DataConfig",
    "EngineConfig",
    "EvaluateConfig",
    "LabelsSupervision",
    "LoraConfig",
    "MajoritySupervision",
    "ModelConfig",
    "PubSwapCoordination",
    "SamplingConfig",
    "SelectionSupervision",
    "Supervision",
    "TrainConfig",
    "load_config",
    "load_resolved",
    "parse_config",
]
