"""The data that the page gets of a run: small trees of names and numbers for each of its views.

Every text is printable and of a bounded length, every number finite, and a curve has few points however long the run
is. A view is offered only where the run has data for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from itertools import pairwise
from typing import Any

import numpy as np

from fedrlvr.config import Config
from fedrlvr.reporting import units
from fedrlvr.reporting.absence import Standing
from fedrlvr.reporting.advice import advise
from fedrlvr.reporting.curves import CURVES, FATE_TITLES, IMITATION_CURVES, LABEL_CURVES
from fedrlvr.reporting.figures import COLOURS, Curve
from fedrlvr.reporting.scores import FATES, natural
from fedrlvr.reporting.watch.charts import (
    charts_of_clients,
    drawn_together,
    evaluation_chart,
    make_chart,
    make_line,
)
from fedrlvr.reporting.watch.number_table import Floats, mean
from fedrlvr.reporting.watch.run_files import shown_name
from fedrlvr.reporting.watch.watched_run import (
    NORM,
    OWN_SECONDS,
    REWARDS,
    STANDING,
    WatchedRun,
    finite,
    shown_mapping,
)

MOST_CHOSEN = 5
"""Largest number of clients that are drawn one by one where there are more than `COLOURS`."""
MOST_CELLS = 240
"""Number of rounds beyond which the strip of participation shows several in one cell."""
MOST_WAITING = 20
"""Largest number of clients that are named of those that have not answered yet."""
LATE_FACTOR = 2.0
"""A client is slow if its own seconds are this many times the median of all."""

_LEARNING = (
    "response_length",
    "unfinished",
    "unreadable",
    "kl_to_base",
    "zero_variance_groups",
    "problems_redrawn",
    "grad_norm",
    "ratio_mean",
    "clip_fraction",
)
_CURVES = {curve.key: curve for curve in (*IMITATION_CURVES, *CURVES)}
_NORM = Curve(NORM, "Length of each client's change of the adapter")
_SETTINGS = frozenset(
    f"{section}.{key}"
    for section, part in Config.model_fields.items()
    if hasattr(part.annotation, "model_fields")
    for key in part.annotation.model_fields  # type: ignore[union-attr]
)


def run_line(run: WatchedRun) -> dict[str, Any]:
    """The line of a run in the list of runs."""
    evaluated = [run.evaluated[round_][0].mean for round_ in sorted(run.evaluated)]
    rewards = [means.reward for means in run.means if means.reward is not None]
    return {
        "id": run.id,
        "name": run.name,
        "directory": shown_name(str(run.directory)),
        "state": run.state.value,
        "round": run.done,
        "rounds": run.settings.rounds,
        "clients": len(run.clients) or len(run.responses.clients),
        "left": finite(run.left),
        "elapsed": finite(run.elapsed),
        "under_way": finite(run.under_way),
        "round_seconds": finite(run.round_seconds),
        "changed": finite(run.changed_at, 12),
        "pass_at_1": [finite(evaluated[0]), finite(evaluated[-1])] if evaluated else None,
        "reward": finite(rewards[-1]) if rewards else None,
        "version": run.version,
        "data_version": run.data_version,
    }


def overview(run: WatchedRun) -> dict[str, Any]:
    """A run's head: its line, the views it has, advice, and what could not be read."""
    return {
        **run_line(run),
        "views": [name for name, (_, has) in VIEWS.items() if has(run)],
        "client_names": [shown_name(client) for client in run.clients],
        "many": drawn_together(run.table),
        "arm": run.settings.arm,
        "supervision": run.settings.supervision,
        "desk": _desk(run),
        "now": _under_way(run),
        "advice": _advice(run),
        "notes": run.notes,
        "tiles": _tiles(run),
    }


def view(run: WatchedRun, name: str, chosen: Collection[str] = ()) -> dict[str, Any]:
    """The data of one view. chosen: names of clients to draw one by one where there are many.

    Raises:
        KeyError: there is no view of this name.
    """
    make, _ = VIEWS[name]
    return make(run, tuple(chosen)[:MOST_CHOSEN])


def _advice(run: WatchedRun) -> list[dict[str, Any]]:
    """Every rule of advice that holds, with the settings that its sentence names."""
    return [
        {
            "rule": rule,
            "sentence": sentence,
            "settings": sorted({word for word in re.findall(r"[a-z_]+\.[a-z_0-9]+", sentence) if word in _SETTINGS}),
        }
        for rule, sentence in advise(run.means).items()
    ]


