"""Desks to test: a ledger with questions, a run directory around it, and the real command as a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from served_pages import PageProcess, served

from fedrlvr.config import parse_config
from fedrlvr.labels.desk.app import make_desk
from fedrlvr.labels.ledger import LabelLedger
from fedrlvr.supervision.types import Query
from fedrlvr.tasks.problem import Kind, Question

TOKEN = "a-token-of-these-tests"


def ask(
    ledger: LabelLedger,
    problem: str,
    prompt: str = "",
    *,
    rank: int = 1,
    step: int = 1,
    kind: Kind = "math",
    majority: str | None = "42",
    responses: tuple[str, ...] = ("It is 42.", "It is 41."),
) -> None:
    """Ask about a problem, for which 5 of 8 responses gave the majority's answer."""
    question = Question(prompt or f"What is {problem}?", problem, "sums", kind)
    ledger.ask(Query(question, step, rank, 0.5, 0.4, majority, 5, 8, responses), at=1.0 + rank)


def run_directory(path: Path, **changes: object) -> Path:
    """The directory of a run whose one client, clinic, asks people."""
    tree: dict[str, object] = {
        "federation": {"clients": ["clinic"]},
        "supervision": {"type": "care", "labels_from": "desk"},
        **changes,
    }
    path.mkdir(parents=True, exist_ok=True)
    config = parse_config(tree, where="a test")
    (path / "config.json").write_text(config.model_dump_json(), "utf-8")
    return path


def ledger_of(run: Path) -> LabelLedger:
    return LabelLedger(run / "clients" / "clinic" / "ledger.sqlite")


@dataclass
class Process(PageProcess):
    """`python -m fedrlvr desk` as it runs. log: the file that takes its stderr."""

    log: Path


def start(run: Path, *options: str, port: int = 0) -> Process:
    """The command on a run directory, once it takes connections; its stderr is in a file beside the run."""
    log = run / "desk.log"
    command = [sys.executable, "-m", "fedrlvr", "desk", str(run), "--port", str(port), *options]
    with log.open("a") as file:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=file, text=True, env={**os.environ, "FEDRLVR_DESK_TOKEN": TOKEN}
        )
    assert process.stdout is not None
    for line in process.stdout:
        if "#token=" in line:
            return Process(process, line.strip(), log)
    raise AssertionError(f"no desk: {process.wait(10)}: {log.read_text('utf-8')}")


@contextmanager
def desk(run: Path, *options: str, port: int = 0) -> Iterator[Process]:
    """A desk that `start` starts, ended with the context."""
    started = start(run, *options, port=port)
    try:
        yield started
    finally:
        started.kill()


@contextmanager
def serving(run: Path) -> Iterator[str]:
    """A desk in this process, which is quicker; its address with the token."""
    ledger = ledger_of(run)
    try:
        with served(make_desk(ledger, TOKEN, "clinic"), TOKEN) as url:
            yield url
    finally:
        ledger.close()


def error_of(text: str) -> str:
    """The error message in a refusal of the API."""
    tree = json.loads(text)
    assert list(tree) == ["error"]
    return str(tree["error"])
