"""The configuration of a federation: one TOML file, checked as a whole.

`experiment` reads the file and holds the checks across sections; `sections` and `methods` hold its sections, `methods`
those of the three seams; `reference` lists every setting.
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
    Coordination,
    LabelsSupervision,
    MajoritySupervision,
    NoCoordination,
    PubSwapCoordination,
    SelectionSupervision,
    Supervision,
)
from fedrlvr.config.reference import (
    describe,
)
from fedrlvr.config.sections import (
    DataConfig,
    DirichletPartition,
    EngineConfig,
    EvaluateConfig,
    FederationConfig,
    IidPartition,
    LoraConfig,
    ModelConfig,
    Partition,
    RunConfig,
    SamplingConfig,
    Section,
    SourcePartition,
    TrainConfig,
)

__all__ = [
    "AggregationConfig",
    "Asking",
    "CareSupervision",
    "Config",
    "Coordination",
    "DataConfig",
    "DirichletPartition",
    "EngineConfig",
    "EvaluateConfig",
    "FederationConfig",
    "IidPartition",
    "LabelsSupervision",
    "LoraConfig",
    "MajoritySupervision",
    "ModelConfig",
    "NoCoordination",
    "Partition",
    "PubSwapCoordination",
    "RunConfig",
    "SamplingConfig",
    "Section",
    "SelectionSupervision",
    "SourcePartition",
    "Supervision",
    "TrainConfig",
    "describe",
    "load_config",
    "load_resolved",
    "parse_config",
]
