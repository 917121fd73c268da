"""Where a client's ledger lies. Imports nothing heavy: `fedrlvr desk` asks this before anything else."""

from __future__ import annotations

from pathlib import Path

from fedrlvr.config import Config


def ledger_file(config: Config, run_directory: Path, client: str) -> Path:
    """The ledger of a client of a run, also if the run's directory has been moved since."""
    if config.run.ledgers is not None:
        return config.run.ledgers / f"{client}.sqlite"
    return run_directory / "clients" / client / "ledger.sqlite"
