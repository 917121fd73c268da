"""Runs to watch: directories with the files of a run, as small or as large as a test needs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from run_samples import numbers, score
from served_pages import PageProcess, served

from fedrlvr.config import parse_config
from fedrlvr.pages.server import PageWithDesks
from fedrlvr.reporting.absence import FAILED_WORDS, LATE_WORDS, WITHHELD_WORDS
from fedrlvr.reporting.responses import LoggedResponse
from fedrlvr.reporting.verdict import ClientVerdict, Verdict
from fedrlvr.reporting.watch.app import make_watch
from fedrlvr.reporting.watch.desks import Desks
from fedrlvr.reporting.watch.hub import Hub

TOKEN = "a-token-of-these-tests"
CLIENTS = ("ann", "bob", "cyd")


def write_run(
    directory: Path, records: Sequence[Mapping[str, Any]], *, rounds: int = 4, finished: bool = False, **changes: Any
) -> Path:
    """A run's config.json and metrics.jsonl, and adapter/ if it is finished."""
    directory.mkdir(parents=True, exist_ok=True)
    tree = {"run": {"name": directory.name}, "federation": {"clients": list(CLIENTS)}, "train": {"rounds": rounds}}
    for section, values in changes.items():
        tree[section] = {**tree.get(section, {}), **values}
    (directory / "config.json").write_text(parse_config(tree, where="a test").model_dump_json(), "utf-8")
    (directory / "metrics.jsonl").write_text("".join(line(record) for record in records), "utf-8")
    if finished:
        (directory / "adapter").mkdir(exist_ok=True)
    return directory


def line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, sort_keys=True) + "\n"


def round_record(round_: int, clients: Sequence[str] = CLIENTS, **more: Any) -> dict[str, Any]:
    """A round in which everybody takes part; evaluated in round 0 and every second one."""
    trained = {
        client: numbers(0.1 * round_ + 0.05 * place, **{"num-examples": 8, "weight": 1 / len(clients)})
        for place, client in enumerate(clients)
    }
    record: dict[str, Any] = {
        "round": round_,
        "clients": trained if round_ else {client: {"bytes_up": 10, "bytes_down": 500} for client in clients},
        "seconds": {"train": 4.0, "aggregate": 1.0} if round_ else {},
    }
    if round_ % 2 == 0:
        record["evaluate"] = {client: {"sum": score(20, min(4 + 2 * round_, 20))} for client in clients}
        record["seconds"]["evaluate"] = 2.0
    return {**record, **more}


def everything(rounds: int = 4) -> list[dict[str, Any]]:
    """Records with something for every view: exchanges, labels, a server's step, and clients that are left out."""
    records = [round_record(round_) for round_ in range(rounds + 1)]
    for record in records[1:]:
        round_ = record["round"]
        record["server_step"] = {
            "learning_rate": 1.0 + 0.1 * round_,
            "mean_cosine": 0.2,
            "mean_norm": 1.5,
            "norms": dict.fromkeys(CLIENTS, 2.0),
            "cosines": {a: {b: 0.1 * round_ for b in CLIENTS if b != a} for a in CLIENTS},
        }
        record["exchanges"] = [
            {
                "exchange": 1,
                "problems": 2,
                "pool": 5 + round_,
                "unsolved": 0.5,
                "clients": {"ann": {"sent": 4, "dropped_duplicate": 1}},
            }
        ]
        for values in record["clients"].values():
            values |= {"labels_asked": 2, "labels_used": 2, "labels_total": 2 * round_, "swapped_in": 1, "rescued": 1}
            values |= {"share_query": 0.2, "share_known": 0.1, "share_reliable": 0.3, "share_masked": 0.4}
    last = records[-1]
    for client in ("bob", "cyd"):
        last["clients"][client] = {"bytes_up": 0, "bytes_down": 500}
    last["left_out"] = {
        "bob": f"round {rounds}: {LATE_WORDS} 60 s from bob",
        "cyd": f"round {rounds}, cyd: {FAILED_WORDS} (no memory)",
    }
    records[1]["left_out"] = {"cyd": f"round 1, cyd: {WITHHELD_WORDS} (too few groups)"}
    return records


