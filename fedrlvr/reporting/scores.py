"""Numbers from the records of a run (the lines of metrics.jsonl): pass@1 before and after with 95 % intervals, totals,
and labels.

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
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")

Z = 1.959963984540054
"""Standard normal quantile of a two-sided 95 % interval."""

Sums = tuple[int, float, float]
"""Number of problems n, sum of their pass rates, and sum of the squares of these."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean (or a difference of means) in parts of 1, its 95 % interval, and the number of problems it rests on."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """Scores before and after training in one line of the table; None where there was no evaluation.

    client, source: None stands for all of them.
    """

    client: str | None
    source: str | None
    before: Estimate | None
    after: Estimate | None

    @property
    def change(self) -> Estimate | None:
        """Score after training minus score before it."""
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


def t95(freedom: int) -> float:
    """The t with 95 % of Student's distribution between -t and t, for so many degrees of freedom.

    From the finite series for P(|T| < t) (Abramowitz and Stegun 26.7.3 and 26.7.4), by bisection.

    Raises:
        ValueError: less than one degree of freedom.
    """
    if freedom < 1:
        raise ValueError("Student's distribution needs at least one degree of freedom")
    low, high = 0.0, 1.0
    while _within(high, freedom) < 0.95:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < 0.95 else (low, middle)
    return (low + high) / 2


def _within(t: float, freedom: int) -> float:
    """P(|T| < t)."""
    angle = math.atan(t / math.sqrt(freedom))
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= (k - 1) / k * math.cos(angle) ** 2
        total += term
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total


def summarise(records: Sequence[Mapping[str, Any]]) -> Scores | None:
    """Pass@1 before and after; None if no round was evaluated, or clients let no score out."""
    evaluated = {int(record["round"]): sums for record in records if (sums := _sums(record))}
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


def personal_scores(records: Sequence[Mapping[str, Any]]) -> Scores | None:
    """Pass@1 of the last global adapter (before) and of the clients' personal ones (after) on the same problems; None
    if the run has none, or clients let no score out."""
    last = records[-1] if records else {}
    if "personal" not in last:
        return None
    both = [(0, last.get("evaluate", {})), (1, last["personal"].get("evaluate", {}))]
    return summarise([{"round": place, "evaluate": scores} for place, scores in both])


@dataclass(frozen=True, slots=True)
class TextLoss:
    """Loss on a text, per token in nats, with the base model and with the final adapter; None where not measured."""

    tokens: int
    before: float
    after: float | None

    @property
    def change(self) -> float | None:
        """Loss with the adapter minus loss without it: above 0 the model predicts the text worse."""
        return None if self.after is None else self.after - self.before


def also_measured(records: Sequence[Mapping[str, Any]]) -> tuple[TextLoss | None, Comparison | None]:
    """Results of `evaluate.also`: the loss on its text, and pass@1 on its task, whose name is the source."""
    also: Mapping[str, Any] = next((record["also"] for record in reversed(records) if record.get("also")), {})
    before, after = also.get("before", {}), also.get("after", {})
    text, task = before.get("text"), before.get("task")
    loss = TextLoss(text["tokens"], text["loss"], after.get("text", {}).get("loss")) if text else None
    if not task:
        return loss, None
    scores = [estimate(m["n"], m["total"], m["squares"]) for m in (task, after.get("task")) if m]
    return loss, Comparison(None, task["name"], scores[0], scores[1] if len(scores) > 1 else None)


def evaluations(records: Sequence[Mapping[str, Any]]) -> dict[int, tuple[Estimate, dict[str, Estimate]]]:
    """Overall pass@1 and that of each source, by evaluated round."""
    by_round = {}
    for record in records:
        pooled = _pooled(_sums(record))
        if pooled:
            by_round[int(record["round"])] = (macro_mean([*pooled.values()]), pooled)
    return by_round


def client_numbers(records: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, str, Mapping[str, Any]]]:
    """(round, client, the client's numbers) of every round."""
    for record in records:
        for client, numbers in record.get("clients", {}).items():
            yield int(record["round"]), client, numbers


