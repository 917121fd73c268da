"""Runs beside each other: their curves over six kinds of cost, and the differences of their arms.

An arm is the runs that differ in nothing but the seed. Its curve is held-out pass@1 (the mean over sources) over

    rounds    synchronisations
    steps     local steps of each client
    tokens    tokens sampled by all clients, on public problems too
    labels    labels bought; where every label is there, the problems that were drawn at least once
    bytes     bytes of messages, up and down, of all clients
    seconds   the server's wall clock, evaluation included

Two arms are compared up to the cost that all of their runs have reached, so that an unfinished run is compared as far
as it goes: pass@1 there, interpolated between evaluations, and the area under the curve, which is the mean height of
the trapezoids. Seeds that both arms have are paired if there are two or more; else the arms are unpaired (spread.py).
With one run each the interval is over problems (scores.py) and says nothing of other seeds.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, get_args

from fedrlvr.reporting.scores import Estimate, difference, evaluations, mean_reward
from fedrlvr.reporting.spread import Spread, paired, spread, unpaired

Over = Literal["rounds", "steps", "tokens", "labels", "bytes", "seconds"]
COSTS: tuple[Over, ...] = get_args(Over)
"""The costs that a curve may be drawn over."""
CostCurve = Sequence[tuple[float, float]]
"""(cost, pass@1) of the evaluated rounds, by rising cost."""
PLACES = {"run.seed", "run.directory", "run.started_in", "run.ledgers", "run.name", "run.tracker", "run.trackers"}
"""Settings that do not tell two arms apart."""


@dataclass(frozen=True, slots=True)
class Moment:
    """A run after a round: what it has cost so far (None where that is not known), and how good it is.

    held_out: None where the round was not evaluated. reward: mean over the clients that trained.
    """

    round: int
    costs: Mapping[str, float | None]
    held_out: Estimate | None
    reward: float | None


@dataclass(frozen=True, slots=True)
class RunInComparison:
    """A run as it is compared.

    settings: by dotted name, as text. digest: of all of its problems; None where that is not known. notes: what a
    reader must know of it.
    """

    name: str
    seed: int
    settings: Mapping[str, str]
    moments: Sequence[Moment]
    digest: str | None = None
    version: str | None = None
    notes: Sequence[str] = ()

    def curve(self, over: Over) -> list[tuple[float, float]]:
        """Held-out pass@1 over a cost; empty where the cost is not known."""
        known = [(moment.costs[over], moment.held_out) for moment in self.moments if moment.held_out is not None]
        return [(cost, score.mean) for cost, score in known if cost is not None and score is not None]

    def rewards(self, over: Over) -> list[tuple[float, float]]:
        """The mean training reward over a cost."""
        known = [(moment.costs[over], moment.reward) for moment in self.moments if moment.reward is not None]
        return [(cost, reward) for cost, reward in known if cost is not None]


@dataclass(frozen=True, slots=True)
class ArmInComparison:
    """Runs that differ in nothing but their seeds, by seed."""

    name: str
    runs: Mapping[int, RunInComparison]

    @property
    def settings(self) -> Mapping[str, str]:
        """Settings of the arm's first run, without those that do not tell arms apart."""
        first = next(iter(self.runs.values()))
        return {name: value for name, value in first.settings.items() if name not in PLACES}


@dataclass(frozen=True, slots=True)
class Difference:
    """An arm minus another one, up to a cost that all their runs have reached.

    score: pass@1 there, in parts of 1. area: under the curve. how: "paired", "unpaired" or "one seed". seeds: of the
    pairs, or of both arms. exact: whether the score is of evaluated rounds, not interpolated.
    """

    at: float
    score: Estimate | Spread
    area: Spread | None
    how: Literal["paired", "unpaired", "one seed"]
    seeds: tuple[int, ...]
    exact: bool


@dataclass(frozen=True, slots=True)
class ArmResult:
    """Results of an arm by itself: spreads over its seeds, None where nothing is known.

    start, end: pass@1 of the first and the last evaluated round. area: under the curve, mean height. costs: of the
    whole runs, by their names. minus: the difference to the comparison's first arm; None in that arm itself.
    """

    arm: ArmInComparison
    rounds: Spread | None
    start: Spread | None
    end: Spread | None
    area: Spread | None
    costs: Mapping[str, Spread | None]
    minus: Difference | None = None


@dataclass(frozen=True, slots=True)
class Comparisons:
    """Arms beside each other over one cost. differing: (setting, its values with the numbers of the arms that have it).
    notes: what a reader must know."""

    over: Over
    results: Sequence[ArmResult]
    differing: Sequence[tuple[str, Mapping[str, Sequence[int]]]]
    notes: Sequence[str] = field(default=())


