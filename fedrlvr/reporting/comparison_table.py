"""A comparison in the terminal and as a page. Both say the same in the same words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fedrlvr.errors import printable
from fedrlvr.output import console as new_console
from fedrlvr.reporting import units
from fedrlvr.reporting.comparison import COSTS, ArmInComparison, ArmResult, Comparisons, Difference, Over
from fedrlvr.reporting.figures import COLOURS, DASHES, MOST_COMPARED, ComparedLine, draw_comparison
from fedrlvr.reporting.page import page_template
from fedrlvr.reporting.scores import Estimate
from fedrlvr.reporting.spread import Spread, spread
from fedrlvr.reporting.tables import WIDE, new_table, plain

if TYPE_CHECKING:
    from rich.console import Console

MOST_SETTINGS = 40
"""Largest number of differing settings that the terminal lists; the page has all."""
MOST_BANDS = 4
"""Largest number of arms whose curves have the band of their interval over seeds."""
FEWEST_IN_BAND = 3
"""Smallest number of seeds whose interval is drawn; that of two is mostly wider than the figure."""
_LONGEST = 60  # characters of a setting's value in the terminal
_LONGEST_ON_PAGE = 400
_UNITS = {"bytes": units.size, "seconds": units.duration}
AXES: dict[Over, str] = {
    "rounds": "rounds",
    "steps": "local steps of each client",
    "tokens": "tokens sampled by all clients",
    "labels": "labels of all clients",
    "bytes": "bytes of messages of all clients",
    "seconds": "seconds of the rounds, wall clock",
}
"""Names of the costs as an axis of a figure has them."""


def cost_text(cost: str, value: float | None) -> str:
    """A cost in its unit, such as "1.3 MB" of bytes."""
    return units.MISSING if value is None else _UNITS.get(cost, units.count)(value)


def score_text(value: Spread | None) -> str:
    """A share and half of its interval over seeds, in per cent: "31.4 ± 2.0"."""
    if value is None:
        return units.MISSING
    half = "" if value.half is None else f" ± {100 * value.half:.1f}"
    return f"{100 * value.mean:.1f}{half}"


def difference_text(value: Spread | Estimate | None) -> str:
    """A difference in percentage points with its interval: "+3.1 [+1.0, +5.2]"; without one where there is none."""
    if isinstance(value, Estimate):
        return units.points(value)
    if value is None:
        return units.MISSING
    if value.half is None:
        return units.signed(value.mean)
    low, high = max(-1.0, value.mean - value.half), min(1.0, value.mean + value.half)
    return f"{units.signed(value.mean)} [{units.signed(low)}, {units.signed(high)}]"


def verdict_of(value: Spread | Estimate | None) -> str:
    """Direction of a difference: "up" or "down" where its interval does not include 0, else ""."""
    if value is None or (isinstance(value, Spread) and value.half is None):
        return ""
    low, high = (
        (value.low, value.high)
        if isinstance(value, Estimate)
        else (value.mean - (value.half or 0), value.mean + (value.half or 0))
    )
    return "up" if low > 0 else "down" if high < 0 else ""


def how_text(difference: Difference, over: Over) -> str:
    """Kind of a difference in words, such as "paired by seed (0, 1, 2); at 6 rounds"."""
    seeds = difference.seeds
    listed = {
        "paired": f"paired by seed ({', '.join(map(str, seeds))})",
        "unpaired": "unpaired, the arms share fewer than two seeds",
        "one seed": "one run each, interval over problems" if difference.exact else "one run each, no interval",
    }[difference.how]
    return f"{listed}; at {cost_text(over, difference.at)}{'' if over in _UNITS else f' {over}'}"


EXPLAINED = (
    "pass@1 in % on the held-out problems, mean over families, and 95 % intervals over seeds. Area: mean height of the "
    "curve over {over}. Minus arm 1: in points, up to what all runs of both arms have reached."
)
"""Sentences that stand under the scores and explain them."""


def show_comparison(result: Comparisons, console: Console | None = None) -> None:
    """Print the scores, the costs, the settings that differ, and the notes."""
    from rich.text import Text

    console = console or new_console()
    narrow = console.width < WIDE
    between = "\n" if narrow else " "
    numbers = ["runs", "start", "end", "area", f"end{between}minus 1", f"area{between}minus 1"]
    if narrow:  # names would leave no room for numbers
        table = new_table("arms", ["", "arm"], [])
        for number, line in enumerate(result.results, start=1):
            table.add_row(str(number), plain(line.arm.name))
        console.print()
        console.print(table)
    table = new_table(f"scores over {result.over}", [""] if narrow else ["", "arm"], numbers)
    colours = {"up": "green", "down": "red", "": ""}
    for number, line in enumerate(result.results, start=1):
        minus = line.minus
        gaps = (minus.score, minus.area) if minus else (None, None)
        gap_cells = [
            Text(difference_text(gap).replace(" [", f"{between}[") if minus else "", style=colours[verdict_of(gap)])
            for gap in gaps
        ]
        cells = [score_text(part).replace(" ±", f"{between}±") for part in (line.start, line.end, line.area)]
        arm = [] if narrow else [plain(line.arm.name)]
        table.add_row(str(number), *arm, str(len(line.arm.runs)), *cells, *gap_cells)
    console.print()
    console.print(table)
    console.print(Text(EXPLAINED.format(over=result.over)))
    for number, line in enumerate(result.results, start=1):
        if line.minus is not None:
            console.print(Text(f"{number} minus 1: {how_text(line.minus, result.over)}."))
    console.print()
    table = new_table("cost of a run, mean", [""], ["rounds", *(cost for cost in COSTS if cost != "rounds")])
    for number, line in enumerate(result.results, start=1):
        rounds = units.MISSING if line.rounds is None else units.count(line.rounds.mean)
        costs = [cost_text(cost, spent.mean if spent else None) for cost, spent in line.costs.items()]
        table.add_row(str(number), rounds, *costs)
    console.print(table)
    if result.differing:
        table = new_table("settings that differ", ["setting", "value", "arms"], [])
        for name, values in result.differing[:MOST_SETTINGS]:
            for place, (value, arms) in enumerate(values.items()):
                table.add_row(plain("" if place else name), plain(_cut(value, _LONGEST)), arms_text(arms))
        console.print(table)
        if len(result.differing) > MOST_SETTINGS:
            console.print(Text(f"{len(result.differing) - MOST_SETTINGS} more settings differ; --html FILE shows all."))
    elif len(result.results) > 1:
        console.print("No setting differs but the seed.")
    for note in result.notes:
        console.print(Text(f"Note: {printable(note)}"))


def arms_text(numbers: Sequence[int]) -> str:
    """Numbers of arms, with consecutive ones as a range: "1, 3-5"."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def _cut(value: str, longest: int) -> str:
    return value if len(value) <= longest else f"{value[:longest]} ..."


