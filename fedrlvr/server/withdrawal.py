"""A client's withdrawal from a run: what of it is taken out of the global adapter, by which way, and what remains.

    rewind      the run goes on from the newest checkpoint before the client's first round
    subtract    the client's part of each round is subtracted from the newest checkpoint (kept_adapters.py)
    restart     the run begins again at round 0

Each way ends with the client among `federation.withdrawn` in config.json, a line in RUN/decisions.jsonl, and the same
statement in RUN/withdrawal-NAME.json, which is for the client.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from fedrlvr.errors import CheckpointError, ConfigError
from fedrlvr.files import atomic_text, parse_json
from fedrlvr.privacy.card import digest_of
from fedrlvr.privacy.decision_log import DecisionLog
from fedrlvr.server.checkpoint import Checkpoint, memory_directories
from fedrlvr.server.kept_adapters import KeptAdapters
from fedrlvr.server.metrics_log import read_metrics
from fedrlvr.server.run_directory import ALONE_DIRECTORY, RUN_ID_FILE, is_deployed, locked, resume_command, run_id
from fedrlvr.server.saved_adapter import SavedRun
from fedrlvr.version import __version__

How = Literal["rewind", "subtract", "restart"]
MADE_AT_THE_END = ("adapter", "report.html", "verdict.json", "under-way.json")
"""Files that a run writes when it ends, and writes again when it goes on."""
OF_THE_LAST_ADAPTER = ("evaluate", "personal", "also")
"""Parts of the last line of metrics.jsonl that are about the adapter before a subtraction."""
_MARK = "withdrawn"


@dataclass(frozen=True)
class Statement:
    """Result of a withdrawal in sentences, for both sides.

    first_round, last_round: between which rounds the client had a part in the global adapter; None: in none.
    continues_after: the round after which the run goes on; None: it begins again. done, remains: in sentences.
    """

    run: str
    client: str
    how: How
    first_round: int | None
    last_round: int | None
    continues_after: int | None
    done: list[str]
    remains: list[str]
    fedrlvr: str = __version__

    def to_json(self) -> str:
        """The statement as the text of withdrawal-NAME.json."""
        return json.dumps(asdict(self), indent=1) + "\n"


def read_statement(path: Path, client: str, run: str) -> tuple[bytes, Statement]:
    """The server's statement about a client's withdrawal, as its bytes and read.

    Raises:
        ConfigError: it cannot be read, or is about another client or run.
    """
    try:
        data = path.read_bytes()
        statement = Statement(**parse_json(data.decode()))
        if not all(isinstance(line, str) for line in [*statement.done, *statement.remains]):
            raise ValueError("done and remains are lists of sentences")
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path} is no withdrawal-NAME.json of a server ({error}).") from None
    if (statement.client, statement.run) != (client, run):
        raise ConfigError(f"{path} is about another client or run than {client} in {run}.")
    return data, statement


def rounds_of(records: Sequence[Mapping[str, Any]], client: str) -> list[int]:
    """The rounds in which a client trained, or its responses to public problems went to others.

    records: lines of metrics.jsonl.
    """
    return [
        record["round"]
        for record in records
        if "num-examples" in record["clients"].get(client, {})
        or any(client in exchange["clients"] for exchange in record.get("exchanges", ()))
    ]


def plan(run: SavedRun, client: str, how: How | None = None) -> Statement:
    """Statement of what a withdrawal would do. Nothing is changed.

    how: None takes `rewind` where there is a checkpoint before the client's first round, else `subtract`.

    Raises:
        ConfigError: there is no such client, it has withdrawn already, the arm has no global adapter of several
            clients, or this way is not open; the text says which ways are.
        CheckpointError: metrics.jsonl or the kept adapters cannot be read.
    """
    federation, place = run.config.federation, run.directory
    if federation.arm != "federated":
        raise ConfigError(f"{place}: in the arm {federation.arm!r} no client has a part in another's adapter.")
    if client not in federation.names:
        raise ConfigError(f"--client {client}: there is no such client; the clients are {', '.join(federation.names)}.")
    if client in federation.withdrawn:
        raise ConfigError(f"--client {client}: it has withdrawn already (withdrawal-{client}.json).")
    if not [name for name in federation.training if name != client]:
        raise ConfigError(f"--client {client}: no other client is left that trains.")
    records = read_metrics(place) if (place / "metrics.jsonl").exists() else []
    rounds, saved = rounds_of(records, client), run.checkpoints.rounds()
    if not saved and how != "restart":
        raise ConfigError(f"{place}: the run has no checkpoint. --how restart begins it again without {client}.")
    before = [round_ for round_ in saved if not rounds or round_ < rounds[0]]
    closed = _closed(run, client, rounds)
    how = how or ("rewind" if before else "subtract" if not closed else None)
    if how is None or (how == "rewind" and not before) or (how == "subtract" and closed):
        raise ConfigError(
            f"{place}: {client} trained from round {rounds[0] if rounds else 0} on, and the checkpoints on disk are of "
            f"the rounds {', '.join(map(str, saved))} (run.keep_checkpoints). {closed or ''} "
            f"--how restart begins the run again without {client}.".replace("  ", " ")
        )
    newest = max(saved, default=0)
    ends = {"rewind": max(before, default=0), "subtract": newest, "restart": None}
    changes_id = is_deployed(place) and how != "subtract"
    if how == "rewind" and rounds and is_deployed(place) and not run.config.aggregation.rule.sends_whole_adapter:
        raise ConfigError(
            f"{place}: aggregation.type = {run.config.aggregation.type!r} goes on from what the organisations remember "
            f"of later rounds. --how restart begins the run again without {client}."
        )
    name = run_id(place) if is_deployed(place) else place.name
    first, last = (rounds[0], rounds[-1]) if rounds else (None, None)
    done, remains = _sentences(run, client, how, rounds, ends[how], newest)
    if changes_id:
        done.append("The run goes on under a new id, under which organisations remember nothing of it.")
    return Statement(name, client, how, first, last, ends[how], done, remains)


def _closed(run: SavedRun, client: str, rounds: Sequence[int]) -> str:
    """Why subtraction is not open; empty where it is."""
    if not run.config.aggregation.keep_adapters:
        return "Nothing can be subtracted, since the run keeps no adapters (aggregation.keep_adapters)."
    checkpoint = run.checkpoints.load()
    if checkpoint is not None and client in checkpoint.strategy.get(_MARK, ()):
        return ""  # a call that was cut short has subtracted it, and may have deleted its adapters
    kept = KeptAdapters(run.directory).clients()
    if missing := [round_ for round_ in rounds if client not in kept.get(round_, ())]:
        return f"Nothing can be subtracted: its adapters of the rounds {', '.join(map(str, missing))} are not kept."
    if alone := [round_ for round_ in rounds if kept[round_] == [client]]:
        return f"Nothing can be subtracted: in round {alone[0]} no other client's adapter was averaged."
    return ""


def _sentences(
    run: SavedRun, client: str, how: How, rounds: Sequence[int], ends: int | None, newest: int
) -> tuple[list[str], list[str]]:
    """What is done, and what remains."""
    away = "It gets no message of this run any more."
    if how == "restart":
        done = [f"All checkpoints are deleted, and the run begins again at round 0 without {client}.", away]
    elif not rounds:
        done = [f"{client} never trained in this run, so that nothing of it is in the global adapter.", away]
    elif how == "rewind":
        done = [
            f"The run goes on after round {ends}, before {client} first trained (round {rounds[0]}). The rounds after "
            "it are deleted, and trained again without it.",
            away,
        ]
    else:
        done = [
            f"The part of {client} in {len(rounds)} rounds ({rounds[0]} to {rounds[-1]}) is subtracted from the global "
            f"adapter of round {ends}: in each round the weighted mean with it, less the mean of the others. Its kept "
            "adapters and all older checkpoints are deleted.",
            away,
        ]
    remains = []
    if how == "subtract":
        if rounds and rounds[0] < newest:
            remains.append(
                f"Indirect influence: from round {rounds[0] + 1} on the others trained from global adapters that held "
                f"the part of {client}. What they learnt from there is in the adapter, and no subtraction takes it out."
            )
        if run.config.coordination.type != "none":
            remains.append(f"The others trained on responses of {client} to public problems in the exchanges.")
        if run.config.supervision.shares_probes:
            remains.append(f"The average of CARE's probes, in which {client} had a part.")
        if run.config.aggregation.weights == "fgrpo":
            remains.append("FGRPO's weights of the others, as far as they were computed from its rewards.")
        if run.config.aggregation.server_learning_rate != 1:
            remains.append("The length of the server's step in each round, one number, also went by its adapter.")
    elif how == "rewind" and rounds:
        remains.append(
            "Nothing in the global adapter: every number of it was computed before the first of these rounds."
        )
    if rounds:
        remains.append(
            f"Copies: the operator of the server, and every client that trained after round {rounds[0]}, were sent "
            "adapters in which it had a part. Exported adapters, backups, and adapters given to others are not changed."
        )
    kept = "of all rounds" if how == "subtract" else "of the rounds that stay"
    if how != "restart":
        remains.append(f"Its numbers in the lines of metrics.jsonl and in the state of the client weights {kept}.")
    remains.append("The run's decision log, with this statement's digest. Backups of the disk.")
    return done, remains


def withdraw(run: SavedRun, statement: Statement) -> None:
    """Do what a statement of `plan` says. A second call after a crash does what is left.

    Raises:
        CheckpointError: another process is at work on the run, or something cannot be read or written.
    """
    directory, client = run.directory, statement.client
    with locked(directory):
        if statement.how == "subtract":
            _subtract(run, client)
        else:
            _go_back(run, -1 if statement.continues_after is None else statement.continues_after)
        for name in MADE_AT_THE_END:
            _delete(directory / name)
        _delete(directory / "clients" / client)
        for made in (*directory.glob("clients/*/personal"), *directory.glob(f"{ALONE_DIRECTORY}*")):
            _delete(made)  # personal adapters hold the global one; training alone holds the client's own adapter
        if statement.how != "subtract":
            _delete(directory / RUN_ID_FILE)
        text = statement.to_json()
        atomic_text(directory / f"withdrawal-{client}.json", text)
        DecisionLog(directory).append(
            "withdrawn",
            client=client,
            how=statement.how,
            run=statement.run,
            digest=digest_of(text.encode()),
            first_round=statement.first_round,
            last_round=statement.last_round,
            continues_after=statement.continues_after,
        )
        federation = run.config.federation
        left = federation.model_copy(update={"withdrawn": [*federation.withdrawn, client]})
        config = run.config.model_copy(update={"federation": left})
        atomic_text(directory / "config.json", config.model_dump_json(indent=2) + "\n")


def next_command(run: SavedRun) -> str:
    """The command that goes on with the run."""
    return resume_command(run.directory)


def subtracted(checkpoint: Checkpoint, kept: KeptAdapters, client: str) -> Checkpoint:
    """A checkpoint without a client's part of every kept round.

    Raises:
        CheckpointError: a kept round cannot be read, or has no other client.
    """
    if client in checkpoint.strategy.get(_MARK, ()):  # a call that was cut short has subtracted it
        return checkpoint
    total = torch.zeros_like(numbers := checkpoint.adapter.flat())
    for round_, clients in kept.clients().items():
        if client in clients and round_ <= checkpoint.round:
            try:
                total += kept.load(round_).part_of(client)
            except ValueError as error:
                raise CheckpointError(f"{kept.directories.path(round_)}: {error}.") from None
    strategy = {**checkpoint.strategy, _MARK: [*checkpoint.strategy.get(_MARK, ()), client]}
    # What the server's step remembers is the last mean change, in which the client had a part.
    return replace(checkpoint, adapter=checkpoint.adapter.filled(numbers - total), strategy=strategy, step={})


def _subtract(run: SavedRun, client: str) -> None:
    checkpoint, kept = run.checkpoints.load(), KeptAdapters(run.directory)
    assert checkpoint is not None
    checkpoints = replace(run.checkpoints, keep=1)
    checkpoints.save(subtracted(checkpoint, kept, client))
    kept.remove(client)
    *lines, last = read_metrics(run.directory)
    lines.append({name: value for name, value in last.items() if name not in OF_THE_LAST_ADAPTER})
    text = "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines)
    atomic_text(run.directory / "metrics.jsonl", text)


def _go_back(run: SavedRun, last: int) -> None:
    """Delete the rounds after `last`; the lines of metrics.jsonl go when the run goes on."""
    directories = [run.checkpoints.directories, KeptAdapters(run.directory).directories]
    directories += [memory_directories(run.directory, name) for name in run.config.federation.names]
    for rounds in directories:
        for round_ in rounds.rounds():
            if round_ > last:
                rounds.remove(round_)


def _delete(path: Path) -> None:
    try:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be deleted ({error.strerror}).") from error