def by_client(pairs: Iterable[tuple[str, T]]) -> dict[str, list[T]]:
    """The values of each client, clients in natural order."""
    grouped: dict[str, list[T]] = {}
    for client, value in pairs:
        grouped.setdefault(client, []).append(value)
    return {client: grouped[client] for client in sorted(grouped, key=natural)}


def series(records: Sequence[Mapping[str, Any]], key: str) -> dict[str, list[tuple[int, float]]]:
    """A number of each client over the rounds: (round, value) where it has one. Clients in natural order."""
    return by_client(
        (client, (round_, float(numbers[key])))
        for round_, client, numbers in client_numbers(records)
        if numbers.get(key) is not None
    )


def mean_reward(record: Mapping[str, Any]) -> float | None:
    """Mean over the clients that trained in this round; None if none did."""
    return mean_of(record, "reward")


def mean_of(record: Mapping[str, Any], key: str) -> float | None:
    """Mean of a number over the clients that have it in this round; None if none has."""
    values = [numbers[key] for numbers in record.get("clients", {}).values() if numbers.get(key) is not None]
    return sum(values) / len(values) if values else None


def dropped_responses(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, int, dict[str, int]]]:
    """(client, responses it sent, how many were dropped by reason) over all exchanges; no line for a client of which
    none was. A reply that could not be read counts as one response, `unreadable`."""
    sent: Counter[str] = Counter()
    dropped: dict[str, Counter[str]] = {}
    for record in records:
        for exchange in record.get("exchanges", ()):
            for client, numbers in exchange["clients"].items():
                sent[client] += int(numbers.get("sent", 0))
                for name, count in numbers.items():
                    if name.startswith("dropped_"):
                        dropped.setdefault(client, Counter())[name.removeprefix("dropped_")] += int(count)
    return [(client, sent[client], dict(sorted(dropped[client].items()))) for client in sorted(dropped, key=natural)]


def totals(records: Sequence[Mapping[str, Any]]) -> Totals:
    """Bytes, tokens and seconds of a run, summed over its rounds."""
    records = [*records, *({"round": 0, **record["personal"]} for record in records if "personal" in record)]
    rows = [(client, numbers) for _, client, numbers in client_numbers(records)]

    def bytes_of(direction: str) -> dict[str, int]:
        values = by_client((client, int(numbers.get(f"bytes_{direction}") or 0)) for client, numbers in rows)
        return {client: sum(numbers) for client, numbers in values.items()}

    def tokens(what: str) -> int:
        return sum(int(n.get(f"{prefix}tokens_{what}") or 0) for _, n in rows for prefix in ("", "public_"))

    def exchanges(direction: str) -> int | None:
        values = [n[key] for _, n in rows if n.get(key := f"bytes_{direction}_exchanges") is not None]
        return int(sum(values)) if values else None

    seconds = ((key, value) for _, n in rows for key, value in n.items() if key.startswith("seconds_"))
    return Totals(
        rounds=max((int(record["round"]) for record in records), default=0),
        bytes_up=bytes_of("up"),
        bytes_down=bytes_of("down"),
        tokens_sampled=tokens("sampled"),
        tokens_trained=tokens("trained"),
        wall=_added(pair for record in records for pair in record.get("seconds", {}).items()),
        client_seconds=dict(sorted(_added((key.removeprefix("seconds_"), value) for key, value in seconds).items())),
        exchanges_up=exchanges("up"),
        exchanges_down=exchanges("down"),
    )


def _added(pairs: Iterable[tuple[str, float | None]]) -> dict[str, float]:
    """The sum of each name's values, names in the order of their first."""
    sums: dict[str, float] = {}
    for name, value in pairs:
        sums[name] = sums.get(name, 0.0) + (value or 0.0)
    return sums


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
    cell = sums.get((client, source))
    return estimate(*cell) if cell else None


def _of_client(sums: Mapping[tuple[str, str], Sums], client: str) -> Estimate | None:
    return _mean_or_none(estimate(*value) for (name, _), value in sums.items() if name == client)


