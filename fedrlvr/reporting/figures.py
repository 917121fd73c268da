"""The report's curves, as SVG text to be set into the page.

Drawn by matplotlib, whose colours and font are then handed over to the page's style sheet (CSS variables), so that one
drawing serves light and dark. The same numbers give the same bytes. Names of clients and sources stay out of the
drawings; the page's own legend holds them.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedrlvr.reporting.scores import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = 8
"""The page has this many line colours, --line-1 to --line-8. More lines than that are drawn as one bundle."""
MOST_POINTS = 120
"""Largest number of points of a line; of more rounds, means of consecutive ones are drawn."""
_MOST_IN_BUNDLE = 2000  # points of all faint lines together
_MOST_LINES = 200  # of a bundle; with more clients, evenly chosen ones are drawn
_MOST_BARS = 60
_MOST_MARKED = 50  # points of a line that gets a mark at each of them
_LEAST_SPAN = 0.02  # of an axis that does not start at 0, as a part of its values
_FONT = "DejaVu Sans"  # ships with matplotlib; its widths stand in for the reader's font
# Colours that stand for a variable of the style sheet until the drawing is done.
_INK, _MUTED, _GRID, _MEAN = "#010101", "#020202", "#030303", "#040404"
_LINES = [f"#0501{i:02x}" for i in range(1, COLOURS + 1)]
_VARIABLES = {
    _INK: "var(--ink)",
    _MUTED: "var(--muted)",
    _GRID: "var(--rule)",
    _MEAN: "var(--accent)",
    **{colour: f"var(--line-{i})" for i, colour in enumerate(_LINES, start=1)},
}

_MARKS: dict[str, dict[str, Any]] = {
    "-": {"linewidth": 1.6, "marker": "o", "markersize": 2.8},
    "--": {"linewidth": 1.1, "marker": "o", "markersize": 1.8},
}
DASHES = ("solid", "dashed", "dotted", "dashdot")
"""Styles of the lines of a comparison: the first `COLOURS` lines are solid, the next dashed, and so on."""
_DASHES = {"solid": "-", "dashed": (0, (4, 2)), "dotted": (0, (1, 1.5)), "dashdot": (0, (5, 1.5, 1, 1.5))}
MOST_COMPARED = COLOURS * len(DASHES)
"""Largest number of lines that a comparison draws."""

LIGHT = {
    "page": "#f6f7f9",
    "card": "#ffffff",
    "ink": "#16202e",
    "muted": "#5c6878",
    "rule": "#e1e5eb",
    "faint": "#eef1f5",
    "accent": "#1d5fd1",
    "good": "#0f7a4d",
    "bad": "#b3261e",
    **{
        f"line-{i}": colour
        for i, colour in enumerate(
            ("#1d5fd1", "#c8590b", "#0f8a63", "#b3398c", "#7a52cc", "#0e87a8", "#a77a00", "#64707f"), start=1
        )
    },
}
DARK = {
    "page": "#0f141b",
    "card": "#171e28",
    "ink": "#e7ecf3",
    "muted": "#98a5b6",
    "rule": "#2a3442",
    "faint": "#1e2733",
    "accent": "#6ea8ff",
    "good": "#4cc38a",
    "bad": "#ff8a80",
    **{
        f"line-{i}": colour
        for i, colour in enumerate(
            ("#6ea8ff", "#f79b5b", "#45c9a0", "#ee8cca", "#b197fc", "#53c9e8", "#e3bd4a", "#a3afbe"), start=1
        )
    },
}
"""Colours of a page by the names of its CSS variables, light and dark."""

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Curve:
    """A figure of a number in the clients' records over the rounds.

    key: the number. dashed: key of a second number, drawn dashed. both: whether the figure needs the second.
    percent: write 0.25 as 25 %. floor: the axis starts at 0.
    """

    key: str
    title: str
    dashed: str | None = None
    percent: bool = False
    floor: bool = True
    both: bool = False


def draw_curves(curve: Curve, lines: Mapping[str, Points], dashed: Mapping[str, Points] | None = None) -> str:
    """SVG of a line per name; beyond `COLOURS` names, all of them faint and their mean strong.

    lines: by name, in legend order. dashed: those of the second number, for the same names.
    """

    def paint(axes: Axes) -> None:
        for part, style in ((lines, "-"), (dashed or {}, "--")):
            if len(lines) > COLOURS:
                for points in _bundle(part):
                    axes.plot(*_xy(points), color=_MUTED, linestyle=style, linewidth=0.6, alpha=0.35)
                _plot(axes, _mean(part), _MEAN, style)
            else:
                for colour, name in zip(_LINES, lines, strict=False):
                    _plot(axes, part.get(name, []), colour, style)
        _finish(axes, percent=curve.percent, floor=curve.floor)

    return _svg(curve.title, 4.4, 2.3, paint)


def draw_evaluations(title: str, overall: Mapping[int, Estimate], sources: Mapping[str, Points]) -> str:
    """SVG of the overall pass@1 with its interval as a band, over a thin line per source."""

    def paint(axes: Axes) -> None:
        few = len(sources) <= COLOURS
        for i, points in enumerate(sources.values()):
            colour, alpha = (_LINES[i], 0.9) if few else (_MUTED, 0.4)
            axes.plot(*_xy(decimate(points)), color=colour, linewidth=0.9, alpha=alpha)
        means, low, high = (
            decimate([(round_, getattr(overall[round_], name)) for round_ in sorted(overall)])
            for name in ("mean", "low", "high")
        )
        axes.fill_between(_xy(low)[0], _xy(low)[1], _xy(high)[1], color=_INK, alpha=0.1, linewidth=0)
        marks: dict[str, Any] = {"marker": "o", "markersize": 4} if len(means) <= _MOST_MARKED else {}
        axes.plot(*_xy(means), color=_INK, linewidth=2.2, **marks)
        _finish(axes, percent=True, floor=True)

    return _svg(title, 9.0, 2.8, paint)


def draw_shares(title: str, rows: Sequence[tuple[int, Sequence[float]]], colours: Sequence[int | None]) -> str:
    """SVG of stacked bars: by round, parts of 1, the first at the bottom.

    colours: of the parts, by number of the page's line colours; None is faint.
    """

    def paint(axes: Axes) -> None:
        columns = [decimate([(x, parts[part]) for x, parts in rows], _MOST_BARS) for part in range(len(colours))]
        rounds = [x for x, _ in columns[0]]
        width = 0.85 * (rounds[1] - rounds[0] if len(rounds) > 1 else 1)
        bottoms = [0.0] * len(rounds)
        for column, number in zip(columns, colours, strict=True):
            heights = [value for _, value in column]
            colour = _GRID if number is None else _LINES[number - 1]
            axes.bar(rounds, heights, bottom=bottoms, color=colour, width=width, linewidth=0)
            bottoms = [low + height for low, height in zip(bottoms, heights, strict=True)]
        _finish(axes, percent=True, floor=True)
        axes.set_ylim(0, 1)

    return _svg(title, 4.4, 2.3, paint)


def draw_calibration(title: str, sets: Sequence[Sequence[tuple[float, float, float]]]) -> str:
    """SVG of the measured against the estimated share of correct majorities, beside the diagonal.

    sets: (said, happened, number of cases) each, with the page's line colours in order; areas go by the number.
    """

    def paint(axes: Axes) -> None:
        from matplotlib.ticker import MultipleLocator, PercentFormatter

        axes.plot([0, 1], [0, 1], color=_MUTED, linewidth=0.8, linestyle="--")
        for points, colour in zip(sets, _LINES, strict=False):
            most = max((n for *_, n in points), default=1)
            estimated, measured = [x for x, _, _ in points], [y for _, y, _ in points]
            axes.plot(estimated, measured, color=colour, linewidth=1.1)
            axes.scatter(estimated, measured, s=[6 + 60 * n / most for _, _, n in points], color=colour, linewidth=0)
        _finish(axes, percent=True, floor=True)
        axes.set(xlim=(0, 1), ylim=(0, 1))
        axes.xaxis.set_major_locator(MultipleLocator(0.25))
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))

    return _svg(title, 4.4, 3.4, paint)


def draw_roc(title: str, curves: Sequence[Points]) -> str:
    """SVG of ROC curves beside the diagonal, in the page's line colours in order."""

    def paint(axes: Axes) -> None:
        from matplotlib.ticker import PercentFormatter

        axes.plot([0, 1], [0, 1], color=_MUTED, linewidth=0.8, linestyle="--")
        for points, colour in zip(curves, _LINES, strict=False):
            axes.plot(*_xy(points), color=colour, linewidth=1.4)
        _finish(axes, percent=True, floor=True)
        axes.set(xlim=(0, 1), ylim=(0, 1))
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))

    return _svg(title, 4.4, 3.4, paint)


