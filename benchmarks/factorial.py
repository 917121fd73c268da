"""Main effects and interactions of a two-level factorial design, as plain arithmetic.

With y(S) the result where exactly the factors in S are switched on, of k factors,

    effect of T = 1 / 2^(k-1) sum_S (-1)^(number of factors of T that are not in S) y(S)

for every non-empty set T of factors: for one factor its main effect, which is the mean of y with it minus the mean
without it; for two, half of the difference that the second makes to the effect of the first; for three, half of the
difference that the third makes to that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, combinations

from fedrlvr.reporting.sweep_table import Spread, spread

Switched = frozenset[str]
"""The factors that are switched on."""


def subsets(factors: Sequence[str]) -> list[Switched]:
    """Every combination of the factors: none, each alone, each two, and so on."""
    sizes = range(len(factors) + 1)
    return [frozenset(chosen) for chosen in chain.from_iterable(combinations(factors, size) for size in sizes)]


def effects(factors: Sequence[str], results: Mapping[Switched, float]) -> dict[Switched, float]:
    """Main effects and interactions, in the order of `subsets`.

    results: of every combination of the factors.

    Raises:
        ValueError: a combination is missing.
    """
    cells = subsets(factors)
    if missing := [cell for cell in cells if cell not in results]:
        names = ", ".join(" + ".join(sorted(cell)) or "none" for cell in missing)
        raise ValueError(f"a factorial design needs every combination of its factors, and lacks {names}")
    return {
        term: sum((-1) ** len(term - cell) * results[cell] for cell in cells) / 2 ** (len(factors) - 1)
        for term in cells
        if term
    }


def effects_over_seeds(
    factors: Sequence[str], results: Mapping[Switched, Mapping[int, float]]
) -> dict[Switched, Spread]:
    """Effects with intervals over the seeds that every combination has, each effect taken within a seed.

    Raises:
        ValueError: a combination is missing, or there is no seed in common.
    """
    common = set.intersection(*(set(by_seed) for by_seed in results.values())) if results else set()
    by_seed = {
        seed: effects(factors, {cell: of_cell[seed] for cell, of_cell in results.items()}) for seed in sorted(common)
    }
    if not by_seed:
        raise ValueError("a factorial design needs a seed that all of its combinations have")
    spreads = {}
    for term in next(iter(by_seed.values())):
        value = spread({seed: of_seed[term] for seed, of_seed in by_seed.items()})
        assert value is not None
        spreads[term] = value
    return spreads
