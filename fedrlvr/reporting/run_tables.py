"""Tables of a run's numbers, a dict for each row, from the lines of metrics.jsonl: what `fedrlvr.load_run` gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from fedrlvr.reporting.scores import estimate, evaluations, label_lines, mean_of

Record = Mapping[str, Any]
Row = dict[str, Any]

_SUMS = ("tokens_sampled", "tokens_trained", "bytes_up", "bytes_down", "labels_asked")
_MEANS = ("reward", "zero_variance_groups", "response_length", "unfinished", "kl_to_base")


def round_rows(records: Sequence[Record]) -> list[Row]:
    """A row for each round: held-out pass@1 with its interval, means and sums over the clients, and seconds.

    pass@1, low and high are the mean over sources, None where the round was not evaluated. Sums are of all clients,
    tokens on public problems included.
    """
    scores = evaluations(records)
    rows = []
    for record in records:
        round_, clients = int(record["round"]), record.get("clients", {}).values()
        overall = scores[round_][0] if round_ in scores else None
        row: Row = {
            "round": round_,
            "pass@1": overall.mean if overall else None,
            "low": overall.low if overall else None,
            "high": overall.high if overall else None,
            "clients": sum(numbers.get("reward") is not None for numbers in clients),
            "left_out": len(record.get("left_out", {})),
            "seconds": sum(value or 0.0 for value in record.get("seconds", {}).values()),
        }
        row |= {name: mean_of(record, name) for name in _MEANS}
        row |= {name: _sum(record, name) for name in _SUMS}
        rows.append(row)
    return rows


def _sum(record: Record, name: str) -> float | None:
    """The sum over the clients that have a number, with its public part; None if none has."""
    keys = (name, f"public_{name}") if name.startswith("tokens") else (name,)
    values = [
        numbers[key] for numbers in record.get("clients", {}).values() for key in keys if numbers.get(key) is not None
    ]
    return sum(values) if values else None


def client_rows(records: Sequence[Record]) -> list[Row]:
    """A row for each round and client, with the numbers that the client has in that round."""
    return [
        {"round": int(record["round"]), "client": client, **_plain(numbers)}
        for record in records
        for client, numbers in record.get("clients", {}).items()
    ]


def evaluation_rows(records: Sequence[Record]) -> list[Row]:
    """A row for each evaluated round, client and source: n problems, pass@1 and its 95 % interval.

    personal: whether it is of the personal adapters that clients make after the last round.
    """
    return [
        {"round": round_, "personal": personal, "client": client, "source": source, **_score(sums)}
        for round_, personal, evaluated in _evaluated(records)
        for client, sources in evaluated.items()
        for source, sums in sources.items()
        if sums["n"]
    ]


def _evaluated(records: Sequence[Record]) -> Iterator[tuple[int, bool, Mapping[str, Any]]]:
    for record in records:
        yield int(record["round"]), False, record.get("evaluate", {})
        yield int(record["round"]), True, record.get("personal", {}).get("evaluate", {})


def _score(sums: Mapping[str, Any]) -> Row:
    score = estimate(int(sums["n"]), float(sums["total"]), float(sums["squares"]))
    return {"n": score.n, "pass@1": score.mean, "low": score.low, "high": score.high}


def exchange_rows(records: Sequence[Record]) -> list[Row]:
    """A row for each round, exchange and client, with the client's numbers of that exchange."""
    return [
        {"round": int(record["round"]), "exchange": number, "client": client, **_plain(numbers)}
        for record in records
        for number, exchange in enumerate(record.get("exchanges", ()), start=1)
        for client, numbers in exchange.get("clients", {}).items()
    ]


def label_rows(records: Sequence[Record]) -> list[Row]:
    """A row for each client that reports labels: asked for, used, in the ledger, and how good the votes were."""
    return [asdict(line) for line in label_lines(records) if line.client is not None]


def left_out_rows(records: Sequence[Record]) -> list[Row]:
    """A row for each round and client whose reply was not used, with the reason."""
    return [
        {"round": int(record["round"]), "client": client, "reason": reason}
        for record in records
        for client, reason in sorted(record.get("left_out", {}).items())
    ]


def second_rows(records: Sequence[Record]) -> list[Row]:
    """A row for each round, with the server's wall-clock seconds by phase."""
    return [{"round": int(record["round"]), **record.get("seconds", {})} for record in records]


def _plain(numbers: Mapping[str, Any]) -> Row:
    """The numbers without tables and lists, such as those of a calibration."""
    return {key: value for key, value in numbers.items() if value is None or isinstance(value, int | float)}


def columns(rows: Sequence[Row]) -> list[str]:
    """The names of all columns, in the order of their first row."""
    return list(dict.fromkeys(name for row in rows for name in row))
