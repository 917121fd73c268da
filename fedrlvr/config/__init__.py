"""The configuration of a federation: one TOML file, checked as a whole.

`experiment` reads the file and holds the checks across sections; `sections` holds its sections, `problems`
those about the problems, `prompt` that of their prompts, `personal` the one about personal adapters, `methods` those of
supervision and coordination, and `aggregation` that of the third seam;
`reference` describes every setting.
"""

from __future__ import annotations

from fedrlvr.config.aggregation import AggregationConfig
from fedrlvr.config.experiment import (
    Config,
    load_config,
    load_resolved,
    parse_config,
)
from fedrlvr.config.methods import (
    Asking,
    CareSupervision,
    DemonstrationsSupervision,
    LabelsSupervision,
    MajoritySupervision,
    PubSwapCoordination,
    SelectionSupervision,
    Supervision,
)
from fedrlvr.config.problems import DataConfig
from fedrlvr.config.prompt import PromptConfig
from fedrlvr.config.sections import (
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
    "DemonstrationsSupervision",
    "EngineConfig",
    "EvaluateConfig",
    "LabelsSupervision",
    "LoraConfig",
    "MajoritySupervision",
    "ModelConfig",
    "PromptConfig",
    "PubSwapCoordination",
    "SamplingConfig",
    "SelectionSupervision",
    "Supervision",
    "TrainConfig",
    "load_config",
    "load_resolved",
    "parse_config",
]
