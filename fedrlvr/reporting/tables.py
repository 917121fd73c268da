"""The tables the command line prints, with rich. Numbers and names only, never a prompt or an answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedrlvr.config import Config
from fedrlvr.output import console as new_console
from fedrlvr.reporting import units
from fedrlvr.reporting.scores import (
    Comparison,
    LabelLine,
    Scores,
    Totals,
    also_measured,
    label_lines,
    natural,
    personal_scores,
    summarise,
    totals,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from fedrlvr.reporting.verdict import Verdict
    from fedrlvr.tasks.partition import Holding

MOST_LINES = 48
"""Largest product of clients and families for which the final table has one line for both; above it, each client and
each family has its own line."""
MOST_CLIENTS = 16
"""Largest number of clients with a line each; the report has them all."""


WIDE = 112
"""Columns of a terminal from which on intervals stand beside their means, not below."""


_COLOURS = {"better": "green", "worse": "red"}
"""Colours of the words of a verdict."""


def final_table(
    records: Sequence[Mapping[str, Any]], config: Config, directory: Path, console: Console | None = None
) -> None:
    """Print how a run ended: pass@1 before and after, bytes by client, and where everything lies."""

    console = console or new_console()
    scores, sums = summarise(records), totals(records)
    console.print()
    if scores is None:
        console.print("Nothing was evaluated.")
    else:
        greedy = config.evaluate.temperature == 0
        console.print(_change_table(scores, "greedy" if greedy else "sampled", narrow=console.width < WIDE))
    if (personal := personal_scores(records)) is not None:
        console.print(
            _change_table(personal, "personal adapters,", ("global", "personal"), narrow=console.width < WIDE)
        )
    also_table(records, config, console)
    labels = label_lines(records)
    if any(line.asked or line.held for line in labels):
        console.print(_labels_table(labels))
    console.print(_traffic_table(sums))
    console.print(_where_table(directory))


def participation_table(records: Sequence[Mapping[str, Any]], console: Console | None = None) -> None:
    """Print which clients missed which of the rounds that are done, and the reason of the last time; nothing where
    nobody missed one."""
    missed: dict[str, dict[int, str]] = {}
    for record in records:
        for client, reason in record.get("left_out", {}).items():
            missed.setdefault(client, {})[int(record["round"])] = str(reason)
    if not missed:
        return
    done = sum(1 for record in records if record.get("clients") or record.get("left_out"))
    table = new_table(f"Clients that missed rounds, of {done} that are done", ("client", "rounds", "last reason"), ())
    for client, rounds in sorted(missed.items()):
        table.add_row(plain(client), _ranges(sorted(rounds)), plain(rounds[max(rounds)]))
    (console or new_console()).print(table)


def _ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers in words: 1, 3-5, 8."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in spans)


def scores_table(evaluated: Mapping[str, Any], console: Console | None = None) -> None:
    """Print pass@1 by client and source, and the mean over sources.

    evaluated: as `evaluate` in a line of metrics.jsonl.
    """
    from rich.text import Text

    table = new_table("pass@1, with 95 % intervals", ["client", "family"], ["problems", "pass@1"])
    scores = summarise([{"round": 0, "evaluate": evaluated}])

    def add(client: str, source: str, line: Comparison, style: str | None = None) -> None:
        if line.before is not None:
            n = units.count(line.before.n)
            table.add_row(plain(client), plain(source), n, Text(units.with_interval(line.before)), style=style)

    if scores is not None:
        last = None
        for line in scores.lines:
            if last not in (None, line.client):
                table.add_section()
            add("" if line.client == last else str(line.client), str(line.source), line)
            last = line.client
        table.add_section()
        if len(scores.lines) > len(scores.sources):  # a family in several hands
            for line in scores.sources:
                add("all", str(line.source), line)
            table.add_section()
        add("all", "mean", scores.overall, "bold")
    (console or new_console()).print(table)


def also_table(records: Sequence[Mapping[str, Any]], config: Config, console: Console | None = None) -> None:
    """Print what else training has changed, as `evaluate.also` has measured it; nothing where it is unset."""
    from rich.text import Text

    loss, task = also_measured(records)
    if loss is None and task is None:
        return
    console, also = console or new_console(), config.evaluate.also
    between = "\n" if console.width < WIDE else " "
    title = "What else changed: the base model and the final adapter"
    table = new_table(title, ["measured on"], ["n", "before", "after", "change"])
    if loss is not None:
        name = also.text.name if also is not None and also.text is not None else "text"
        after = "" if loss.after is None else f"{loss.after:.4f}"
        change = "" if loss.change is None else f"{loss.change:+.4f}"
        table.add_row(plain(f"loss a token: {name}"), units.count(loss.tokens), f"{loss.before:.4f}", after, change)
    if task is not None and task.before is not None:
        table.add_row(
            plain(f"pass@1: {task.source}"),
            units.count(task.before.n),
            Text(units.with_interval(task.before, between)),
            Text(units.with_interval(task.after, between)),
            Text(units.points(task.change, between)),
        )
    console.print(table)


def verdict_table(verdict: Verdict, console: Console | None = None) -> None:
    """Print one line a client: pass@1 with each model, and the difference to training alone; then the matrix.

    In a narrow terminal only the difference that decides is shown; verdict.json and the report have all.
    """
    from rich.text import Text

    console = console or new_console()
    compared = verdict.compared if console.width >= WIDE else verdict.compared[-1:]
    title = (
        "pass@1 in % on each client's own held-out problems; differences in points, 95 % intervals, paired by problem"
    )
    table = new_table(title, ["client"], ["n", *verdict.models, *(f"{model} - alone" for model in compared)])
    table.add_column("verdict", no_wrap=True)
    table.collapse_padding = console.width < WIDE
    for line in verdict.clients:
        differences = [line.minus_alone.get(model) for model in compared]
        table.add_row(
            plain(line.client),
            units.count(line.n),
            *(units.percent(line.pass_at_1.get(model)).removesuffix(" %") for model in verdict.models),
            *(Text(units.points(d.estimate if d else None)) for d in differences),
            Text(line.word, style=_COLOURS.get(line.word, "")),
        )
    console.print(table)
    for note in verdict.notes:
        console.print(Text(f"Note: {note}"))
    if verdict.matrix:
        names = [line.client for line in verdict.clients]
        title = "pass@1 of every adapter (rows) on every client's held-out problems (columns)"
        table = new_table(title, ["adapter"], names)
        for row in verdict.matrix:
            table.add_row(plain(row.adapter), *(units.percent(row.pass_at_1[name]) for name in names))
        console.print(table)


def audit_table(audit: Mapping[str, Any], console: Console | None = None) -> None:
    """Print one line for each attack of an audit. audit: the content of audit.json."""
    console = console or new_console()
    title = "Training problems told from others; 95 % intervals"
    table = new_table(title, ["who", "attack"], ["AUC", "", "at 1 %", "at 0.1 %"])
    for row in audit["membership"]:
        area, caught = row["auc"], [share["value"] for share in row["true_positives"].values()]
        interval = f"{area['low']:.3f} to {area['high']:.3f}"
        table.add_row(row["view"], row["attack"], f"{area['value']:.3f}", interval, *map(units.percent, caught))
    console.print(table)


def holdings_table(
    config: Config,
    train_table: Sequence[Holding],
    test_table: Sequence[Holding],
    public_count: int,
    console: Console | None = None,
) -> None:
    """Print the number of training and held-out problems by client and source."""

    train = {(h.client, h.source): h.problems for h in train_table}
    test = {(h.client, h.source): h.problems for h in test_table}
    title = f"problems by client: {config.data.name}, partition {config.partition.type}"
    table = new_table(title, ["client", "family"], ["training", "held out"])
    cells = sorted({*train, *test}, key=lambda cell: (natural(cell[0]), cell[1]))
    last = None
    for client, source in cells:
        if last not in (None, client):
            table.add_section()
        name = "" if client == last else client
        numbers = [units.count(part.get((client, source), 0)) for part in (train, test)]
        table.add_row(plain(name), plain(source), *numbers)
        last = client
    table.add_section()
    table.add_row("all", "", units.count(sum(train.values())), units.count(sum(test.values())), style="bold")
    console = console or new_console()
    console.print(table)
    if public_count:
        console.print(f"Public set, in no client's hands: {units.count(public_count)} problems.")


def _change_table(scores: Scores, kind: str, columns: tuple[str, str] = ("before", "after"), *, narrow: bool) -> Table:
    title = f"{kind} pass@1 on n held-out problems, with 95 % intervals"
    table = new_table(title, ["client", "family"], ["n", *columns, "gain in points"])
    between = "\n" if narrow else " "
    short = len(scores.lines) <= MOST_LINES
    last = None
    for line in scores.lines if short else scores.clients[:MOST_CLIENTS]:
        if short and last not in (None, line.client):
            table.add_section()
        _add(table, "" if line.client == last else str(line.client), line.source or "mean", line, between)
        last = line.client
    table.add_section()
    if not short and len(scores.clients) > MOST_CLIENTS:
        table.add_row(f"{len(scores.clients) - MOST_CLIENTS} more", "in the report")
        table.add_section()
    if len(scores.lines) > len(scores.sources):  # a family in several hands
        for line in scores.sources:
            _add(table, "all", str(line.source), line, between)
        table.add_section()
    _add(table, "all", "mean", scores.overall, between, style="bold")
    return table


def _add(table: Table, client: str, source: str, line: Comparison, between: str, style: str | None = None) -> None:
    from rich.text import Text

    known = line.after or line.before
    change = line.change
    colour = ""
    if change is not None:
        colour = "green" if change.low > 0 else "red" if change.high < 0 else ""
    table.add_row(
        plain(client),
        plain(source),
        units.count(known.n) if known else "",
        Text(units.with_interval(line.before, between)),
        Text(units.with_interval(line.after, between)),
        Text(units.points(change, between), style=colour),
        style=style,
    )


def _labels_table(lines: Sequence[LabelLine]) -> Table:
    table = new_table("labels", ["client"], ["asked for", "used", "in the ledger", "majority right"])
    *clients, overall = lines
    _add_clients(table, [(str(line.client), *_label_cells(line)) for line in clients], _label_cells(overall))
    return table


def _label_cells(line: LabelLine) -> list[str]:
    return [*map(units.count, (line.asked, line.used, line.held)), units.percent(line.majority_right)]


def _traffic_table(sums: Totals) -> Table:
    table = new_table("bytes of messages", ["client"], ["up", "down"])
    both = (sums.bytes_up, sums.bytes_down)
    rows = [(client, *(units.size(part[client]) for part in both)) for client in sums.bytes_up]
    _add_clients(table, rows, [units.size(sum(part.values())) for part in both])
    if sums.exchanges_up is not None and sums.exchanges_down is not None:
        table.add_row("of it exchanges", units.size(sums.exchanges_up), units.size(sums.exchanges_down))
    return table


def _where_table(directory: Path) -> Table:
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    for name in ("report.html", "metrics.jsonl", "verdict.json", "config.json", "adapter", "checkpoints"):
        if (directory / name).exists():
            table.add_row(name.partition(".")[0], plain(str(directory / name)))
    return table


def _add_clients(table: Table, rows: Sequence[tuple[str, ...]], total: Sequence[str]) -> None:
    """Add a row for each client, as far as `MOST_CLIENTS`, and the sum of all."""
    for client, *cells in rows[:MOST_CLIENTS]:
        table.add_row(plain(client), *cells)
    if len(rows) > MOST_CLIENTS:
        table.add_row(f"and {len(rows) - MOST_CLIENTS} more")
    table.add_section()
    table.add_row("all", *total, style="bold")


def new_table(title: str, names: Iterable[str], numbers: Iterable[str]) -> Table:
    """An empty table with columns of names, to the left, and of numbers, to the right."""
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE, pad_edge=False)
    for name in names:
        table.add_column(name)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def plain(text: str) -> Text:
    """A name as it is: rich would read "[x]" in a string as markup."""
    from rich.text import Text

    return Text(text, overflow="fold")
