"""What the records of a run (the lines of metrics.jsonl) say: pass@1 before and after with 95 % intervals, and totals.

The interval of a mean rate m over n problems is Wilson's score interval (Wilson 1927) for an effective number of
problems, n m (1 - m) / v, v the variance of the rates. With one sample per problem every rate is 0 or 1, v is m (1 - m)
and the interval is Wilson's own for n; with several samples v is smaller, and for many problems the interval tends to
m +- z sqrt(v / n). So that a few problems of equal rates do not pass for certainty, v counts one more problem, of
variance m (1 - m): with S the sum of (rate - m)^2, v = (S + m (1 - m)) / (n + 1).

Intervals of a sum or difference of independent means are made of theirs by square-and-add (Newcombe 1998, method 10;
Zou and Donner 2008): from x with [a, b] and y with [c, d] on

    x - y:  low = x - y - sqrt((x - a)^2 + (d - y)^2)      high = x - y + sqrt((b - x)^2 + (y - c)^2)

which for symmetric intervals is the normal approximation with added variances, and unlike it does not claim certainty
where a rate is exactly 0 or 1.

Before and after are measured on the same problems, so a paired interval would be narrower. Only sums per source leave
a client, not each problem's outcome; so they are treated as independent, which is conservative.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Z = 1.959963984540054
"""Standard normal quantile of a two-sided 95 % interval."""

Sums = tuple[int, float, float]
"""Of the rates of n problems: n, their sum, the sum of their squares."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean (or a difference of means) in parts of 1, its 95 % interval, and the number of problems it rests on."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """Before and after of one line of the table; None where that was not evaluated.

    client, source: None stands for all of them.
    """

    client: str | None
    source: str | None
    before: Estimate | None
    after: Estimate | None

    @property
    def change(self) -> Estimate | None:
        """After minus before."""
        if self.before is None or self.after is None:
            return None
        return difference(self.after, self.before)


