"""The configuration of a federation: one TOML file, checked as a whole.

`experiment` reads the file and holds the checks across sections; `sections` holds its sections, `problems` those about
the problems, `engine` that of the machine, `prompt` that of their prompts, `personal` the one about personal adapters,
`supervision`, `coordination` and `aggregation` those of the three seams; `reference` describes every setting.
"""

from __future__ import annotations

from fedrlvr.config.aggregation import AggregationConfig
from fedrlvr.config.coordination import PubSwapCoordination
from fedrlvr.config.engine import EngineConfig
from fedrlvr.config.experiment import (
    Config,
    load_config,
    load_resolved,
    parse_config,
)
from fedrlvr.config.privacy import Noise, PrivacyConfig
from fedrlvr.config.problems import DataConfig
from fedrlvr.config.prompt import PromptConfig
from fedrlvr.config.sections import (
    EvaluateConfig,
    LoraConfig,
    ModelConfig,
    SamplingConfig,
    TrainConfig,
)
from fedrlvr.config.supervision import (
    Asking,
    CareSupervision,
    DemonstrationsSupervision,
    GeominSupervision,
    LabelsSupervision,
    MajoritySupervision,
    SelectionSupervision,
    Supervision,
    TrapoSupervision,
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
    "GeominSupervision",
    "LabelsSupervision",
    "LoraConfig",
    "MajoritySupervision",
    "ModelConfig",
    "Noise",
    "PrivacyConfig",
    "PromptConfig",
    "PubSwapCoordination",
    "SamplingConfig",
    "SelectionSupervision",
    "Supervision",
    "TrainConfig",
    "TrapoSupervision",
    "load_config",
    "load_resolved",
    "parse_config",
]
