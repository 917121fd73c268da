"""Runs that a site has withdrawn from: state/withdrawn.json. Messages of these runs are refused."""

from __future__ import annotations

import json
from pathlib import Path

from fedrlvr.errors import CheckpointError
from fedrlvr.files import atomic_text, read_json
from fedrlvr.privacy.card import digest_of
from fedrlvr.privacy.decision_log import DecisionLog

FILE = "withdrawn.json"


def withdrawn_runs(state: Path) -> list[str]:
    """Ids of the runs, in the order of withdrawal.

    Raises:
        CheckpointError: the file is damaged; a message of any run is then refused.
    """
    path = state / FILE
    if not path.exists():
        return []
    try:
        runs = read_json(path)
        if not isinstance(runs, list) or not all(isinstance(run, str) for run in runs):
            raise ValueError("it is no list of runs")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}). Restore it, or withdraw again after deleting it."
        ) from None
    return runs


def withdraw_from(state: Path, run: str, by: str, statement: bytes | None = None) -> str:
    """Refuse a run from now on, and write that to the decision log; the log's head is returned.

    by: name of the person. statement: the server's withdrawal-NAME.json, whose digest goes into the log.

    Raises:
        CheckpointError: a file cannot be read or written.
    """
    runs = withdrawn_runs(state)
    if run not in runs:
        atomic_text(state / FILE, json.dumps([*runs, run]) + "\n")
    digest = None if statement is None else digest_of(statement)
    return DecisionLog(state).append("withdrawn", run=run, by=f"person {by}", digest=digest).digest