@dataclass(frozen=True)
class ComparedLine:
    """A line of a comparison. band: (x, low, high), drawn faintly around it; empty for none."""

    points: Points
    band: Sequence[tuple[float, float, float]] = ()


def draw_comparison(
    title: str, lines: Sequence[ComparedLine], *, percent: bool, width: float = 4.4, height: float = 2.3
) -> str:
    """SVG of lines over a cost, in the page's line colours and the styles of `DASHES`.

    lines: in the order of the legend; those beyond `MOST_COMPARED` are left out.
    """

    def paint(axes: Axes) -> None:
        for i, line in enumerate(lines[:MOST_COMPARED]):
            colour = _LINES[i % COLOURS]
            if line.band:
                x, low, high = zip(*line.band, strict=True)
                axes.fill_between(x, low, high, color=colour, alpha=0.1, linewidth=0)
            _plot(axes, line.points, colour, _DASHES[DASHES[i // COLOURS]])
        _finish(axes, percent=percent, floor=False, whole=False)

    return _svg(title, width, height, paint)


def standalone(svg: str) -> str:
    """A drawing of this module to be shown outside of a page, in the light page's colours."""
    svg = re.sub(r"var\(--([a-z0-9-]+)\)", lambda match: LIGHT.get(match[1], "sans-serif"), svg)
    return svg.replace("<svg", '<svg style="background:#ffffff"', 1)


def decimate(points: Points, most: int = MOST_POINTS) -> Points:
    """Points of a line, at most so many: of more, the means of consecutive ones, in groups of one size."""
    if len(points) <= most:
        return points
    size = math.ceil(len(points) / most)
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def _bundle(lines: Mapping[str, Points]) -> list[Points]:
    """The lines of many clients, as few and as coarse as a page can hold."""
    step = max(1, math.ceil(len(lines) / _MOST_LINES))
    chosen = list(lines.values())[::step]
    return [decimate(points, max(2, _MOST_IN_BUNDLE // len(chosen))) for points in chosen]


def _plot(axes: Axes, points: Points, colour: str, style: Any) -> None:
    """A line with a mark at each point, where there are few."""
    drawn = decimate(points)
    marks = _MARKS["--" if style == "--" else "-"]
    if len(drawn) > _MOST_MARKED:
        marks = {"linewidth": marks["linewidth"]}
    axes.plot(*_xy(drawn), color=colour, linestyle=style, **marks)


def _svg(title: str, width: float, height: float, paint: Callable[[Axes], None]) -> str:
    """The SVG of what `paint` draws; width and height in inches, of which only the proportion matters."""
    import matplotlib
    from matplotlib.figure import Figure

    out = io.StringIO()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's own matplotlibrc has no say in the report
        matplotlib.rcParams.update(
            {
                "svg.fonttype": "none",
                "svg.hashsalt": f"fedrlvr {title}",  # the figures share one page, so their ids must differ
                "font.family": _FONT,
                "font.size": 9,
                "text.color": _INK,
                "xtick.color": _MUTED,
                "ytick.color": _MUTED,
                "axes.edgecolor": _GRID,
                "axes.formatter.useoffset": False,
                "lines.dashed_pattern": (3, 2),
            }
        )
        figure = Figure(figsize=(width, height), layout="constrained")
        paint(figure.add_subplot())
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    return _adopt(out.getvalue(), title)


def _finish(axes: Axes, *, percent: bool, floor: bool, whole: bool = True) -> None:
    """Grid, ticks and limits. whole: the horizontal axis has whole numbers, such as rounds; else k, M and G."""
    from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=9.5)
    axes.margins(x=0.03)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8 if whole else 6, integer=whole, min_n_ticks=1))
    if not whole:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
    data = axes.dataLim
    if data.x0 == data.x1:  # a single round
        axes.set_xlim(data.x0 - 0.5, data.x1 + 0.5)
    if (floor and data.y0 < 0.4 * data.y1) or data.y0 == data.y1 == 0:
        axes.set_ylim(bottom=min(0.0, data.y0))
    elif data.y1 - data.y0 < _LEAST_SPAN * abs(data.y1):  # rounding noise would fill the whole height
        middle = (data.y0 + data.y1) / 2
        axes.set_ylim(middle - _LEAST_SPAN * abs(middle), middle + _LEAST_SPAN * abs(middle))
    if percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))


def _adopt(svg: str, title: str) -> str:
    """Matplotlib's SVG made fit for the page: no prologue, no repeated ids, the page's colours and font."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg)
    svg = re.sub(r' (?:d|x|y)="[^"]*"', lambda match: re.sub(r"-?\d+\.\d+", _short, match[0]), svg)
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    return svg.replace(f"'{_FONT}'", "var(--sans)")


def _short(number: re.Match[str]) -> str:
    """A coordinate in two decimals, which is a hundredth of a point."""
    return f"{float(number[0]):.2f}".rstrip("0").rstrip(".")


def _xy(points: Points) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _mean(lines: Mapping[str, Points]) -> list[tuple[float, float]]:
    at: dict[float, list[float]] = {}
    for points in lines.values():
        for x, y in points:
            at.setdefault(x, []).append(y)
    return [(x, sum(values) / len(values)) for x, values in sorted(at.items())]