def _under_way(run: WatchedRun) -> dict[str, Any] | None:
    """The part of a round that is done so far; None where no round is under way, or the newest note is of a round that
    has ended."""
    now = run.now
    if now is None or (run.done is not None and now.round < run.done):
        return None
    return {
        "round": now.round,
        "phase": shown_name(now.phase),
        "step": now.step,
        "steps": now.steps,
        "asked": len(now.asked),
        "answered": len(now.asked) - len(now.waiting),
        "waiting": [shown_name(client) for client in now.waiting[:MOST_WAITING]],
        "waits": finite(run.now_seconds),
    }


def _desk(run: WatchedRun) -> bool:
    return run.settings.labels_from == "desk"


def _tiles(run: WatchedRun) -> list[dict[str, Any]]:
    """The few numbers at the head of a run."""
    tiles: list[dict[str, Any]] = []
    if run.evaluated:
        rounds = sorted(run.evaluated)
        first, last = run.evaluated[rounds[0]][0], run.evaluated[rounds[-1]][0]
        before = f"from {units.percent(first.mean)} before training" if len(rounds) > 1 else "before training"
        tiles.append({"title": "Held-out pass@1", "value": units.percent(last.mean), "note": before})
    rewards = [means.reward for means in run.means if means.reward is not None]
    if rewards:
        note = f"{rewards[0]:.3f} in the first round" if len(rewards) > 1 else "in the first round"
        tiles.append({"title": "Mean reward", "value": f"{rewards[-1]:.3f}", "note": note})
    standings = run.table.grid(STANDING)
    if standings is not None and run.done:
        last_row = standings[-1]
        took = int((last_row == Standing.TOOK_PART).sum())
        asked = took + int((last_row > Standing.TOOK_PART).sum())
        counted = {
            standing.words: count
            for standing in Standing
            if standing > Standing.TOOK_PART and (count := int((last_row == standing).sum()))
        }
        note = ", ".join(f"{count} {words}" for words, count in counted.items()) or f"in round {run.done}"
        tiles.append({"title": "Took part", "value": f"{took} of {asked}", "note": note, "bad": bool(counted)})
    asked_labels = run.table.total("labels_asked")
    if sum(asked_labels.values()):
        held = sum(run.table.last("labels_total").values())
        note = f"{units.count(held)} in the ledgers"
        tiles.append({"title": "Labels asked", "value": units.count(sum(asked_labels.values())), "note": note})
    up, down = (sum(run.table.total(f"bytes_{way}").values()) for way in ("up", "down"))
    if up or down:
        tiles.append({"title": "Sent", "value": units.size(up + down), "note": f"{units.size(up)} of it by clients"})
    return tiles


def _summary(run: WatchedRun, chosen: tuple[str, ...]) -> dict[str, Any]:
    first = evaluation_chart(run, chosen)
    shown = [_CURVES["reward"], *([_CURVES["loss"]] if run.settings.demonstrations else [])]
    rewards = [Curve(key, f"Mean of reward {number}", floor=False) for number, key in enumerate(REWARDS, start=1)]
    return {"charts": [*([first] if first else []), *charts_of_clients(run, [*shown, *rewards], chosen)]}


# Clients.


def _clients(run: WatchedRun, chosen: tuple[str, ...]) -> dict[str, Any]:
    table = run.table
    standings = table.grid(STANDING)
    names = dict(enumerate(table.clients))
    seconds = table.last(OWN_SECONDS)
    typical = float(np.median([*seconds.values()])) if seconds else 0.0
    latest = {key: table.last(key) for key in ("reward", "num-examples")}
    scores = run.client_scores[max(run.client_scores)] if run.client_scores else {}
    rows = []
    for place, client in sorted(names.items(), key=lambda item: natural(item[1])):
        column = np.array([]) if standings is None else standings[:, place]
        now = column[-1] if len(column) and not np.isnan(column[-1]) else Standing.NOT_ASKED
        spent = seconds.get(client)
        rows.append(
            {
                "name": shown_name(client),
                "standing": Standing(int(now)).words,
                "took_part": int((column == Standing.TOOK_PART).sum()),
                "left_out": run.absent_rounds[client],
                "pass_at_1": finite(scores.get(client)),
                "seconds": finite(spent),
                "slow": bool(spent and typical and spent > LATE_FACTOR * typical),
                "times_typical": finite(spent / typical) if spent and typical else None,
                **{key: finite(values.get(client)) for key, values in latest.items()},
            }
        )
    return {
        "clients": rows,
        "round": run.done,
        "strip": _strip(run),
        "absences": [
            {
                "round": absence.round,
                "client": shown_name(absence.client),
                "standing": absence.standing.words,
                "reason": shown_name(absence.reason),
            }
            for absence in reversed(run.absences)
        ],
        "charts": charts_of_clients(
            run,
            [
                _CURVES["pass@1"],
                _CURVES["weight"],
                Curve(OWN_SECONDS, "A client's own seconds in a round"),
                _NORM,
            ],
            chosen,
        ),
    }


