"""The table of a case: ours against Flower + TRL, against ours with one switch turned, and against the floor."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.sides import Work, alone, pairs

BASELINE = "Flower + TRL, tuned"
DOCUMENTED = "Flower + TRL, as documented"
SWITCHES = {
    "clients one after another": "engine.cohort=false",
    "zero-advantage groups trained": "engine.skip_zero_advantage=false",
    "each response prefills its prompt": "engine.prefill_once=false",
    "a prompt's cache copied for each response": "engine.shared_cache=false",
    "each response trains with its own prompt": "engine.shared_prefix=false",
    "ended responses stay": "engine.compact=false",
    "behaviour log-probs computed again": "engine.sampled_logps=false",
    "all logits at once": "engine.response_logits=false",
    "micro-batches in the order drawn": "engine.by_length=false",
    "gradient checkpointing": "model.gradient_checkpointing=true",
}
"""Row of the table -> the setting that turns the switch."""

SPLITS = {"E1": (8, 16, 32, 64), "E2": (2, 4), "TINY": (8, 16), "LENGTH": (64,)}
"""Responses in the baseline's micro-batch that are tried."""


@dataclass(frozen=True)
class Plan:
    """How often to measure a case.

    warm: rounds before those that count. rounds: pairs against the baseline. switch_rounds: pairs for each switch.
    split_clients: clients in the trial of the baseline's micro-batches, whose cost does not depend on their number.
    apart: peak memory in a round of its own, not timed; else in the timed rounds, where they are long enough.
    clients: other than the case's own number.
    documented_rounds: pairs against the baseline as documented. switches: rows of `SWITCHES` to measure.
    """

    warm: int
    rounds: int
    switch_rounds: int
    split_clients: int
    apart: bool = True
    clients: int | None = None
    documented_rounds: int = 0
    switches: tuple[str, ...] = tuple(SWITCHES)


# E2's rounds take a minute, so only the switches that matter there: nothing ends early, no group is without gradient.
_E2_SWITCHES = (
    "clients one after another",
    "each response prefills its prompt",
    "a prompt's cache copied for each response",
    "each response trains with its own prompt",
)
PLANS = {
    "E1": Plan(warm=2, rounds=7, switch_rounds=3, split_clients=4, documented_rounds=5),
    "E2": Plan(warm=0, rounds=2, switch_rounds=1, split_clients=1, apart=False, switches=_E2_SWITCHES),
    "TINY": Plan(warm=1, rounds=2, switch_rounds=1, split_clients=1),
}
QUICK = {
    "E1": Plan(warm=1, rounds=2, switch_rounds=1, split_clients=1, documented_rounds=1),
    "E2": Plan(
        warm=0,
        rounds=1,
        switch_rounds=1,
        split_clients=1,
        apart=False,
        clients=1,
        switches=("each response trains with its own prompt",),
    ),
    "TINY": Plan(warm=1, rounds=1, switch_rounds=1, split_clients=1, switches=("clients one after another",)),
}


def compare(
    case: str, *, plan: Plan, medqa: Path | None, kept: Callable[..., Any], say: Callable[[str], None]
) -> dict[str, Any]:
    """Every row of a case's table: label -> `pairs` of the row's side (`first`) and ours (`second`).

    kept: (name, function) -> the function's result, from disk where an earlier run left it.
    """
    ours = Work("ours", case, clients=plan.clients, medqa=medqa)
    baseline = Work("flower-trl", case, clients=plan.clients, medqa=medqa)
    splits = kept(f"{case}-splits", lambda: try_splits(baseline, plan, say))
    best = int(min(splits, key=lambda name: splits[name]["cpu"]))
    baseline = replace(baseline, per_device=best)
    result: dict[str, Any] = {"case": case, "splits": splits, "per_device": best, "rows": {}}

    def row(label: str, other: Work, rounds: int) -> None:
        def measure() -> Any:
            say(f"{case}: {label}")
            return pairs(other, ours, warm=plan.warm, rounds=rounds, apart=plan.apart)

        result["rows"][label] = kept(f"{case}-{label}", measure)

    row(BASELINE, baseline, plan.rounds)
    if plan.documented_rounds:
        row(DOCUMENTED, replace(baseline, documented=True, per_device=None), plan.documented_rounds)
    for label in plan.switches:
        row(label, replace(ours, settings=(SWITCHES[label],)), plan.switch_rounds)
    cores = os.cpu_count() or 1
    if cores > 1 and plan.apart:  # where rounds are long, this is left out too
        row(f"{cores} threads", replace(ours, threads=cores), plan.switch_rounds)

    def measure_floor(work: Work = ours) -> Any:
        say(f"{case}: floor of {work.side}")
        return alone(work, ["round"] * plan.warm + ["floor"])[-1]

    result["floor"] = kept(f"{case}-floor", measure_floor)
    if plan.apart:  # the baseline's takes longer than it tells where a round takes minutes
        result["baseline floor"] = kept(f"{case}-baseline-floor", lambda: measure_floor(baseline))
    return result


def try_splits(baseline: Work, plan: Plan, say: Callable[[str], None]) -> dict[str, Any]:
    """CPU seconds and peak memory of the baseline's splits of a step into micro-batches, with few clients."""
    results = {}
    for per_device in SPLITS[baseline.case]:
        say(f"{baseline.case}: {BASELINE}, micro-batches of {per_device}")
        work = replace(baseline, per_device=per_device, clients=plan.split_clients)
        if plan.apart:
            *timed, memory = alone(work, ["round", "round", "round", "memory"])
            timed = timed[1:]
        else:
            timed = [memory] = alone(work, ["memory"])
        cpu = min(cost["cpu"] for cost in timed)
        results[str(per_device)] = {"cpu": cpu, "clients": plan.split_clients, "memory": memory}
    return results