def response(**changes: Any) -> LoggedResponse:
    """A right response; `changes` make it another."""
    values: dict[str, Any] = {
        "round": 1,
        "problem": "p1",
        "source": "sum",
        "prompt": "6 + 5?",
        "text": "6 + 5 is 11 #### 11",
        "answer": "11",
        "gold": "11",
        "reward": 1.0,
        "grade": 1.0,
        "fate": "known",
        "finished": True,
        "tokens": 9,
        "mean_logp": -0.1,
    }
    return LoggedResponse(**{**values, **changes})


def wrong(**changes: Any) -> LoggedResponse:
    return response(**{"text": "6 + 5 is 12 #### 12", "answer": "12", "reward": 0.0, "grade": 0.0, **changes})


def write_responses(directory: Path, client: str, responses: Sequence[LoggedResponse]) -> Path:
    path = directory / "clients" / client / "responses.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(asdict(entry)) + "\n" for entry in responses), "utf-8")
    return path


def write_verdict(directory: Path, rounds: int) -> None:
    """A verdict in which ann gains and bob loses."""
    rates = {"ann": (0.0, 1.0), "bob": (1.0, 0.0)}
    lines = [
        ClientVerdict.of(client, {"base": [0.0] * 40, "alone": [alone] * 40, "federated": [together] * 40})
        for client, (alone, together) in rates.items()
    ]
    Verdict(rounds, lines, {}, ["The learning rates differ."]).write(directory)


def full_run(directory: Path) -> Path:
    """A finished run with something for every view."""
    write_run(directory, everything(), finished=True, supervision={"type": "care", "budget": 0.2})
    write_responses(directory, "ann", [response(), wrong(problem="p2"), wrong(round=2), response(round=3)])
    write_responses(directory, "bob", [wrong(round=3, grade=None, gold=None, fate="trusted")])
    write_verdict(directory, 4)
    return directory


def large_records(rounds: int, clients: int) -> Iterator[dict[str, Any]]:
    """Records of many clients over many rounds, with one client late in each."""
    names = [f"site-{number}" for number in range(1, clients + 1)]
    extra = {"loss": 0.01, "tokens_trained": 4637, "unfinished": 0.0026041, "unreadable": 0.0052083}
    for round_ in range(rounds + 1):
        record = round_record(round_, names)
        for place, values in enumerate(record["clients"].values()):
            values |= {
                **extra,
                "kl_to_base": 0.0849192945 * (1 + place / 7),
                "seconds_evaluate": 3.76463 + round_ / 1000,
            }
            values["grad_norm"] = 0.1471015 + (round_ * 31 + place * 17) % 23 / 100
        if round_:
            late = names[round_ % clients]
            record["clients"][late] = {"bytes_down": 500, "bytes_up": 0}
            record["left_out"] = {late: f"round {round_}: {LATE_WORDS} 60 s from {late}"}
        yield record


def large_run(directory: Path, rounds: int, clients: int) -> Path:
    """A run's files with so many rounds and clients."""
    write_run(directory, [], rounds=rounds, federation={"clients": [f"site-{n}" for n in range(1, clients + 1)]})
    with (directory / "metrics.jsonl").open("w", encoding="utf-8") as file:
        for record in large_records(rounds, clients):
            file.write(line(record))
    (directory / "adapter").mkdir()
    return directory


@contextmanager
def serving(*roots: Path) -> Iterator[str]:
    """The page's server in this process; its address with the token."""
    hub = Hub(list(roots))
    desks = Desks(hub.roots, lambda: hub.runs, TOKEN)
    hub.start()
    try:
        with served(PageWithDesks(make_watch(hub, TOKEN, desks=desks), desks.application), TOKEN, force=False) as url:
            try:
                yield url
            finally:
                hub.close()  # ends the streams of events, for which the server waits
    finally:
        hub.close()
        desks.close()


def start_watch(*roots: Path, state: Path, port: int = 0) -> PageProcess:
    """The command, once it takes connections. state: takes the kept token."""
    command = [sys.executable, "-m", "fedrlvr", "watch", *map(str, roots), "--port", str(port)]
    environment = {**os.environ, "XDG_STATE_HOME": str(state)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    assert process.stdout is not None
    for words in process.stdout:
        if "#token=" in words:
            return PageProcess(process, words.strip())
    raise AssertionError(f"no page: {process.wait(10)}")