def _pooled(sums: Mapping[tuple[str, str], Sums]) -> dict[str, Estimate]:
    added: dict[str, Sums] = {}
    for (_, source), (n, total, squares) in sums.items():
        before_n, before_total, before_squares = added.get(source, (0, 0.0, 0.0))
        added[source] = (before_n + n, before_total + total, before_squares + squares)
    return {source: estimate(*value) for source, value in sorted(added.items())}


def _overall(sums: Mapping[tuple[str, str], Sums]) -> Estimate | None:
    return _mean_or_none(_pooled(sums).values())


def _mean_or_none(parts: Iterable[Estimate]) -> Estimate | None:
    estimates = list(parts)
    return macro_mean(estimates) if estimates else None


# Labels. Counts only: which problems were asked about, and what was answered, never leaves a client.

FATES = ("share_query", "share_known", "share_reliable", "share_masked")
"""Keys of the shares of a client's problems: asked about, labelled before, trained on as voted, not trained on."""
Table = dict[str, list[float]]
"""Calibration of P1 by tenths: `n` problems, the `sum` of their P1, and the number of majorities that were `right`."""


@dataclass(frozen=True, slots=True)
class LabelLine:
    """A client's labels over a run; client None: all clients'.

    asked, used: over the rounds; a label is used each time a group is trained with it. held: in the ledger at the end.
    majority_right: share of the labelled groups whose majority is right. trusted_right: of the majorities that were
    trained on; gap: correlation of the score S with a label's true value, mean over rounds. The last two are known in
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
    """A line for each client, in natural order, and one for all; none where no client reports labels."""
    rounds = by_client(
        (client, numbers) for _, client, numbers in client_numbers(records) if numbers.get("labels_asked") is not None
    )
    lines = [_line(client, [numbers]) for client, numbers in rounds.items()]
    return [*lines, _line(None, [*rounds.values()])] if lines else []


def _line(client: str | None, rounds: Sequence[Sequence[Mapping[str, Any]]]) -> LabelLine:
    """rounds: of each client, its numbers by round."""
    every = [numbers for of_client in rounds for numbers in of_client]
    return LabelLine(
        client,
        asked=sum(int(numbers["labels_asked"]) for numbers in every),
        used=sum(int(numbers.get("labels_used") or 0) for numbers in every),
        held=sum(int(of_client[-1].get("labels_total") or 0) for of_client in rounds),
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
    """Rounds and the shares of `FATES` in each, by client in natural order."""
    return by_client(
        (client, (round_, tuple(float(numbers.get(key) or 0.0) for key in FATES)))
        for round_, client, numbers in client_numbers(records)
        if any(numbers.get(key) is not None for key in FATES)
    )


def mean_shares(
    clients: Mapping[str, Sequence[tuple[int, tuple[float, ...]]]],
) -> list[tuple[int, tuple[float, ...]]]:
    """The mean over the clients of each round."""
    by_round: dict[int, list[tuple[float, ...]]] = {}
    for round_, parts in (row for rows in clients.values() for row in rows):
        by_round.setdefault(round_, []).append(parts)
    return [
        (round_, tuple(sum(column) / len(rows) for column in zip(*rows, strict=True)))
        for round_, rows in sorted(by_round.items())
    ]


def calibration(records: Sequence[Mapping[str, Any]], key: str) -> Table | None:
    """All clients' and rounds' problems together; None without any.

    key: `calibration` (labelled problems, judged before they were learnt from) or `audit_calibration` (all).
    """
    tables = [numbers[key] for _, _, numbers in client_numbers(records) if numbers.get(key)]
    if not tables:
        return None
    added = {
        name: [float(sum(column)) for column in zip(*(table[name] for table in tables), strict=True)]
        for name in ("n", "sum", "right")
    }
    return added if any(added["n"]) else None


def calibration_points(table: Table) -> list[tuple[float, float, float]]:
    """Mean P1, share of correct majorities and number of problems, for each tenth that is not empty."""
    columns = zip(table["n"], table["sum"], table["right"], strict=True)
    return [(total / n, right / n, n) for n, total, right in columns if n]
