"""The table of contributions: how much better each client makes the model for the others, and for all.

A client's contribution is mean pass@1 over held-out problems in a run with the client, minus the same in a run from
whose training it was excluded (leave-one-out; ours, after the usual definition of data valuation). Every problem counts
the same. `others` is measured on the held-out problems of all other clients, `everyone` on those of all clients, so
that the client's own gain is in the second alone.

With several seeds the interval is Student's over the differences of the seeds, and says how far other seeds might lead.
With one seed it is that of the difference of two independent means (reporting/scores.py), from each client's sums of
pass rates and of their squares: it says how far other held-out problems might lead, and nothing of other seeds. Both
runs are measured on the same problems, so a paired interval would be narrower; the outcome of each problem stays with
its client.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from fedrlvr.output import console as new_console
from fedrlvr.reporting import units
from fedrlvr.reporting.scores import Estimate, difference, estimate
from fedrlvr.reporting.spread import spread
from fedrlvr.reporting.tables import WIDE, new_table, plain

if TYPE_CHECKING:
    from rich.console import Console

Records = Sequence[Mapping[str, Any]]
"""The lines of one run's metrics.jsonl."""
MEANING = (
    "A negative contribution means that the others' held-out pass@1 was higher without the client: what it sent made "
    "the model worse for them. An interval that includes 0 tells no difference."
)


@dataclass(frozen=True, slots=True)
class Contribution:
    """One difference of pass@1 between runs with and without a client, with its 95 % interval and each seed's own.

    interval: what it is over, `seeds` or, with one seed, `problems`.
    """

    mean: float
    low: float
    high: float
    interval: Literal["seeds", "problems"]
    by_seed: dict[int, float]


@dataclass(frozen=True, slots=True)
class ContributionLine:
    """Contribution of one client. None where no seed has both runs with scores.

    seeds: those with both runs. others, everyone: on the held-out problems of the other clients, and of all.
    """

    client: str
    seeds: list[int]
    others: Contribution | None
    everyone: Contribution | None


def contributions(
    clients: Sequence[str], full: Mapping[int, Records], without: Mapping[tuple[str, int], Records]
) -> list[ContributionLine]:
    """A line for each client, the largest contribution to the others first; those without any last.

    full: by seed the records of the run in which all `clients` trained. without: by client and seed those of the run
    from whose training the client was excluded.
    """
    lines = []
    for client in clients:
        pairs = {seed: (full[seed], without[client, seed]) for seed in full if (client, seed) in without}
        others = _contribution(pairs, leave_out=client)
        everyone = _contribution(pairs)
        lines.append(ContributionLine(client, sorted(others.by_seed) if others else [], others, everyone))
    return sorted(lines, key=lambda line: -line.others.mean if line.others else float("inf"))


def _contribution(pairs: Mapping[int, tuple[Records, Records]], leave_out: str = "") -> Contribution | None:
    measured = {seed: tuple(_pooled(records, leave_out) for records in pair) for seed, pair in pairs.items()}
    gaps = {seed: difference(a, b) for seed, (a, b) in measured.items() if a is not None and b is not None}
    over_seeds = spread({seed: gap.mean for seed, gap in gaps.items()})
    if over_seeds is None:
        return None
    mean, half = over_seeds.mean, over_seeds.half
    if half is not None:
        return Contribution(mean, mean - half, mean + half, "seeds", over_seeds.by_seed)
    (gap,) = gaps.values()
    return Contribution(mean, gap.low, gap.high, "problems", over_seeds.by_seed)


def _pooled(records: Records, leave_out: str) -> Estimate | None:
    """Mean pass@1 of a run's last evaluation over the held-out problems of all clients but one; None without any."""
    evaluated = [record["evaluate"] for record in records if record["round"] and record.get("evaluate")]
    cells = [
        score
        for client, sources in (evaluated[-1] if evaluated else {}).items()
        for score in sources.values()
        if client != leave_out
    ]
    n, total, squares = (sum(score[key] for score in cells) for key in ("n", "total", "squares"))
    return estimate(int(n), float(total), float(squares)) if n else None


def to_json(lines: Sequence[ContributionLine], about: Mapping[str, Any], failed: Mapping[str, str]) -> str:
    """Every number, with each seed's own.

    about: how the runs were made. failed: by federation, why.
    """
    tree = {**about, "clients": [asdict(line) for line in lines], "failed": dict(failed)}
    return json.dumps(tree, indent=1) + "\n"


_TITLES = ("to the others, points", "to all, points")


def to_markdown(lines: Sequence[ContributionLine], about: Mapping[str, Any]) -> str:
    """The table with paragraphs that say how it was made and how to read it."""
    rows = [["client", "seeds", *_TITLES], ["---"] * 4]
    rows += [[line.client, str(len(line.seeds)), _text(line.others), _text(line.everyone)] for line in lines]
    return "\n".join(
        [
            f"`{about['command']}`, {about['date']}, {about['machine']}, fedrlvr {about['fedrlvr']}. {about['cost']}",
            "",
            *(f"| {' | '.join(row)} |" for row in rows),
            "",
            f"{explained(lines)} {MEANING}",
            "",
        ]
    )


def explained(lines: Sequence[ContributionLine]) -> str:
    """The sentences on what the numbers and intervals are."""
    number = (
        "Contribution: mean pass@1 over the held-out problems of the other clients (and of all), with the client minus "
        "without it."
    )
    over_seeds = "With several seeds: mean and 95 % interval over seeds (Student's t, seed by seed)."
    over_problems = (
        "With one seed: the 95 % interval is over held-out problems, with the two runs taken as independent "
        "(unpaired), and says nothing of other seeds."
    )
    counts = [len(line.seeds) for line in lines if line.seeds]
    parts = [over_seeds] * any(count > 1 for count in counts) + [over_problems] * (1 in counts)
    return " ".join([number, *parts])


def _text(value: Contribution | None, between: str = " ") -> str:
    return units.points(Estimate(value.mean, value.low, value.high, 0) if value else None, between)


def show_contributions(lines: Sequence[ContributionLine], console: Console | None = None) -> None:
    """Print the table of contributions, the largest first."""
    from rich.text import Text

    console = console or new_console()
    between = " " if console.width >= WIDE else "\n"
    table = new_table("contributions to pass@1, with 95 % intervals", ["client"], ["seeds", *_TITLES])
    for line in lines:
        cells = [Text(_text(value, between), no_wrap=True) for value in (line.others, line.everyone)]
        table.add_row(plain(line.client), str(len(line.seeds)), *cells)
    console.print()
    console.print(table)
    console.print(f"{explained(lines)} {MEANING}", highlight=False)
