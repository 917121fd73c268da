"""Charts as the page gets them: lines over the rounds, of few points however long the run is.

Up to `COLOURS` clients have a line each. Of more, the page gets the mean, a band, and the clients that are asked for.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from fedrlvr.reporting.figures import COLOURS, Curve
from fedrlvr.reporting.watch.number_table import Floats, NumberTable, band, decimated, mean
from fedrlvr.reporting.watch.run_files import shown_name
from fedrlvr.reporting.watch.watched_run import WatchedRun, finite_all


def drawn_together(table: NumberTable) -> bool:
    """Whether a run has too many clients for a line of each."""
    return len(table.clients) > COLOURS


def make_line(name: str, role: str, values: Floats, colour: int | None = None) -> tuple[dict[str, Any], Floats]:
    """A line of a chart: its description, and its values.

    role: mean, low, high (of a band), client or dashed. colour: number of the page's line colours.
    """
    return {"name": name, "role": role, "colour": colour}, values


def make_chart(
    title: str,
    rounds: Floats,
    lines: Sequence[tuple[dict[str, Any], Floats]],
    *,
    percent: bool = False,
    floor: bool = True,
    unit: str = "",
) -> dict[str, Any]:
    """A chart of lines over the same rounds, with few points."""
    known = ~np.isnan(np.stack([values for _, values in lines])).all(axis=0)
    xs, points = decimated(rounds[known], np.stack([values[known] for _, values in lines]))
    return {
        "title": title,
        "percent": percent,
        "floor": floor,
        "unit": unit,
        "x": finite_all(xs),
        "lines": [{**head, "values": finite_all(row)} for (head, _), row in zip(lines, points, strict=True)],
    }


def chart_of_clients(run: WatchedRun, curve: Curve, chosen: Collection[str], unit: str = "") -> dict[str, Any] | None:
    """The chart of a number of the clients; None where no client has it."""
    table = run.table
    grid = table.grid(curve.key)
    dashed = table.grid(curve.dashed) if curve.dashed else None
    if grid is None or not len(grid) or np.isnan(grid).all() or (curve.both and dashed is None):
        return None
    if curve.key == "weight" and _is_constant(grid):
        return None  # weights by examples
    lines = _client_lines(run, table, grid, chosen)
    if dashed is not None and not np.isnan(dashed).all():
        lines.append(make_line("dashed", "dashed", mean(dashed)))
    return make_chart(curve.title, table.rounds, lines, percent=curve.percent, floor=curve.floor, unit=unit)


def _is_constant(grid: Floats) -> bool:
    """Whether each client has one and the same value in all rounds."""
    return bool(np.nanmax(np.nanmax(grid, axis=0) - np.nanmin(grid, axis=0)) == 0)


def _client_lines(
    run: WatchedRun, table: NumberTable, grid: Floats, chosen: Collection[str]
) -> list[tuple[dict[str, Any], Floats]]:
    """The mean of the clients, and each of them; of many a band, and those that are chosen. A client has the same
    colour in all charts."""
    order = [shown_name(client) for client in run.clients]
    places = {shown_name(client): place for place, client in enumerate(table.clients)}
    if drawn_together(run.table):
        low, high = band(grid)
        lines = [make_line("low", "low", low), make_line("high", "high", high), make_line("mean", "mean", mean(grid))]
        named = list(chosen)
    else:
        lines = [make_line("mean", "mean", mean(grid))] if len(places) > 1 else []
        named = order
    numbered = [(number, client) for number, client in enumerate(named, start=1) if client in places]
    return lines + [make_line(client, "client", grid[:, places[client]], number) for number, client in numbered]


def charts_of_clients(run: WatchedRun, curves: Sequence[Curve], chosen: Collection[str]) -> list[dict[str, Any]]:
    """The charts of those numbers that some client has."""
    charts = (chart_of_clients(run, curve, chosen) for curve in curves)
    return [chart for chart in charts if chart is not None]


def evaluation_chart(run: WatchedRun, chosen: Collection[str]) -> dict[str, Any] | None:
    """Held-out pass@1 over the evaluated rounds: the mean with its interval, and each client."""
    if not run.evaluated:
        return None
    rounds = sorted(run.evaluated)
    overall = [run.evaluated[round_][0] for round_ in rounds]
    table = NumberTable(["rate"])
    for round_ in rounds:
        table.add(round_, {client: {"rate": rate} for client, rate in run.client_scores.get(round_, {}).items()})
    grid = table.grid("rate")
    lines = [
        make_line("low", "low", np.array([value.low for value in overall])),
        make_line("high", "high", np.array([value.high for value in overall])),
        make_line("mean", "mean", np.array([value.mean for value in overall])),
    ]
    if grid is not None:
        lines += [line for line in _client_lines(run, table, grid, chosen) if line[0]["role"] == "client"]
    chart = make_chart("Held-out pass@1", np.array(rounds, dtype=np.float64), lines, percent=True)
    return {**chart, "band": "95 % interval of the mean"}
