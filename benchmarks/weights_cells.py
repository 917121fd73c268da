"""The cells of `scripts/bench weights`: federations in which client weights can matter, weights, and server steps."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.eight import Scale

FREE, UNSOLVABLE = "{free_rider = true}", "{unsolvable = 1.0}"
REWARD_SCALES = (1.0, 1.0, 0.3, 0.3, 0.1, 0.1, 0.03, 0.03)
NOISE = 0.3
PUBLIC_PROBLEMS = 8


def _scaled() -> dict[str, str]:
    tables = {}
    for number, weight in enumerate(REWARD_SCALES, start=1):
        wording = "template = 'Q: {{ prompt }}', " if number == 4 else ""
        tables[f"site-{number}"] = f"{{{wording}rewards = [{{use = 'grader', weight = {weight}}}]}}"
    return tables


FEDERATIONS: dict[str, tuple[dict[str, str], list[str]]] = {
    "plain": ({}, []),
    "stalled-4": ({"site-5": FREE, "site-6": FREE, "site-7": UNSOLVABLE, "site-8": UNSOLVABLE}, []),
    "stalled-6": (
        {f"site-{n}": FREE for n in (3, 5, 6)} | {f"site-{n}": UNSOLVABLE for n in (2, 7, 8)},
        [],
    ),
    "scales": (_scaled(), ["train.scale_by_std=false", "train.kl_beta=0.05"]),
    "noisy": ({f"site-{n}": f"{{flipped_rewards = {NOISE}}}" for n in (6, 7, 8)}, []),
    "interference": ({"site-7": "{contradicts = 'site-1'}", "site-8": "{contradicts = 'site-2'}"}, []),
}
"""Deviations by site, and further settings."""
_GAINS = ["aggregation.weights=fgrpo", "aggregation.fgrpo_temperature=0.25"]
ARMS: dict[str, list[str]] = {
    "examples": ["aggregation.weights=examples"],
    "equal": ["aggregation.weights=equal"],
    "default": ["aggregation.weights=fgrpo"],
    "reported": _GAINS,
    "public": [*_GAINS, "aggregation.fgrpo_gain_from=public"],
    "public-shrunk": [*_GAINS, "aggregation.fgrpo_gain_from=public", "aggregation.fgrpo_shrink=true"],
}
"""Client weights. `default` is FGRPO as it comes, with a temperature of 1; the others have 0.25."""
REFERENCE = "examples"
STEPS = ("1", "auto")
"""Server steps."""


def federation_settings(scale: Scale, federation: str) -> list[str]:
    """What every arm of a federation has in common: also the public steps, so that arms differ in weights alone."""
    deviations, more = FEDERATIONS[federation]
    exchanging = scale.exchanging("none", min(PUBLIC_PROBLEMS, scale.public))
    return [*scale.settings(deviations), *exchanging, *more]


def choice_settings(scale: Scale, federation: str) -> list[str]:
    """Settings of the runs that a federation's learning rate is chosen by."""
    return [*federation_settings(scale, federation), *ARMS[REFERENCE], "aggregation.server_learning_rate=1"]


def cell_name(federation: str, arm: str, step: str) -> str:
    """The name of a cell, which is its place under the bench's directory too."""
    return f"{federation}/{arm}-step-{step}"


def cell_settings(scale: Scale, federation: str, arm: str, step: str) -> list[str]:
    """What a cell changes in examples/embedded.toml, but for the learning rate."""
    return [*federation_settings(scale, federation), *ARMS[arm], f"aggregation.server_learning_rate={step}"]


def cells(federations: Iterable[str], arms: Iterable[str], steps: Iterable[str]) -> list[tuple[str, str, str]]:
    """Federation, arm and server step of each cell."""
    arms, steps = list(arms), list(steps)
    return [(federation, arm, step) for federation in federations for step in steps for arm in arms]
