"""The report's curves, as SVG text to be set into the page.

Drawn by matplotlib, whose colours and font are then handed over to the page's style sheet (CSS variables), so that one
drawing serves light and dark. The same numbers give the same bytes. Names of clients and sources stay out of the
drawings; the page's own legend holds them.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedrlvr.reporting.scores import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = 8
"""The page has this many line colours, --line-1 to --line-8. More lines than that are drawn as one bundle."""
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

Points = Sequence[tuple[int, float]]


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
            marks = _MARKS[style]
            if len(lines) > COLOURS:
                for points in part.values():
                    axes.plot(*_xy(points), color=_MUTED, linestyle=style, linewidth=0.6, alpha=0.35)
                axes.plot(*_xy(_mean(part)), color=_MEAN, linestyle=style, **marks)
            else:
                for colour, name in zip(_LINES, lines, strict=False):
                    axes.plot(*_xy(part.get(name, [])), color=colour, linestyle=style, **marks)
        _finish(axes, percent=curve.percent, floor=curve.floor)

    return _svg(curve.title, 4.4, 2.3, paint)


def draw_evaluations(title: str, overall: Mapping[int, Estimate], sources: Mapping[str, Points]) -> str:
    """SVG of the overall pass@1 with its interval as a band, over a thin line per source."""

    def paint(axes: Axes) -> None:
        few = len(sources) <= COLOURS
        for i, points in enumerate(sources.values()):
            colour, alpha = (_LINES[i], 0.9) if few else (_MUTED, 0.4)
            axes.plot(*_xy(points), color=colour, linewidth=0.9, alpha=alpha)
        rounds = sorted(overall)
        low, high = [overall[r].low for r in rounds], [overall[r].high for r in rounds]
        axes.fill_between(rounds, low, high, color=_INK, alpha=0.1, linewidth=0)
        axes.plot(rounds, [overall[r].mean for r in rounds], color=_INK, linewidth=2.2, marker="o", markersize=4)
        _finish(axes, percent=True, floor=True)

    return _svg(title, 9.0, 2.8, paint)


def draw_shares(title: str, rows: Sequence[tuple[int, Sequence[float]]], colours: Sequence[int | None]) -> str:
    """SVG of stacked bars: by round, parts of 1, the first at the bottom.

    colours: of the parts, by number of the page's line colours; None is faint.
    """

    def paint(axes: Axes) -> None:
        rounds = [round_ for round_, _ in rows]
        bottoms = [0.0] * len(rows)
        for part, number in enumerate(colours):
            heights = [parts[part] for _, parts in rows]
            colour = _GRID if number is None else _LINES[number - 1]
            axes.bar(rounds, heights, bottom=bottoms, color=colour, width=0.85, linewidth=0)
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


def _finish(axes: Axes, *, percent: bool, floor: bool) -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=9.5)
    axes.margins(x=0.03)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
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
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    return svg.replace(f"'{_FONT}'", "var(--sans)")


def _xy(points: Points) -> tuple[list[int], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _mean(lines: Mapping[str, Points]) -> list[tuple[int, float]]:
    at: dict[int, list[float]] = {}
    for points in lines.values():
        for x, y in points:
            at.setdefault(x, []).append(y)
    return [(x, sum(values) / len(values)) for x, values in sorted(at.items())]
