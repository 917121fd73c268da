"""The table of a sweep: for each arm the mean over seeds and its 95 % interval, in a terminal, in Markdown and in JSON.

Intervals are Student's over seeds (spread.py), on the same held-out problems. Arms are compared seed by seed: the
interval of a difference is that of the n differences to the first arm.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from fedrlvr.output import console as new_console
from fedrlvr.reporting import units
from fedrlvr.reporting.scores import evaluations, totals
from fedrlvr.reporting.spread import Spread, paired, spread
from fedrlvr.reporting.tables import WIDE, new_table, plain

if TYPE_CHECKING:
    from rich.console import Console

_ARM = 16
"""Columns that an arm's name gets however narrow the terminal is."""
_ONE_SEED = "One seed: no interval."


@dataclass(frozen=True, slots=True)
class ArmLine:
    """Results of one arm. None where nothing was evaluated or, for `minus_first`, in the first arm itself.

    settings: the varied keys and their values. seeds: those that finished. before, after: pass@1, the mean over
    sources. minus_first: `after` minus that of the first arm, on the seeds both have. tokens_sampled: by all clients.
    bytes_up: mean of the clients.
    """

    name: str
    settings: dict[str, str]
    seeds: list[int]
    before: Spread | None
    after: Spread | None
    minus_first: Spread | None
    tokens_sampled: Spread | None
    bytes_up: Spread | None


def tabulate(
    arms: Sequence[tuple[str, dict[str, str]]], records: Mapping[tuple[str, int], Sequence[Mapping[str, Any]]]
) -> list[ArmLine]:
    """Results of a sweep, one line for each arm.

    arms: name and settings. records: by arm and seed the lines of metrics.jsonl of each finished federation.
    """
    lines: list[ArmLine] = []
    first: dict[int, float] = {}
    for name, settings in arms:
        by_seed = {seed: metrics for (arm, seed), metrics in records.items() if arm == name}
        scores = {seed: evaluations(metrics) for seed, metrics in by_seed.items()}
        sums = {seed: totals(metrics) for seed, metrics in by_seed.items()}
        before = {seed: rounds[0][0].mean for seed, rounds in scores.items() if 0 in rounds}
        after = {seed: rounds[max(rounds)][0].mean for seed, rounds in scores.items() if max(rounds, default=0) > 0}
        gaps = paired(after, first, float)  # none in the first arm
        if not lines:
            first = after
        tokens = {seed: float(total.tokens_sampled) for seed, total in sums.items()}
        up = {seed: statistics.fmean(total.bytes_up.values()) for seed, total in sums.items() if total.bytes_up}
        lines.append(
            ArmLine(name, settings, sorted(by_seed), spread(before), spread(after), gaps, spread(tokens), spread(up))
        )
    return lines


def to_json(lines: Sequence[ArmLine], about: Mapping[str, Any], failed: Mapping[str, str]) -> str:
    """Everything, with each seed's own numbers.

    about: how the sweep was made. failed: by federation, why.
    """
    tree = {**about, "arms": [asdict(line) for line in lines], "failed": dict(failed)}
    return json.dumps(tree, indent=1) + "\n"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


_COLUMNS: tuple[tuple[str, Callable[[ArmLine], Spread | None], Callable[[float], str]], ...] = (
    ("before, %", lambda line: line.before, _percent),
    ("after, %", lambda line: line.after, _percent),
    ("minus the first, points", lambda line: line.minus_first, units.signed),
    ("tokens sampled", lambda line: line.tokens_sampled, units.count),
    ("bytes up, a client", lambda line: line.bytes_up, units.size),
)
"""Title, number, how it is written."""


def _cells(line: ArmLine, between: str = " ") -> list[str]:
    cells = []
    for _, get, write in _COLUMNS:
        value = get(line)
        if value is None:
            cells.append("")
        elif value.half is None:
            cells.append(write(value.mean))
        else:
            cells.append(f"{write(value.mean)}{between}± {write(value.half).lstrip('+')}")
    return cells


def to_markdown(lines: Sequence[ArmLine], about: Mapping[str, Any]) -> str:
    """The table with a paragraph that says how it was made."""
    titles = ["arm", "seeds", *(title for title, *_ in _COLUMNS)]
    rows = [[line.name, str(len(line.seeds)), *_cells(line)] for line in lines]
    return "\n".join(
        [
            f"`{about['command']}`, {about['date']}, {about['machine']}, fedrlvr {about['fedrlvr']}.",
            _explained(lines, about["seeds"]),
            "",
            *(f"| {' | '.join(row)} |" for row in (titles, ["---"] * len(titles), *rows)),
            "",
        ]
    )


def _explained(lines: Sequence[ArmLine], seeds: Sequence[int]) -> str:
    seed_text = f"Seed {seeds[0]}" if len(seeds) == 1 else f"Seeds {seeds[0]} to {seeds[-1]}"
    many = any(len(line.seeds) > 1 for line in lines)
    interval = "Mean and 95 % interval over seeds (Student's t); arms are compared seed by seed." if many else _ONE_SEED
    return f"{seed_text}. pass@1 on the held-out problems, mean over families. {interval}"


def show_sweep(lines: Sequence[ArmLine], seeds: Sequence[int], console: Console | None = None) -> None:
    """Print the table of a sweep's results."""
    from rich.text import Text

    console = console or new_console()
    between = " " if console.width >= WIDE else "\n"
    numbers = ("n", *(title.replace(" ", between) for title, *_ in _COLUMNS))
    table = new_table("arms of the sweep", ["arm"], numbers)
    table.columns[0].min_width = min(_ARM, max(len(line.name) for line in lines))
    for line in lines:
        cells = [Text(cell, no_wrap=True) for cell in _cells(line, between)]
        table.add_row(plain(line.name), str(len(line.seeds)), *cells)
    console.print()
    console.print(table)
    console.print(_explained(lines, seeds), highlight=False)