@dataclass(frozen=True, slots=True)
class Scores:
    """Pass@1 of a run: round 0 is before, the last evaluated round is after.

    after_round: that round; None if nothing was evaluated since round 0.
    lines: per client and source. clients: per client, the mean over its sources. sources: all clients' problems of a
    source taken together. overall: the mean over sources, each counting the same.
    """

    after_round: int | None
    lines: list[Comparison]
    clients: list[Comparison]
    sources: list[Comparison]
    overall: Comparison


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over the rounds of a run.

    bytes_up, bytes_down: by client. tokens_sampled, tokens_trained: by all clients, on public problems too. wall: the
    server's seconds by phase. client_seconds: the clients' own seconds by phase, added up. exchanges_up,
    exchanges_down: bytes of public exchanges, by all clients, counted in the others already; None without exchanges.
    """

    rounds: int
    bytes_up: dict[str, int]
    bytes_down: dict[str, int]
    tokens_sampled: int
    tokens_trained: int
    wall: dict[str, float]
    client_seconds: dict[str, float]
    exchanges_up: int | None = None
    exchanges_down: int | None = None


def estimate(n: int, total: float, squares: float) -> Estimate:
    """Mean rate of n problems and its interval, from the sums of the rates and of their squares.

    Raises:
        ValueError: n is not positive.
    """
    if n < 1:
        raise ValueError("an estimate needs at least one problem")
    mean = min(max(total / n, 0.0), 1.0)
    widest = mean * (1 - mean)
    variance = (max(squares - n * mean * mean, 0.0) + widest) / (n + 1)
    effective = n * widest / variance if variance else n
    centre = (mean + Z * Z / (2 * effective)) / (1 + Z * Z / effective)
    half = Z / (1 + Z * Z / effective) * math.sqrt(widest / effective + (Z / (2 * effective)) ** 2)
    return Estimate(mean, max(0.0, min(centre - half, mean)), min(1.0, max(centre + half, mean)), n)


def difference(x: Estimate, y: Estimate) -> Estimate:
    """x - y with its interval, taken as independent; n is the smaller of the two."""
    mean = x.mean - y.mean
    low = mean - math.hypot(x.mean - x.low, y.high - y.mean)
    return Estimate(mean, low, mean + math.hypot(x.high - x.mean, y.mean - y.low), min(x.n, y.n))


def macro_mean(parts: Sequence[Estimate]) -> Estimate:
    """The unweighted mean of independent estimates with its interval; n is their sum.

    Raises:
        ValueError: there are none.
    """
    if not parts:
        raise ValueError("a mean needs at least one estimate")
    k = len(parts)
    mean = sum(part.mean for part in parts) / k
    down = math.hypot(*(part.mean - part.low for part in parts)) / k
    up = math.hypot(*(part.high - part.mean for part in parts)) / k
    return Estimate(mean, mean - down, mean + up, sum(part.n for part in parts))


def summarise(records: Sequence[Mapping[str, Any]]) -> Scores | None:
    """Pass@1 before and after; None if no round was evaluated."""
    evaluated = {int(record["round"]): _sums(record) for record in records if record.get("evaluate")}
    if not evaluated:
        return None
    after_round = max((round_ for round_ in evaluated if round_ > 0), default=None)
    before = evaluated.get(0, {})
    after = evaluated[after_round] if after_round is not None else {}
    cells = sorted({*before, *after}, key=lambda cell: (natural(cell[0]), cell[1]))
    names = list(dict.fromkeys(client for client, _ in cells))
    sources = sorted({source for _, source in cells})
    return Scores(
        after_round,
        lines=[Comparison(c, s, _cell(before, c, s), _cell(after, c, s)) for c, s in cells],
        clients=[Comparison(c, None, _of_client(before, c), _of_client(after, c)) for c in names],
        sources=[Comparison(None, s, _pooled(before).get(s), _pooled(after).get(s)) for s in sources],
        overall=Comparison(None, None, _overall(before), _overall(after)),
    )


def evaluations(records: Sequence[Mapping[str, Any]]) -> dict[int, tuple[Estimate, dict[str, Estimate]]]:
    """By evaluated round: the overall pass@1, and that of each source."""
    found = {}
    for record in records:
        sums = _sums(record)
        overall = _overall(sums)
        if overall is not None:
            found[int(record["round"])] = (overall, _pooled(sums))
    return found


def series(records: Sequence[Mapping[str, Any]], key: str) -> dict[str, list[tuple[int, float]]]:
    """A number of each client over the rounds: (round, value) where it has one. Clients in natural order."""
    found: dict[str, list[tuple[int, float]]] = {}
    for record in records:
        for client, numbers in record.get("clients", {}).items():
            if numbers.get(key) is not None:
                found.setdefault(client, []).append((int(record["round"]), float(numbers[key])))
    return {client: found[client] for client in sorted(found, key=natural)}


def mean_reward(record: Mapping[str, Any]) -> float | None:
    """Mean over the clients that trained in this round; None if none did."""
    rewards = [n["reward"] for n in record.get("clients", {}).values() if n.get("reward") is not None]
    return sum(rewards) / len(rewards) if rewards else None


def totals(records: Sequence[Mapping[str, Any]]) -> Totals:
    """Bytes, tokens and seconds of a run, summed over its rounds."""
    up: dict[str, int] = {}
    down: dict[str, int] = {}
    wall: dict[str, float] = {}
    own: dict[str, float] = {}
    sampled = trained = 0
    for record in records:
        for phase, seconds in record.get("seconds", {}).items():
            wall[phase] = wall.get(phase, 0.0) + (seconds or 0.0)
        for client, numbers in record.get("clients", {}).items():
            up[client] = up.get(client, 0) + int(numbers.get("bytes_up") or 0)
            down[client] = down.get(client, 0) + int(numbers.get("bytes_down") or 0)
            for whose in ("", "public_"):
                sampled += int(numbers.get(f"{whose}tokens_sampled") or 0)
                trained += int(numbers.get(f"{whose}tokens_trained") or 0)
            for key, value in numbers.items():
                if key.startswith("seconds_") and value is not None:
                    phase = key.removeprefix("seconds_")
                    own[phase] = own.get(phase, 0.0) + value
    rounds = max((int(record["round"]) for record in records), default=0)
    order = sorted(up, key=natural)
    return Totals(
        rounds,
        {c: up[c] for c in order},
        {c: down[c] for c in order},
        sampled,
        trained,
        wall,
        dict(sorted(own.items())),
        exchanges_up=_sum_of(records, "bytes_up_exchanges"),
        exchanges_down=_sum_of(records, "bytes_down_exchanges"),
    )


def _sum_of(records: Sequence[Mapping[str, Any]], key: str) -> int | None:
    found = [n[key] for record in records for n in record.get("clients", {}).values() if n.get(key) is not None]
    return int(sum(found)) if found else None


def natural(name: str) -> list[tuple[str, int]]:
    """Sort key that puts client-2 before client-10."""
    return [(text, int(digits or 0)) for text, digits in re.findall(r"([^0-9]*)([0-9]*)", name)]


def _sums(record: Mapping[str, Any]) -> dict[tuple[str, str], Sums]:
    return {
        (client, source): (int(score["n"]), float(score["total"]), float(score["squares"]))
        for client, sources in record.get("evaluate", {}).items()
        for source, score in sources.items()
        if score["n"]
    }


def _cell(sums: Mapping[tuple[str, str], Sums], client: str, source: str) -> Estimate | None:
    found = sums.get((client, source))
    return estimate(*found) if found else None


def _of_client(sums: Mapping[tuple[str, str], Sums], client: str) -> Estimate | None:
    return _mean_or_none(estimate(*value) for (name, _), value in sums.items() if name == client)


def _pooled(sums: Mapping[tuple[str, str], Sums]) -> dict[str, Estimate]:
    added: dict[str, Sums] = {}
    for (_, source), (n, total, squares) in sums.items():
        before = added.get(source, (0, 0.0, 0.0))
        added[source] = (before[0] + n, before[1] + total, before[2] + squares)
    return {source: estimate(*value) for source, value in sorted(added.items())}


def _overall(sums: Mapping[tuple[str, str], Sums]) -> Estimate | None:
    return _mean_or_none(_pooled(sums).values())


def _mean_or_none(parts: Iterable[Estimate]) -> Estimate | None:
    found = list(parts)
    return macro_mean(found) if found else None