def render_comparison(result: Comparisons, arms: Sequence[ArmInComparison], command: str = "") -> str:
    """The comparison as a self-contained page.

    command: what made it, for the record.
    """
    from markupsafe import Markup

    def figure(over: Over, what: str, *, large: bool = False) -> dict[str, Any] | None:
        lines = [mean_line(arm, over, what, band=large and len(arms) <= MOST_BANDS) for arm in arms]
        if not any(line.points for line in lines):
            return None
        words = "Held-out pass@1" if what == "curve" else "Mean reward in training"
        title = f"{words} over {AXES[over]}"
        size = (9.0, 3.2) if large else (4.4, 2.3)
        svg = draw_comparison(title, lines, percent=what == "curve", width=size[0], height=size[1])
        return {"title": title, "svg": Markup(svg)}

    others = [figure(over, "curve") for over in COSTS if over != result.over]
    page = page_template("comparison.html.jinja").render(
        over=result.over,
        axis=AXES[result.over],
        large=figure(result.over, "curve", large=True),
        figures=[part for part in (figure(result.over, "rewards"), *others) if part],
        rows=[comparison_row(line, result.over) for line in result.results],
        costs=[cost for cost in COSTS if cost != "rounds"],
        explained=EXPLAINED.format(over=result.over),
        differing=[
            (name, [(_cut(value, _LONGEST_ON_PAGE), arms_text(numbers)) for value, numbers in values.items()])
            for name, values in result.differing
        ],
        notes=result.notes,
        hidden=max(0, len(arms) - MOST_COMPARED),
        bands=len(arms) <= MOST_BANDS,
        command=command,
    )
    return printable(page, keep="\n\t")


def comparison_row(line: ArmResult, over: Over) -> dict[str, Any]:
    """An arm as a page shows it: its name, seeds, scores, differences to the first arm, and costs, as texts."""
    minus = line.minus
    return {
        "name": line.arm.name,
        "runs": len(line.arm.runs),
        "seeds": ", ".join(map(str, line.arm.runs)),
        "scores": [score_text(part) for part in (line.start, line.end, line.area)],
        "gaps": [(difference_text(gap), verdict_of(gap)) for gap in (minus.score, minus.area)] if minus else None,
        "how": how_text(minus, over) if minus else "",
        "rounds": units.MISSING if line.rounds is None else units.count(line.rounds.mean),
        "costs": [cost_text(cost, spent.mean if spent else None) for cost, spent in line.costs.items()],
    }


def line_style(number: int) -> tuple[int, str]:
    """The number of the page's line colour, and the style, of the line of the arm with this number, from 0."""
    return number % COLOURS + 1, DASHES[number // COLOURS % len(DASHES)]


def mean_line(arm: ArmInComparison, over: Over, what: str, *, band: bool) -> ComparedLine:
    """An arm's mean curve: by place in the runs' curves, the mean cost and the mean number of the seeds that have it.

    what: "curve" (held-out pass@1) or "rewards". band: with the interval over seeds.
    """
    curves = {seed: getattr(run, what)(over) for seed, run in arm.runs.items()}
    points, bands = [], []
    for place in range(max(map(len, curves.values()), default=0)):
        there = {seed: curve[place] for seed, curve in curves.items() if place < len(curve)}
        cost = spread({seed: x for seed, (x, _) in there.items()})
        number = spread({seed: y for seed, (_, y) in there.items()})
        assert cost is not None
        assert number is not None
        points.append((cost.mean, number.mean))
        if number.half is not None and len(there) >= FEWEST_IN_BAND:
            bands.append((cost.mean, max(0.0, number.mean - number.half), min(1.0, number.mean + number.half)))
    return ComparedLine(points, bands if band else ())