def moments(records: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> list[Moment]:
    """A run's moments by round, with costs summed since its start.

    records: the lines of metrics.jsonl. settings: the tree of config.json, also of another release.
    """
    train, federation = settings.get("train", {}), settings.get("federation", {})
    steps, problems = train.get("local_steps"), train.get("problems_per_step")
    if federation.get("arm") == "central" and isinstance(federation.get("clients"), list) and problems is not None:
        problems *= len(federation["clients"])
    bought = any("labels_asked" in n for record in records for n in record.get("clients", {}).values())
    scores = evaluations(records)
    drawn: dict[str, float] = {}
    held: dict[str, float] = {}
    sums = dict.fromkeys(("tokens", "labels", "bytes", "seconds"), 0.0)
    result = []
    for record in records:
        for client, numbers in record.get("clients", {}).items():
            sums["tokens"] += sum(numbers.get(f"{part}tokens_sampled") or 0 for part in ("", "public_"))
            sums["bytes"] += sum(numbers.get(f"bytes_{way}") or 0 for way in ("up", "down"))
            sums["labels"] += numbers.get("labels_asked") or 0
            if numbers.get("num-examples") is not None and steps and problems:
                drawn[client] = drawn.get(client, 0) + steps * problems + (numbers.get("problems_redrawn") or 0)
                held[client] = min(drawn[client], numbers["num-examples"])
        sums["seconds"] += sum(value or 0.0 for value in record.get("seconds", {}).values())
        round_ = int(record["round"])
        costs: dict[str, float | None] = {**sums, "rounds": float(round_), "steps": steps and float(round_ * steps)}
        if not bought:
            costs["labels"] = sum(held.values()) if steps and problems else None
        result.append(Moment(round_, costs, scores[round_][0] if round_ in scores else None, mean_reward(record)))
    return result


def flat_settings(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Settings by dotted name, each value as text; an empty table is "{}"."""
    result: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            result |= flat_settings(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return result


def area(curve: CostCurve, start: float, end: float) -> float | None:
    """Mean height of a curve between two costs, by trapezoids; None where the curve does not reach from one to the
    other, or they are equal."""
    if not curve or not curve[0][0] <= start < end <= curve[-1][0]:
        return None
    inner = [(x, y) for x, y in curve if start < x < end]
    points = [(start, height(curve, start)), *inner, (end, height(curve, end))]
    return sum((b - a) * (low + high) / 2 for (a, low), (b, high) in pairwise(points)) / (end - start)


def height(curve: CostCurve, at: float) -> float:
    """A curve at a cost within its ends, interpolated between the evaluated rounds on both sides.

    Raises:
        ValueError: the cost is outside of the curve.
    """
    place = bisect_right([x for x, _ in curve], at)
    if place == 0 or (place == len(curve) and curve[-1][0] != at):
        raise ValueError(f"the curve has no value at {at}")
    left, low = curve[place - 1]  # the last one at this cost: a budget of labels may be spent early
    if left == at:
        return low
    right, high = curve[place]
    return low + (high - low) * (at - left) / (right - left)


def arms_of(runs: Sequence[tuple[str | None, RunInComparison]]) -> list[ArmInComparison]:
    """The arms of runs, in the order of their first run.

    runs: each with the name of its arm, where a sweep has given it one. Other runs are an arm together where they
    differ in nothing but the seed; runs of the same seed are arms of their own.
    """
    groups: list[tuple[str | None, dict[str, str], dict[int, RunInComparison]]] = []
    for arm, run in runs:
        settings = {name: value for name, value in run.settings.items() if name not in PLACES}
        for name, others, members in groups:
            alike = arm == name if arm or name else others == settings
            if alike and run.seed not in members:
                members[run.seed] = run
                break
        else:
            groups.append((arm, settings, {run.seed: run}))
    arms: list[ArmInComparison] = []
    for arm, _, members in groups:
        first = next(iter(members.values())).name
        name = arm or (first if len(members) == 1 else f"{first} and {len(members) - 1} more")
        arms.append(ArmInComparison(name, dict(sorted(members.items()))))
    return arms


def compare(arms: Sequence[ArmInComparison], over: Over) -> Comparisons:
    """The arms beside each other, each with its difference to the first."""
    results = []
    for number, arm in enumerate(arms):
        curves = {seed: run.curve(over) for seed, run in arm.runs.items()}
        known = {seed: curve for seed, curve in curves.items() if curve}
        last = {seed: run.moments[-1] for seed, run in arm.runs.items() if run.moments}
        areas = {seed: area(curve, curve[0][0], curve[-1][0]) for seed, curve in known.items()}
        scores = {seed: scored for seed, run in arm.runs.items() if (scored := _scores(run))}
        results.append(
            ArmResult(
                arm,
                rounds=spread({seed: float(moment.round) for seed, moment in last.items()}),
                start=spread({seed: values[0] for seed, values in scores.items()}),
                end=spread({seed: values[-1] for seed, values in scores.items()}),
                area=spread({seed: value for seed, value in areas.items() if value is not None}),
                costs={cost: _cost(last, cost) for cost in COSTS if cost != "rounds"},
                minus=minus(arm, arms[0], over) if number else None,
            )
        )
    return Comparisons(over, results, differing_settings(arms), notes_of(arms, over))


def _scores(run: RunInComparison) -> list[float]:
    return [moment.held_out.mean for moment in run.moments if moment.held_out is not None]


def _cost(last: Mapping[int, Moment], cost: str) -> Spread | None:
    return spread({seed: value for seed, moment in last.items() if (value := moment.costs[cost]) is not None})


def minus(arm: ArmInComparison, other: ArmInComparison, over: Over) -> Difference | None:
    """An arm minus another, paired by seed where two or more seeds are in both; None where a curve is missing, or they
    have no cost in common."""
    curves, others = _curves(arm, over), _curves(other, over)
    both = sorted(curves.keys() & others.keys())
    if len(both) > 1:
        curves, others = ({seed: part[seed] for seed in both} for part in (curves, others))
    if not curves or not others:
        return None
    everything = [*curves.values(), *others.values()]
    start, end = max(curve[0][0] for curve in everything), min(curve[-1][0] for curve in everything)
    if end < start:
        return None
    heights = [{seed: height(curve, end) for seed, curve in part.items()} for part in (curves, others)]
    areas = [_areas(part, start, end) for part in (curves, others)]
    exact = all(any(x == end for x, _ in curve) for curve in everything)
    if len(both) > 1:
        score = paired(heights[0], heights[1], float)
        assert score is not None
        return Difference(end, score, paired(areas[0], areas[1], float), "paired", tuple(both), exact)
    seeds = (*sorted(curves), *sorted(others))
    score = unpaired(*heights)
    assert score is not None
    if len(curves) == len(others) == 1:
        estimates = [_estimate_at(part, over, end) for part in (arm, other)]
        known = [estimate for estimate in estimates if estimate is not None]
        between = difference(known[0], known[1]) if exact and len(known) == 2 else score
        return Difference(end, between, unpaired(*areas), "one seed", seeds, exact)
    return Difference(end, score, unpaired(*areas), "unpaired", seeds, exact)


def _curves(arm: ArmInComparison, over: Over) -> dict[int, list[tuple[float, float]]]:
    return {seed: curve for seed, run in arm.runs.items() if (curve := run.curve(over))}


def _areas(curves: Mapping[int, CostCurve], start: float, end: float) -> dict[int, float]:
    areas = {seed: area(curve, start, end) for seed, curve in curves.items()}
    return {seed: value for seed, value in areas.items() if value is not None}


def _estimate_at(arm: ArmInComparison, over: Over, at: float) -> Estimate | None:
    (run,) = (run for run in arm.runs.values() if run.curve(over))
    evaluated = [m.held_out for m in run.moments if m.held_out is not None and m.costs[over] == at]
    return evaluated[-1] if evaluated else None


def differing_settings(arms: Sequence[ArmInComparison]) -> list[tuple[str, dict[str, list[int]]]]:
    """Settings that are not the same in all arms: for each value the numbers of the arms, from 1, that have it."""
    trees = [arm.settings for arm in arms]
    rows = []
    for name in dict.fromkeys(name for tree in trees for name in tree):
        values: dict[str, list[int]] = {}
        for number, tree in enumerate(trees, start=1):
            values.setdefault(tree.get(name, "absent"), []).append(number)
        if len(values) > 1:
            rows.append((name, values))
    return sorted(rows)


def notes_of(arms: Sequence[ArmInComparison], over: Over) -> list[str]:
    """Notes on a comparison for its reader: those of the runs, other problems, other releases, and missing curves."""
    runs = [run for arm in arms for run in arm.runs.values()]
    noted: dict[str, list[str]] = {}
    for run in runs:
        for note in run.notes:
            noted.setdefault(note, []).append(run.name)
    notes = [f"{_some(names)}: {note}." for note, names in noted.items()]
    for name, why in (("evaluation", _unevaluated), (f"number of {over}", lambda run: _uncosted(run, over))):
        without = [run.name for run in runs if why(run)]
        if without:
            notes.append(f"No {name}, so no curve over {over}: {_some(without)}.")
    digests: dict[int, set[str]] = {}
    for run in runs:
        if run.digest is not None:
            digests.setdefault(run.seed, set()).add(run.digest)
    other = [str(seed) for seed, some in sorted(digests.items()) if len(some) > 1]
    if other:
        notes.append(
            f"Runs of the same seed do not hold the same problems (seed {_some(other)}), so a difference may be due to "
            "the problems."
        )
    known = sorted({run.version or "unknown" for run in runs})
    if len(known) > 1:
        notes.append(f"The runs were made by different releases of fedrlvr ({', '.join(known)}).")
    return notes


def _unevaluated(run: RunInComparison) -> bool:
    return not _scores(run)


def _uncosted(run: RunInComparison, over: Over) -> bool:
    return bool(_scores(run)) and not run.curve(over)


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