def _strip(run: WatchedRun) -> dict[str, Any] | None:
    """What each client did in each round, a digit (`Standing`) a cell; the most serious where a cell has several."""
    standings = run.table.grid(STANDING)
    if standings is None:
        return None
    trained = run.table.rounds > 0
    grid, rounds = standings[trained], run.table.rounds[trained]
    if not len(rounds):
        return None
    cells = min(len(rounds), MOST_CELLS)
    edges = np.linspace(0, len(rounds), cells + 1).astype(int)
    worst = np.stack([np.nan_to_num(grid[a:b], nan=0.0).max(axis=0) for a, b in pairwise(edges)]).astype(int)
    places = {client: place for place, client in enumerate(run.table.clients)}
    order = sorted(places, key=natural)
    return {
        "first": int(rounds[0]),
        "last": int(rounds[-1]),
        "begins": [int(rounds[edge]) for edge in edges[:-1]],
        "words": [standing.words for standing in Standing],
        "rows": [
            {"name": shown_name(client), "cells": "".join(map(str, worst[:, places[client]]))} for client in order
        ],
    }


# The other views.


def _learning(run: WatchedRun, chosen: tuple[str, ...]) -> dict[str, Any]:
    loss = [] if run.settings.demonstrations else [Curve("loss", "Loss", floor=False)]
    return {"charts": charts_of_clients(run, [*(_CURVES[key] for key in _LEARNING), *loss], chosen)}


def _server(run: WatchedRun, chosen: tuple[str, ...]) -> dict[str, Any]:
    rounds = np.array([round_ for round_, _ in run.steps], dtype=np.float64)

    def line(key: str) -> Floats:
        return np.array([step.get(key, np.nan) for _, step in run.steps])

    charts = []
    for title, key in (
        ("Applied learning rate of the server", "learning_rate"),
        ("Mean cosine of two clients' changes", "mean_cosine"),
        ("Length of the mean change", "mean_norm"),
    ):
        if not np.isnan(values := line(key)).all():
            charts.append(make_chart(title, rounds, [make_line("server", "mean", values)], floor=key == "mean_norm"))
    charts += charts_of_clients(run, [_CURVES["weight"], _NORM], chosen)
    return {"charts": charts, "cosine_rounds": sorted(run.cosines)}


def cosines(run: WatchedRun, round_: int) -> dict[str, Any]:
    """The cosines of the clients' changes in a round.

    Raises:
        KeyError: they are not known of this round.
    """
    rows = run.cosines[round_]
    names = sorted({*rows, *(name for row in rows.values() for name in row)}, key=natural)
    return {
        "round": round_,
        "names": [shown_name(name) for name in names],
        "rows": [[finite(rows.get(name, {}).get(other), 4) for other in names] for name in names],
    }


def _exchanges(run: WatchedRun, chosen: tuple[str, ...]) -> dict[str, Any]:
    rounds = np.array([place for place, _ in run.exchanges])
    charts = []
    for title, key, percent in (
        ("Responses in the pool of an exchange", "pool", False),
        ("Public problems that nobody solved", "unsolved", True),
    ):
        values = np.array([exchange.get(key, np.nan) for _, exchange in run.exchanges])
        if len(values) and not np.isnan(values).all():
            charts.append(make_chart(title, rounds, [make_line("exchange", "mean", values)], percent=percent))
    curves = [
        _CURVES["public_pass@1"],
        Curve("swapped_in", "Responses swapped in"),
        Curve("rescued", "Groups rescued from all-wrong"),
    ]
    return {
        "charts": charts + charts_of_clients(run, curves, chosen),
        "dropped": [
            {
                "client": shown_name(client),
                "sent": sent,
                "reasons": {shown_name(why): count for why, count in sorted(counts.items()) if count},
            }
            for client, (sent, counts) in sorted(run.dropped.items(), key=lambda item: natural(item[0]))
            if any(counts.values())
        ],
    }


