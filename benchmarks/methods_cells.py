"""The cells of `scripts/bench methods`: the 2^3 design of PubSwap, FGRPO and CARE, and a reference with all labels."""

from __future__ import annotations

from benchmarks.eight import Scale
from benchmarks.factorial import Switched, subsets

FACTORS = ("pubswap", "fgrpo", "care")
ALL_LABELS = "all-labels"
STALLED = {"site-7": "{free_rider = true}", "site-8": "{unsolvable = 1.0}"}
"""Two sites of eight: one returns what it was sent, the other holds problems that nobody can solve."""
PUBLIC_PROBLEMS = 5
FGRPO = ["aggregation.weights=fgrpo", "aggregation.fgrpo_temperature=0.25"]
"""FGRPO switched on. Its gains are of reported rewards, which exist with and without exchanges."""


def asking(scale: Scale, method: str) -> list[str]:
    """A method that asks for a fifth of the labels, with its defaults: spent as early as a fifth of each step allows.

    method: `care` or the `random` selection, whose other problems are masked.
    """
    return [
        f"supervision.type={method}",
        "supervision.budget=0.2",
        f"supervision.budget_total={scale.labels}",
    ]


def names() -> list[str]:
    """The cells by name: the reference, then the combinations of the factors."""
    return [ALL_LABELS, *map(cell_name, subsets(FACTORS))]


def cell_name(switched: Switched) -> str:
    """The name of a combination of factors."""
    return "+".join(factor for factor in FACTORS if factor in switched) or "fedavg"


def switched_in(name: str) -> Switched | None:
    """The factors that a cell has switched on; None for the reference."""
    return {cell_name(cell): cell for cell in subsets(FACTORS)}.get(name)


def cell_settings(scale: Scale, name: str) -> list[str]:
    """What a cell changes in examples/embedded.toml, but for the learning rate.

    Every cell takes the same number of optimizer steps: public steps stand in the place of local ones.
    """
    switched = switched_in(name)
    given = [*scale.settings(STALLED), "aggregation.server_learning_rate=auto"]
    if switched is None:
        return [*given, f"train.local_steps={scale.steps}", "supervision.type=labels"]
    exchanging = scale.exchanging("balanced", min(PUBLIC_PROBLEMS, scale.public))
    return [
        *given,
        *(exchanging if "pubswap" in switched else [f"train.local_steps={scale.steps}"]),
        *(FGRPO if "fgrpo" in switched else []),
        *asking(scale, "care" if "care" in switched else "random"),
    ]
