"""A round's record, and metrics.jsonl, which holds a line for each of them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedrlvr.errors import CheckpointError
from fedrlvr.files import atomic_text, parse_json
from fedrlvr.reporting.observer import AlsoMeasured, Event, Observer, PersonalEnded, RoundEnded, RunStarted
from fedrlvr.wire.messages import Calibration, SourceScores


class RoundRecord:
    """One round's numbers: per client, per client and source, per exchange, and seconds by phase; how the clients'
    probes are calibrated; the server's step; the privacy loss so far of a client that trained in every round; and who
    was left out of it, with the reason. withheld: the clients whose own floor kept their reply back."""

    def __init__(self, round_: int) -> None:
        self.round = round_
        self.clients: dict[str, dict[str, float]] = {}
        self.calibrations: dict[str, dict[str, Calibration]] = {}
        self.scores: dict[str, list[SourceScores]] = {}
        self.seconds: dict[str, float] = {}
        self.exchanges: list[dict[str, Any]] = []
        self.server_step: dict[str, Any] = {}
        self.privacy: dict[str, Any] = {}
        self.left_out: dict[str, str] = {}
        self.withheld: set[str] = set()

    def client(self, name: str) -> dict[str, float]:
        """A client's numbers, to add to."""
        return self.clients.setdefault(name, {})

    def add_bytes(self, client: str, *, up: int = 0, down: int = 0) -> None:
        """Count bytes of messages to (down) and from (up) a client."""
        numbers = self.client(client)
        numbers["bytes_up"] = numbers.get("bytes_up", 0) + up
        numbers["bytes_down"] = numbers.get("bytes_down", 0) + down

    def sum_exchanges(self) -> None:
        """Add to each client's numbers what the round's exchanges came to for it."""
        for name, numbers in self.clients.items():
            shares = [exchange["clients"][name] for exchange in self.exchanges if name in exchange["clients"]]
            correct = [share["own_correct"] for share in shares if "own_correct" in share]
            if correct:
                numbers["public_pass@1"] = sum(correct) / len(correct)
            for key in ("swapped_in", "rescued"):
                numbers[key] = sum(share.get(key, 0) for share in shares)
            for way in ("up", "down"):
                numbers[f"bytes_{way}_exchanges"] = sum(share.get(f"bytes_{way}", 0) for share in shares)

    def to_json(self) -> dict[str, Any]:
        """The line of metrics.jsonl; numbers that are not finite become null."""
        clients = {
            name: {k: (v if math.isfinite(v) else None) for k, v in sorted(numbers.items())}
            | self.calibrations.get(name, {})
            for name, numbers in sorted(self.clients.items())
        }
        evaluate = scores_json(self.scores)
        record: dict[str, Any] = {"round": self.round, "clients": clients, "seconds": self.seconds}
        if self.left_out:
            record["left_out"] = dict(sorted(self.left_out.items()))
        if self.server_step:
            record["server_step"] = self.server_step
        if self.privacy:
            record["privacy"] = self.privacy
        if self.exchanges:
            record["exchanges"] = self.exchanges
        if evaluate:
            record["evaluate"] = evaluate
        return record


def scores_json(scores: Mapping[str, Sequence[SourceScores]]) -> dict[str, Any]:
    """Scores by client and source as a line of metrics.jsonl has them."""
    return {
        client: {s.source: {"n": s.n, "total": s.total, "squares": s.squares} for s in of_client}
        for client, of_client in sorted(scores.items())
    }


class MetricsLog(Observer):
    """The file metrics.jsonl of a run directory: a line for each round."""

    essential = True

    def __init__(self, directory: Path) -> None:
        self.path = directory / "metrics.jsonl"

    def notify(self, event: Event) -> None:
        """Append a line when a round ends, and add to the last one what is measured after it; when a run starts, drop
        the lines of rounds that have no checkpoint.

        Raises:
            CheckpointError: the file cannot be read or written, or lacks a round that has a checkpoint.
        """
        match event:
            case RunStarted(first_round=0):
                if self.path.exists():
                    atomic_text(self.path, "")
            case RunStarted():
                self._rewind(event.first_round - 1)
            case RoundEnded():
                self._append(event)
            case PersonalEnded():
                *lines, last = read_metrics(self.path.parent)
                self._replace([*lines, {**last, "personal": dict(event.record)}])
            case AlsoMeasured():
                *lines, last = read_metrics(self.path.parent)
                self._replace([*lines, {**last, "also": dict(event.record)}])

    def _append(self, event: RoundEnded) -> None:
        """Append the round's line; earlier lines stay valid whatever happens in between."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(event.record, sort_keys=True) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise CheckpointError(
                f"{self.path} cannot be written ({error.strerror}). Earlier rounds are intact: make room or mend the "
                "disk, then go on with --resume."
            ) from error

    def _rewind(self, last: int) -> None:
        kept = [line for line in read_metrics(self.path.parent) if line["round"] <= last]
        if [line["round"] for line in kept] != list(range(last + 1)):
            raise CheckpointError(
                f"{self.path} does not hold each of the rounds 0 to {last} once, which the checkpoint says are done. "
                "Restore the file, or start a new run."
            )
        self._replace(kept)

    def _replace(self, lines: Sequence[Mapping[str, Any]]) -> None:
        atomic_text(self.path, "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines))


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    """The lines of a run directory's metrics.jsonl. A last line cut short by a kill is left out.

    Raises:
        CheckpointError: the file is missing, or another line is not JSON; the text names the line.
    """
    path = directory / "metrics.jsonl"
    try:
        lines = path.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}).") from None
    records = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            record = parse_json(line)
            if not isinstance(record, dict) or not isinstance(record.get("round"), int):
                raise ValueError("not a round's record")
        except ValueError as error:
            raise CheckpointError(f"{path}, line {number}: {error}. Restore the file, or start a new run.") from None
        records.append(record)
    return records
