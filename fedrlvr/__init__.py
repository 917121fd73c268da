"""fedrlvr: organisations that may not pool their data post-train one reasoning LLM together.

    import fedrlvr
    result = fedrlvr.run("exp.toml")
    tables = fedrlvr.load_run(result.directory)

Importing this is cheap; torch, transformers and Flower load when a run starts.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedrlvr.version import __version__

if TYPE_CHECKING:
    from fedrlvr.config import Config
    from fedrlvr.reporting.loaded_run import LoadedRun
    from fedrlvr.simulation.run import RunResult

# Threads that wait should sleep, not spin: spinning ones take the cores from whoever else works on this machine, and
# slow a run beside another busy process. Read by OpenMP when torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Flower's telemetry and update check are off before anything imports Flower: nothing phones home.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"

__all__ = ["__version__", "load_run", "run"]


def run(config: Config | dict[str, Any] | Path | str) -> RunResult:
    """Run a federation on this machine.

    config: a `Config`, a nested dict of settings, or the path of a TOML file.

    Raises:
        FedrlvrError: whatever is wrong with the config, the data, the model, a round or the disk.
    """
    from fedrlvr.config import Config, load_config, parse_config

    if isinstance(config, dict):
        config = parse_config(config)
    elif not isinstance(config, Config):
        config = load_config(config)
    from fedrlvr.simulation.verdict import run as run_here

    return run_here(config).result


def load_run(directory: Path | str) -> LoadedRun:
    """Read a run's directory: its settings, its numbers as tables (pandas where it is installed), and its figures.

    Raises:
        ConfigError: the directory holds no run.
        CheckpointError: metrics.jsonl is damaged.
    """
    from fedrlvr.reporting.loaded_run import load_run as load

    return load(directory)
