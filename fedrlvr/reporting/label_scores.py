"""What the records of a run (the lines of metrics.jsonl) say of its labels: how many were asked for and used, what
became of the problems, how often majorities were right, and whether the probes' P1 holds what it says.

Counts only: which problems were asked about, and what was answered, never leaves a client.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedrlvr.reporting.scores import natural

FATES = ("share_query", "share_known", "share_reliable", "share_masked")
"""Keys of the shares of a client's problems: asked about, labelled before, trained on as voted, not trained on."""
Table = dict[str, list[float]]
"""Of P1 by tenths: `n` problems, the `sum` of their P1, and how many majorities were `right`."""


@dataclass(frozen=True, slots=True)
class LabelLine:
    """A client's labels over a run; client None: all clients'.

    asked, used: over the rounds; a label is used each time a group is trained with it. held: in the ledger at the end.
    majority_right: share of the labelled groups whose majority is right. trusted_right: of the majorities that were
    trained on; gap: correlation of the score S with the true gap, mean over rounds. The last two are known in
    experiments alone (`supervision.audit`). None where there is nothing to say.
    """

    client: str | None
    asked: int
    used: int
    held: int
    majority_right: float | None
    trusted_right: float | None
    gap: float | None


def label_lines(records: Sequence[Mapping[str, Any]]) -> list[LabelLine]:
    """A line for each client, in natural order, and one for all; none where no client tells of labels."""
    told: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        for client, numbers in record.get("clients", {}).items():
            if numbers.get("labels_asked") is not None:
                told.setdefault(client, []).append(numbers)
    if not told:
        return []
    return [_line(name, [told[name]]) for name in sorted(told, key=natural)] + [_line(None, list(told.values()))]


def _line(client: str | None, rounds: Sequence[Sequence[Mapping[str, Any]]]) -> LabelLine:
    """rounds: of each client, its numbers by round."""
    every = [numbers for own in rounds for numbers in own]
    return LabelLine(
        client,
        asked=sum(int(numbers["labels_asked"]) for numbers in every),
        used=sum(int(numbers.get("labels_used") or 0) for numbers in every),
        held=sum(int(own[-1].get("labels_total") or 0) for own in rounds),
        majority_right=_weighted(every, "majority_right", "labels_used"),
        trusted_right=_weighted(every, "audit_reliable_right", "share_reliable"),
        gap=_weighted(every, "audit_gap_correlation", None),
    )


def _weighted(every: Iterable[Mapping[str, Any]], key: str, by: str | None) -> float | None:
    """The mean of a number where there is one; None without any weight."""
    pairs = [(n[key], 1.0 if by is None else n.get(by) or 0.0) for n in every if n.get(key) is not None]
    whole = sum(weight for _, weight in pairs)
    return sum(value * weight for value, weight in pairs) / whole if whole else None


def shares(records: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[int, tuple[float, ...]]]]:
    """By client, in natural order, its rounds and the shares of `FATES` in each."""
    found: dict[str, list[tuple[int, tuple[float, ...]]]] = {}
    for record in records:
        for client, numbers in record.get("clients", {}).items():
            parts = tuple(numbers.get(key) for key in FATES)
            if any(part is not None for part in parts):
                row = (int(record["round"]), tuple(float(part or 0.0) for part in parts))
                found.setdefault(client, []).append(row)
    return {client: found[client] for client in sorted(found, key=natural)}


def mean_shares(
    clients: Mapping[str, Sequence[tuple[int, tuple[float, ...]]]],
) -> list[tuple[int, tuple[float, ...]]]:
    """The mean over the clients of each round."""
    by_round: dict[int, list[tuple[float, ...]]] = {}
    for rows in clients.values():
        for round_, parts in rows:
            by_round.setdefault(round_, []).append(parts)
    return [
        (round_, tuple(sum(column) / len(rows) for column in zip(*rows, strict=True)))
        for round_, rows in sorted(by_round.items())
    ]


def calibration(records: Sequence[Mapping[str, Any]], key: str) -> Table | None:
    """All clients' and rounds' problems together; None without any.

    key: `calibration` (labelled problems, judged before they were learnt from) or `audit_calibration` (all).
    """
    tables = [n[key] for record in records for n in record.get("clients", {}).values() if n.get(key)]
    if not tables:
        return None
    added = {
        name: [float(sum(column)) for column in zip(*(table[name] for table in tables), strict=True)]
        for name in ("n", "sum", "right")
    }
    return added if any(added["n"]) else None


def calibration_points(table: Table) -> list[tuple[float, float, float]]:
    """Of each tenth that is not empty: mean P1, share of majorities that are right, and number of problems."""
    columns = zip(table["n"], table["sum"], table["right"], strict=True)
    return [(total / n, right / n, n) for n, total, right in columns if n]