def _labels(run: WatchedRun, chosen: tuple[str, ...]) -> dict[str, Any]:
    table, settings = run.table, run.settings
    asked, used, held = table.total("labels_asked"), table.total("labels_used"), table.last("labels_total")
    charts = charts_of_clients(run, LABEL_CURVES, chosen)
    grids = [
        (title, colour, grid)
        for key, (title, colour) in zip(FATES, FATE_TITLES, strict=True)
        if (grid := table.grid(key)) is not None
    ]
    if grids:
        lines = [make_line(title, "client", mean(grid), colour or COLOURS) for title, colour, grid in grids]
        charts.insert(
            0, make_chart("What became of the problems, mean of the clients", table.rounds, lines, percent=True)
        )
    return {
        "charts": charts,
        "budget": finite(settings.budget),
        "budget_total": settings.budget_total,
        "labels_from": shown_name(settings.labels_from or ""),
        "desk": _desk(run),
        "rows": [
            {
                "name": shown_name(client),
                "asked": finite(asked[client]),
                "used": finite(used.get(client)),
                "held": finite(held.get(client)),
            }
            for client in sorted(asked, key=natural)
        ],
    }


def _costs(run: WatchedRun, chosen: tuple[str, ...]) -> dict[str, Any]:
    table = run.table
    charts = []
    ways = [(f"sent {way}", table.grid(f"bytes_{way}")) for way in ("up", "down")]
    known = [(name, np.nansum(grid, axis=1)) for name, grid in ways if grid is not None]
    if known:
        lines = [make_line(name, "client", values, number) for number, (name, values) in enumerate(known, start=1)]
        charts.append(make_chart("Bytes of all clients in a round", table.rounds, lines, unit="bytes"))
    phases = sorted({phase for seconds in run.seconds for phase in seconds})[:COLOURS]
    rounds = np.array([means.round for means in run.means], dtype=np.float64)
    if phases:
        lines = [
            make_line(
                shown_name(phase),
                "client",
                np.array([seconds.get(phase, np.nan) for seconds in run.seconds]),
                number,
            )
            for number, phase in enumerate(phases, start=1)
        ]
        charts.append(make_chart("Seconds of a round by phase", rounds, lines, unit="seconds"))
    charts += charts_of_clients(run, [_CURVES["tokens_sampled"]], chosen)
    own_seconds = {
        phase: sum(table.total(f"seconds_{phase}").values()) for phase in ("sample", "grade", "train", "evaluate")
    }
    wall = {phase: sum(seconds.get(phase, 0.0) for seconds in run.seconds) for phase in phases}
    sums = {way: table.total(f"bytes_{way}") for way in ("up", "down")}
    return {
        "charts": charts,
        "wall": shown_mapping(wall),
        "own": shown_mapping({phase: seconds for phase, seconds in own_seconds.items() if seconds}),
        "bytes": [
            {"name": shown_name(c), "up": finite(sums["up"].get(c)), "down": finite(sums["down"].get(c))}
            for c in sorted({*sums["up"], *sums["down"]}, key=natural)
        ],
    }


def _gains(run: WatchedRun, chosen: tuple[str, ...]) -> dict[str, Any]:
    verdict = run.verdict
    assert verdict is not None
    rows = []
    for client in verdict.clients:
        differences = {model: d.estimate for model, d in client.minus_alone.items()}
        rows.append(
            {
                "client": shown_name(client.client),
                "n": client.n,
                "pass_at_1": {model: finite(client.pass_at_1.get(model)) for model in verdict.models},
                "minus_alone": {model: units.points(d) for model, d in differences.items()},
                "word": client.word,
            }
        )
    return {
        "models": verdict.models,
        "compared": verdict.compared,
        "rows": rows,
        "notes": [shown_name(note) for note in verdict.notes],
    }


def _responses(run: WatchedRun, chosen: tuple[str, ...]) -> dict[str, Any]:
    return {"clients": [shown_name(client) for client in run.responses.clients]}


def _has(*keys: str) -> Callable[[WatchedRun], bool]:
    return lambda run: any(run.table.grid(key) is not None for key in keys)


VIEWS: dict[str, tuple[Callable[[WatchedRun, tuple[str, ...]], dict[str, Any]], Callable[[WatchedRun], bool]]] = {
    "summary": (_summary, lambda run: bool(run.means)),
    "responses": (_responses, lambda run: bool(run.responses.clients)),
    "clients": (_clients, _has(STANDING, OWN_SECONDS)),
    "learning": (_learning, _has(*_LEARNING)),
    "server": (_server, lambda run: bool(run.steps)),
    "exchanges": (_exchanges, lambda run: bool(run.exchanges)),
    "labels": (_labels, _has("labels_asked")),
    "costs": (_costs, _has("bytes_up", "bytes_down")),
    "verdict": (_gains, lambda run: run.verdict is not None),
}
"""Views by name, in the order of the page: the maker of each, and whether a run has data for it."""
