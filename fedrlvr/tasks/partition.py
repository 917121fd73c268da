"""Partition of the problems among clients. Each problem goes to exactly one client.

- `iid`: shuffled, then dealt round robin.
- `source`: whole sources (subjects, families). The largest source first, each to the client that holds fewest
  problems so far. With fewer sources than clients, every client gets one source, the sources with most problems per
  client are shared by several, and a shared source is shuffled and cut evenly.
- `dirichlet`: each source is shuffled and cut among all clients by shares drawn from Dirichlet(alpha), the usual
  label-skew partition of the federated literature (arXiv 1909.06335) with the source in the label's place.

The result depends on the problems in their order, the clients' names and order, and the seed; on nothing else.
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from fedrlvr.errors import ConfigError, DataError
from fedrlvr.seeds import stream
from fedrlvr.tasks.problem import Problem, Question

PartitionType = Literal["iid", "source", "dirichlet"]


@dataclass(frozen=True, slots=True)
class Holding:
    """One line of the table of problems by client and source."""

    client: str
    source: str
    problems: int


def partition(
    problems: Sequence[Problem], clients: Sequence[str], *, type: PartitionType, alpha: float = 0.5, seed: int = 0
) -> dict[str, list[Problem]]:
    """Deal `problems` to `clients`; the keys are in the clients' order. `alpha` is Dirichlet's alone.

    Raises:
        ConfigError: no client, two of one name, an unknown type, or an alpha that is not positive and finite.
        DataError: a client is left without problems.
    """
    if not clients or len(set(clients)) != len(clients):
        raise ConfigError("A partition needs at least one client, and names that differ.")
    if type == "iid":
        order = _shuffled(problems, stream(seed, "partition", "iid"))
        parts = {client: order[index :: len(clients)] for index, client in enumerate(clients)}
    elif type == "source":
        parts = _by_source(problems, clients, seed)
    elif type == "dirichlet":
        if not (alpha > 0 and math.isfinite(alpha)):
            raise ConfigError(f"partition.alpha is {alpha}. It must be a positive number.")
        parts = _dirichlet(problems, clients, alpha, seed)
    else:
        raise ConfigError(f"There is no partition {type!r}. Use iid, source or dirichlet.")
    for client, held in parts.items():
        if not held:
            remedy = "a larger alpha, another seed, more problems" if type == "dirichlet" else "more problems"
            raise DataError(
                f"Client {client!r} is left without problems by the partition {type!r} of {len(problems)} problems "
                f"among {len(clients)} clients. Use {remedy} or fewer clients."
            )
    return parts


def who_holds_what(parts: Mapping[str, Sequence[Problem] | Sequence[Question]]) -> list[Holding]:
    """One line for each client and source it holds: clients in their order, sources by name."""
    return [
        Holding(client, source, count)
        for client, held in parts.items()
        for source, count in sorted(Counter(problem.source for problem in held).items())
    ]


def by_source(problems: Sequence[Problem]) -> dict[str, list[Problem]]:
    """The problems of each source, sources by name."""
    groups: defaultdict[str, list[Problem]] = defaultdict(list)
    for problem in problems:
        groups[problem.source].append(problem)
    return dict(sorted(groups.items()))


def _by_source(problems: Sequence[Problem], clients: Sequence[str], seed: int) -> dict[str, list[Problem]]:
    groups = by_source(problems)
    largest_first = sorted(groups, key=lambda source: (-len(groups[source]), source))
    parts: dict[str, list[Problem]] = {client: [] for client in clients}
    if len(groups) >= len(clients):
        for source in largest_first:
            poorest = min(clients, key=lambda client: len(parts[client]))  # the first of equals
            parts[poorest] += groups[source]
        return parts
    sharers = dict.fromkeys(largest_first, 1)
    for _ in range(len(clients) - len(groups) if groups else 0):
        sharers[max(largest_first, key=lambda source: len(groups[source]) / sharers[source])] += 1
    waiting = iter(clients)
    for source, count in sharers.items():
        order = groups[source] if count == 1 else _shuffled(groups[source], stream(seed, "partition", source))
        cuts = [len(order) * index // count for index in range(count + 1)]
        for start, end in pairwise(cuts):
            parts[next(waiting)] = order[start:end]
    return parts


def _dirichlet(
    problems: Sequence[Problem], clients: Sequence[str], alpha: float, seed: int
) -> dict[str, list[Problem]]:
    parts: dict[str, list[Problem]] = {client: [] for client in clients}
    for source, group in by_source(problems).items():
        rng = random.Random(stream(seed, "partition", "shares", source))
        draws = [rng.gammavariate(alpha, 1.0) for _ in clients]
        if not sum(draws):  # a tiny alpha underflows; its limit is one client that takes all
            draws[rng.randrange(len(draws))] = 1.0
        order = _shuffled(group, stream(seed, "partition", source))
        total, reached, start = sum(draws), 0.0, 0
        for index, (client, draw) in enumerate(zip(clients, draws, strict=True)):
            reached += draw
            end = len(order) if index == len(clients) - 1 else round(len(order) * reached / total)
            parts[client] += order[start:end]
            start = end
    return parts


def _shuffled(problems: Sequence[Problem], seed: int) -> list[Problem]:
    order = list(problems)
    random.Random(seed).shuffle(order)
    return order
